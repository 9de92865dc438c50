"""Measures one prompt's generation: at the sampled steps, errors of the candidates and maps of the attention."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from vidaccel.calibration import learned, library, measure
from vidaccel.calibration.errors import Errors
from vidaccel.calibration.grid import Grid
from vidaccel.calibration.settings import Settings
from vidaccel.calibration.sums import Sums
from vidaccel.layout import TokenLayout
from vidaccel.patterns import Pattern
from vidaccel.schedule import StepPlan
from vidaccel.site import Site

ROWS_PER_CELL = 4
"""Sampled queries of a map, for each cell along its side."""


class Source(Protocol):
    """What a recorder asks of its calibration."""

    settings: Settings

    def step_plan(self, site: Site) -> StepPlan:
        """Which steps are sparse."""

    def check(self, grid: Grid) -> None:
        """Refuse a grid on which nothing needs to be measured."""

    def unit(self, expert: str) -> str:
        """In which the model's position embeddings have distances."""

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
            ValueError: the token grid has changed since the run's first call or is not wanted, or no step is sparse.
        """
        if self._grid is None:
            unit = self.source.unit(site.expert)
            self._grid = Grid.of(site, self.source.step_plan(site), self.settings.block, unit)
            self.source.check(self._grid)
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
        errors = self._errors(site, query.device) if self.measures else None
        for lane in range(batch * heads):
            b, h = lane // heads, lane % heads
            one = (query[b, :, h], key[b, :, h], value[b, :, h], None if lengths is None else lengths[b])
            each = errors.of(*one, h, self._own(site, band, h)) if errors else {}
            each |= self._mass(site, *one[:2], one[3]) if self.maps else {}
            for name, tensor in each.items():
                found.setdefault(name, []).append(tensor.cpu())
        for name, tensors in found.items():
            summed = torch.stack(tensors).unflatten(0, (batch, heads)).sum(0)
            self.sums.add(f"{site.expert}.{name}", band, site.layer, summed)

    def _errors(self, site: Site, device: torch.device) -> Errors:
        rows = self._rows(site, "rows", self.settings.rows)
        return Errors(self.source.ladder(self.grid), rows, self.source.factor(site.expert, site.layer), device)

    def _own(self, site: Site, band: int, head: int) -> tuple[Pattern, ...]:
        if not self.settings.library.learned:
            return ()
        return self.source.own(self.grid)[site.expert, band, site.layer, head]

    def _mass(self, site: Site, query: Tensor, key: Tensor, length: Tensor | None) -> dict[str, Tensor]:
        rows = self._rows(site, "maps", ROWS_PER_CELL * self.grid.side)
        weights = measure.weights(query[rows.to(query.device)], key, query.shape[-1] ** -0.5, length)
        cells = _cells(self.grid.layout, self.grid.side).to(query.device)
        mass, count, keys = measure.mass(weights, rows.to(query.device), cells, self.grid.layout, self.grid.side)
        axes = measure.by_axis(weights, rows, self.grid.layout)
        return {"mass": mass, "count": count, "keys": learned.key_rows(keys.cpu(), self.grid.layout), "axes": axes}

    def _rows(self, site: Site, what: str, count: int) -> Tensor:
        """Rows that depend on the seed and the place alone."""
        text = f"{what} {self.settings.seed} {self.prompt} {site.step} {site.layer} {site.expert}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        return measure.sample_rows(site.layout, count, torch.Generator().manual_seed(seed))


@functools.lru_cache(8)
def _cells(layout: TokenLayout, side: int) -> Tensor:
    return measure.cells_of(layout, side)
