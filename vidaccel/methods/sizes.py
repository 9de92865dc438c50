"""The heads of a profile at the sizes that it was measured at: which of them a run has, and what a budget chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vidaccel.heads import HeadTable, Picks, layout_of
from vidaccel.layout import TokenLayout
from vidaccel.methods.budget import at_share, is_curve
from vidaccel.profile import Profile

Place = tuple[str, int, int]
"""Expert, band, layer."""
STAIRS = 4
"""Equal parts of a run in each of which a curve of densities is held: each has its own plans."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """What a budget chose from one table.

    Args:
        grid: on which the table was measured, as text; None where the profile does not say.
        table: of a profile.
        picks: an option for each head.
        same: for every place all that have its patterns, itself among them.
    """

    grid: str | None
    table: HeadTable
    picks: Picks
    same: dict[Place, list[Place]]


class Sizes:
    """All tables of a profile, each chosen from when a run of its size asks first.

    Args:
        profile: with heads.
        budget: `density`, which may be a curve, and `max_error`, one of them None.

    Raises:
        ValueError: a budget that is out of range, or that no choice meets at any size.
    """

    def __init__(self, profile: Profile, budget: dict[str, Any]) -> None:
        assert profile.heads is not None
        self.profile = profile
        self._budget = budget
        grid = (profile.calibration or {}).get("grid")
        self._tables = [(grid, profile.heads), *((str(each.layout), each.heads) for each in profile.heads_at)]
        # Of one size only, it need not say which.
        self._layouts = [layout_of(each, "a grid") for each in self.grids] if len(self._tables) > 1 else []
        self._chosen: dict[int, Chosen] = {}
        self._check()

    @property
    def tables(self) -> list[HeadTable]:
        """At every size, the profile's first one first."""
        return [table for _, table in self._tables]

    @property
    def grids(self) -> list[str | None]:
        """Of the tables, as text."""
        return [grid for grid, _ in self._tables]

    def table(self, layout: TokenLayout) -> HeadTable:
        """What was measured on a grid, or on the one whose number of video tokens is nearest, as a ratio."""
        return self._tables[self._nearest(layout)][1]

    def chosen(self, layout: TokenLayout) -> Chosen:
        """What the budget chose from the table of a grid.

        Raises:
            ValueError: the budget cannot be met at this size.
        """
        index = self._nearest(layout)
        try:
            return self._choose(index)
        except ValueError as error:
            where = f"the profile {self.profile.reference}".rstrip()
            raise ValueError(f"{where} on {layout}, as measured on {self.grids[index]}: {error}") from error

    def _nearest(self, layout: TokenLayout) -> int:
        if not self._layouts:
            return 0
        if layout in self._layouts:
            return self._layouts.index(layout)
        apart = [abs(math.log(each.video_tokens / layout.video_tokens)) for each in self._layouts]
        return apart.index(min(apart))

    def _choose(self, index: int) -> Chosen:
        if index not in self._chosen:
            grid, table = self._tables[index]
            density = self._budget["density"]
            if is_curve(density):
                table, picks = along(table, density)
            else:
                picks = table.choose(**self._budget)
            self._chosen[index] = Chosen(grid, table, picks, _same(picks))
        return self._chosen[index]

    def _check(self) -> None:
        """Refuse at once what would be refused at every size; what it knows then is kept."""
        why: list[ValueError] = []
        for index in range(len(self._tables)):
            try:
                self._choose(index)
                return
            except ValueError as error:
                why.append(error)
        raise why[0]


def along(table: HeadTable, curve: Sequence[Sequence[float]]) -> tuple[HeadTable, Picks]:
    """A table with bands for the stairs of a curve of densities, and what each stair's density picks there.

    Raises:
        ValueError: a density below the least possible.
    """
    ends = sorted({*table.bands, *((at + 1) / STAIRS for at in range(STAIRS))})
    starts = [0.0, *ends[:-1]]
    source = [next(band for band, end in enumerate(table.bands) if start < end) for start in starts]
    finer = {name: tuple(bands[band] for band in source) for name, bands in table.experts.items()}
    picks: dict[str, list[Any]] = {name: [] for name in finer}
    for stair in range(STAIRS):
        inside = [at for at, start in enumerate(starts) if stair <= start * STAIRS < stair + 1]
        own = {name: tuple(bands[at] for at in inside) for name, bands in finer.items()}
        first, last = starts[inside[0]], ends[inside[-1]]
        part = replace(table, bands=tuple((ends[at] - first) / (last - first) for at in inside), experts=own)
        found = part.choose(density=at_share(curve, (stair + 0.5) / STAIRS)) if list(part.layers(own)) else None
        for name, bands in own.items():
            # Where nothing can be chosen, all is dense.
            dense = tuple(tuple(tuple(head[-1] for head in layer) for layer in band) for band in bands)
            picks[name] += dense if found is None else found[name]
    return replace(table, bands=tuple(ends), experts=finer), {name: tuple(each) for name, each in picks.items()}


def _same(picks: Picks) -> dict[Place, list[Place]]:
    """For every place all that have its patterns, itself among them; equal places share a list."""
    chosen = {
        (name, band, layer): tuple(option.pattern for option in heads)
        for name, bands in picks.items()
        for band, layers in enumerate(bands)
        for layer, heads in enumerate(layers)
    }
    places: dict[tuple[int, ...], list[Place]] = {}
    for place, patterns in chosen.items():
        places.setdefault(patterns, []).append(place)
    return {place: places[patterns] for place, patterns in chosen.items()}
