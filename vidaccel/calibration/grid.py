"""What a run's token grid and number of steps decide: its tiles, its step bands and the steps that are measured."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from vidaccel.calibration import library
from vidaccel.layout import TokenLayout
from vidaccel.patterns.decay import TOKENS
from vidaccel.schedule import StepPlan
from vidaccel.site import Site

MOST_CELLS = 96


@dataclass(frozen=True)
class Grid:
    """What a run's token grid decides.

    Args:
        steps: of the run.
        sparse: its sparse part, `first_step` to `end_step`.
        unit: in which the model's position embeddings have distances, see `patterns.decay`.
    """

    layout: TokenLayout
    steps: int
    block: int
    sparse: tuple[int, int]
    unit: str = TOKENS

    @classmethod
    def of(cls, site: Site, plan: StepPlan, block: int | None, unit: str = TOKENS) -> Grid:
        """The grid of a site whose schedule is `plan`.

        Raises:
            ValueError: no step of the run is sparse.
        """
        end = min(site.steps or 0, int(min(plan.end_step, 1 << 30)))
        if plan.first_step >= end:
            raise ValueError(f"a run of {site.steps} steps has none that the schedule leaves sparse: give more steps")
        block = block or library.block_for(site.layout)
        return cls(site.layout, site.steps or 0, block, (plan.first_step, end), unit)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Grid:
        """A grid from what `to_dict` gives."""
        layout, sparse = TokenLayout(**values["layout"]), values["sparse"]
        return cls(layout, values["steps"], values["block"], (sparse[0], sparse[1]), values["unit"])

    @property
    def side(self) -> int:
        """Cells of a mass map along a side: each a whole number of blocks, so that blocks lie in one cell, nearly."""
        tiles = self.layout.video_tokens / self.block
        return max(1, round(tiles / math.ceil(tiles / MOST_CELLS)))

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
