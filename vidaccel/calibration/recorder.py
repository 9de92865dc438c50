"""Measures one prompt's generation: at the sampled steps, errors of the candidates and maps of the attention."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vidaccel.calibration import learned, library, measure
from vidaccel.calibration.settings import Settings
from vidaccel.calibration.sums import Sums
from vidaccel.layout import TokenLayout
from vidaccel.patterns import Pattern, orders
from vidaccel.schedule import StepPlan
from vidaccel.site import Site

MOST_CELLS = 64
ROWS_PER_CELL = 4


@dataclass(frozen=True)
class Grid:
    """What a run's token grid decides.

    Args:
        steps: of the run.
        sparse: its sparse part, `first_step` to `end_step`.
    """

    layout: TokenLayout
    steps: int
    block: int
    sparse: tuple[int, int]

    @classmethod
    def of(cls, site: Site, plan: StepPlan, block: int | None) -> Grid:
        """The grid of a site whose schedule is `plan`.

        Raises:
            ValueError: no step of the run is sparse.
        """
        end = min(site.steps or 0, int(min(plan.end_step, 1 << 30)))
        if plan.first_step >= end:
            raise ValueError(f"a run of {site.steps} steps has none that the schedule leaves sparse: give more steps")
        return cls(site.layout, site.steps or 0, block or library.block_for(site.layout), (plan.first_step, end))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Grid:
        """A grid from what `to_dict` gives."""
        layout, sparse = TokenLayout(**values["layout"]), values["sparse"]
        return cls(layout, values["steps"], values["block"], (sparse[0], sparse[1]))

    @property
    def side(self) -> int:
        """Cells of a mass map along a side."""
        return min(MOST_CELLS, -(-self.layout.video_tokens // self.block))

    def bands(self, count: int) -> tuple[float, ...]:
        """Ends of `count` bands that cut the sparse part of a run evenly, as fractions of the run, the last 1."""
        first, end = self.sparse
        inner = [(first + (end - first) * (band + 1) / count) / self.steps for band in range(count - 1)]
        return (*(round(each, 4) for each in inner), 1.0)

    def sampled(self, count: int, per_band: int) -> dict[int, int]:
        """The measured steps, evenly inside each band, and the band of each.

        Raises:
            ValueError: a band without a step.
        """
        ends = self.bands(count)
        by_band: list[list[int]] = [[] for _ in ends]
        for step in range(*self.sparse):
            by_band[next(band for band, end in enumerate(ends) if step / self.steps < end)].append(step)
        if not all(by_band):
            most = self.sparse[1] - self.sparse[0]
            raise ValueError(f"{count} bands are too many for {most} sparse steps: give fewer bands, or more steps")
        chosen: dict[int, int] = {}
        for band, steps in enumerate(by_band):
            wanted = min(per_band, len(steps))
            places = [(2 * at + 1) * len(steps) // (2 * wanted) for at in range(wanted)]
            chosen |= {steps[place]: band for place in places}
        return chosen


class Source(Protocol):
    """What a recorder asks of its calibration."""

    settings: Settings

    def step_plan(self, site: Site) -> StepPlan:
        """Which steps are sparse."""

    def factor(self, expert: str, layer: int) -> Tensor | None:
        """R factors of a layer's output projection, ``[heads, head_dim, head_dim]``."""

    def ladder(self, grid: Grid) -> library.Ladder:
        """Candidates of all heads."""

    def own(self, grid: Grid) -> Mapping[tuple[str, int, int, int], tuple[Pattern, ...]]:
        """Candidates of single heads by (expert, band, layer, head)."""


