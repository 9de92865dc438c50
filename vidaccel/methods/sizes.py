"""The heads of a profile at the sizes that it was measured at: which of them a run has, and what a budget chooses."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vidaccel.heads import HeadTable, Picks, layout_of
from vidaccel.layout import TokenLayout
from vidaccel.profile import Profile

Place = tuple[str, int, int]
"""Expert, band, layer."""


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
        budget: `density` and `max_error`, one of them None.

    Raises:
        ValueError: a budget that is out of range, or that no choice meets at any size.
    """

    def __init__(self, profile: Profile, budget: dict[str, float | None]) -> None:
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