class Recorder:
    """Watches the attention of one prompt's generation.

    Args:
        prompt: its number, which the sampled rows depend on.
        measures: whether to measure the candidates' errors.
        maps: whether to map where the attention lies.
    """

    def __init__(self, source: Source, prompt: int, *, measures: bool, maps: bool) -> None:
        self.source, self.settings, self.prompt = source, source.settings, prompt
        self.measures, self.maps = measures, maps
        self.sums = Sums()
        self._grid: Grid | None = None
        self._sampled: dict[int, int] = {}

    @property
    def grid(self) -> Grid:
        """The grid of the run, once it has begun.

        Raises:
            ValueError: no self-attention was seen.
        """
        if self._grid is None:
            raise ValueError("the generation called no self-attention of the model that is calibrated")
        return self._grid

    def __call__(self, site: Site, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None) -> None:
        """Measure a call, if its step is one of the sampled.

        Raises:
            ValueError: the token grid has changed since the run's first call, or no step is sparse.
        """
        if self._grid is None:
            self._grid = Grid.of(site, self.source.step_plan(site), self.settings.block)
            self._sampled = self._grid.sampled(self.settings.bands, self.settings.steps_per_band)
        if site.layout != self._grid.layout:
            raise ValueError(f"the token grid changed from {self._grid.layout} to {site.layout} within a calibration")
        if site.step in self._sampled:
            self._record(site, self._sampled[site.step], query, key, value, lengths)

    def _record(
        self, site: Site, band: int, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None
    ) -> None:  # fmt: skip
        found: dict[str, list[Tensor]] = {}
        batch, _, heads, _ = query.shape
        for lane in range(batch * heads):
            b, h = lane // heads, lane % heads
            one = (query[b, :, h], key[b, :, h], value[b, :, h], None if lengths is None else lengths[b])
            each = self._errors(site, band, h, *one) if self.measures else {}
            each |= self._mass(site, *one[:2], one[3]) if self.maps else {}
            for name, tensor in each.items():
                found.setdefault(name, []).append(tensor.cpu())
        for name, tensors in found.items():
            summed = torch.stack(tensors).unflatten(0, (batch, heads)).sum(0)
            self.sums.add(f"{site.expert}.{name}", band, site.layer, summed)

    def _errors(
        self, site: Site, band: int, head: int, query: Tensor, key: Tensor, value: Tensor, length: Tensor | None
    ) -> dict[str, Tensor]:
        """Errors of the common candidates and of the head's own, and the norm."""
        grid, ladder = self.grid, self.source.ladder(self.grid)
        learned = self.settings.library.learned
        own = self.source.own(grid)[site.expert, band, site.layer, head] if learned else ()
        rows, factors = self._rows(site, "rows", self.settings.rows), self.source.factor(site.expert, site.layer)
        weights = measure.weights(query[rows.to(query.device)], key, query.shape[-1] ** -0.5, length)
        values = measure.projected(value, None if factors is None else factors[head].to(value.device))
        shared = torch.zeros(len(ladder.patterns), dtype=torch.float64, device=query.device)
        mine = torch.zeros(len(own), dtype=torch.float64, device=query.device)
        norm = None
        for name in dict.fromkeys([orders.NATURAL, *ladder.groups, *(each.order for each in own)]):
            sums = measure.block_sums(weights, values, _sequence(grid.layout, name, query.device), grid.block)
            places = ladder.groups.get(name, [])
            at = [index for index, each in enumerate(own) if each.order == name]
            kept = [ladder.kept(name, rows)] if places else []
            tiles = library.tiles_of(grid.layout, name, rows, grid.block)
            kept += [_blocks(own[index], grid.layout, grid.block)[tiles][None] for index in at]
            if not kept:
                kept = [torch.zeros(0, len(rows), sums.shape[1], dtype=torch.bool)]
            error, norm = measure.errors(sums, torch.cat(kept).to(query.device))
            shared[places], mine[at] = error[: len(places)], error[len(places) :]
        assert norm is not None
        return {"error": shared, "norm": norm} | ({"own": mine} if own else {})

    def _mass(self, site: Site, query: Tensor, key: Tensor, length: Tensor | None) -> dict[str, Tensor]:
        rows = self._rows(site, "maps", ROWS_PER_CELL * self.grid.side)
        weights = measure.weights(query[rows.to(query.device)], key, query.shape[-1] ** -0.5, length)
        cells = _cells(self.grid.layout, self.grid.side).to(query.device)
        mass, count, keys = measure.mass(weights, rows.to(query.device), cells, self.grid.layout, self.grid.side)
        return {"mass": mass, "count": count, "keys": learned.key_rows(keys.cpu(), self.grid.layout)}

    def _rows(self, site: Site, what: str, count: int) -> Tensor:
        """Rows that depend on the seed and the place alone."""
        text = f"{what} {self.settings.seed} {self.prompt} {site.step} {site.layer} {site.expert}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        return measure.sample_rows(site.layout, count, torch.Generator().manual_seed(seed))


@functools.lru_cache(64)
def _sequence(layout: TokenLayout, name: str, device: torch.device) -> Tensor | None:
    sequence = orders.sequence(layout, name)
    return None if sequence is None else sequence.to(device)


@functools.lru_cache(8)
def _cells(layout: TokenLayout, side: int) -> Tensor:
    return measure.cells_of(layout, side)


@functools.lru_cache(1024)
def _blocks(pattern: Pattern, layout: TokenLayout, block: int) -> Tensor:
    return pattern.blocks(layout, block)
