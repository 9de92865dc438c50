"""From all prompts' measurements to the profile."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vidaccel import architecture
from vidaccel._version import __version__
from vidaccel.api import facts
from vidaccel.calibration.generation import Generations
from vidaccel.calibration.grid import Grid
from vidaccel.calibration.library import tiles_of
from vidaccel.calibration.made import Place
from vidaccel.calibration.measure import cells_of
from vidaccel.calibration.table import Cost, Measured, table_of
from vidaccel.costs import CostModel
from vidaccel.heads import HeadOption, HeadTable, Picks
from vidaccel.mask import BlockMask
from vidaccel.patterns import Pattern, density_of, orders, plan_of
from vidaccel.profile import Profile

COSTS = ("measured", "counted", "density")
TIMED_TOKENS, LEAST_BLOCKS = 4096, 32
"""Of the calls that are timed: no more tokens, no fewer blocks."""


class View(NamedTuple):
    """What a picture shows of one head.

    Args:
        words: what it got, and the options next to it.
        mass: where its attention lies, ``[side, side]``.
        kept: the share of each cell that its pattern keeps, of the same shape.
    """

    words: tuple[str, ...]
    mass: Tensor
    kept: Tensor


@dataclass(frozen=True, eq=False)
class Calibration:
    """A finished calibration: its profile, and what a report says about it.

    Args:
        picks: the option of every head.
        maps: see `made.means`.
        seconds: of the generations.
    """

    profile: Profile
    grid: Grid
    picks: Picks
    maps: dict[str, Tensor]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What was found, JSON-ready: predicted means, and how many heads have each kind of pattern."""
        table = self.profile.heads
        assert table is not None
        heads = [option for bands in self.picks.values() for band in bands for layer in band for option in layer]
        kinds = Counter(table.patterns[option.pattern].name for option in heads)
        return {
            "goal": self.profile.options, "predicted": table.predicted(self.picks), "kinds": dict(kinds.most_common()),
            "patterns": len({option.pattern for option in heads}), "grid": str(self.grid.layout),
            "generating_seconds": self.seconds,
        }  # fmt: skip

    def views(self) -> Iterator[tuple[str, str, list[View]]]:
        """What a picture of each layer of each band shows: a file name without its ending, a title and the heads."""
        for expert, bands in self.picks.items():
            for band, layers in enumerate(bands):
                for layer, options in enumerate(layers):
                    several = len(bands) > 1
                    name = f"{expert}-{f'band{band}-' if several else ''}layer{layer:02d}"
                    title = f"{expert}, {f'band {band}, ' if several else ''}layer {layer}"
                    places = [(expert, band, layer, head) for head in range(len(options))]
                    yield name, title, list(map(self._view, places, options))

    def _view(self, place: Place, option: HeadOption) -> View:
        table = self.profile.heads
        assert table is not None
        expert, band, layer, head = place
        every, grid = table.experts[expert][band][layer][head], self.grid
        pattern = table.patterns[option.pattern]
        shown = pattern.order if pattern.order in orders.AXES else orders.NATURAL
        mass = self.maps[f"{expert}.mass"][band, layer, head, orders.AXES.index(shown)]
        at = every.index(option)
        words = [f"head {head}: {_words(table, option)}"]
        words += [f"cheaper: {_words(table, every[at - 1])}"] if at else []
        words += [f"dearer: {_words(table, every[at + 1])}"] if at + 1 < len(every) else []
        return View(tuple(words), mass, _in_cells(pattern, grid, shown))


def _words(table: HeadTable, option: HeadOption) -> str:
    pattern = table.patterns[option.pattern]
    order = "" if pattern.order == orders.NATURAL else f" {pattern.order}"
    return f"{pattern.name}{order}, density {option.density:.2f}, error {option.error:.1e}"


def _in_cells(pattern: Pattern, grid: Grid, shown: str) -> Tensor:
    """The share of each pair of cells of an axis order that a pattern keeps, whatever its own order: fp32."""
    layout, start = grid.layout, grid.layout.video_start
    cells = cells_of(layout, grid.side)[orders.AXES.index(shown)]
    tiles = tiles_of(layout, pattern.order, torch.arange(start, layout.video_end), grid.block)
    kept = pattern.blocks(layout, grid.block).float()
    tokens = torch.zeros(grid.side, len(kept)).index_put_((cells, tiles), torch.ones(len(cells)), accumulate=True)
    share = tokens / tokens.sum(1, keepdim=True)
    return share @ kept @ share.T


def finish(run: Generations, goal: dict[str, float], cost: str | CostModel) -> Calibration:
    """The profile of all prompts' sums.

    Raises:
        ValueError: an expert that ran at none of the measured steps, or a density that no choice reaches.
    """
    settings = run.settings
    done = [run.done(prompt) for prompt in range(len(settings.prompts))]
    grid = Grid.from_dict(done[0][1]["grid"])
    own = run.own(grid) if settings.library.learned else {}
    measuring = [tensors for tensors, _ in done[settings.mapping :]]
    found = Measured.of(grid, grid.bands(settings.bands), run.ladder(grid).patterns, own, measuring, tuple(run.modules))
    per_head, described = _cost(run, grid, cost)
    # As its file will have them, rounded: what is chosen here is what is chosen from there.
    table = HeadTable.of(table_of(found, per_head, run.first_layers()).to_dict(), "the calibration")
    how = _described(run, grid) | {"cost": described, "projected": all(each["projected"] for _, each in done)}
    models = {name: facts(module) for name, module in run.modules.items()}
    profile = Profile("head_profile", dict(goal), heads=table, calibration=how, model=architecture.describe(models),
                      source="vidaccel.calibrate")  # fmt: skip
    seconds = sum(each["seconds"] for _, each in done)
    return Calibration(profile, grid, table.choose(**goal), run.maps(), seconds)


def _described(run: Generations, grid: Grid) -> dict[str, Any]:
    """How the heads were measured, for the profile; nothing in it depends on when or how often it was resumed."""
    return {
        **run.settings.described(), "steps": grid.steps, "grid": str(grid.layout), "pipeline": type(run.pipe).__name__,
        "versions": {"vidaccel": __version__, "torch": torch.__version__,
                     "diffusers": importlib.metadata.version("diffusers")},
    }  # fmt: skip


def _cost(run: Generations, grid: Grid, cost: str | CostModel) -> tuple[Cost, dict[str, Any]]:
    """What a head's pattern costs over a dense head, and how that is told."""
    if cost == "density":
        return lambda pattern: density_of(pattern, grid.layout, grid.block), {"source": "video density"}
    if cost == "measured":
        model = CostModel.of(run.work.note("cost", lambda: _timed(run, grid).to_dict()))
    else:
        model = CostModel.counted() if isinstance(cost, str) else cost
    tokens = grid.layout.tokens
    # Over a dense head of the same sparse call: a budget is then a density, but for what short ranges add.
    whole = model.cost(BlockMask.full(tokens, tokens, grid.block, grid.block), grid.layout)
    return lambda pattern: model.cost(plan_of([pattern], grid.layout, grid.block), grid.layout) / whole, model.to_dict()


def _timed(run: Generations, grid: Grid) -> CostModel:
    name, module = next(iter(run.modules.items()))
    heads, head_dim = run.families[name].heads(module)
    parameter = next(module.parameters())
    device = getattr(run.pipe, "_execution_device", parameter.device)
    tokens = max(LEAST_BLOCKS * grid.block, min(TIMED_TOKENS, grid.layout.tokens))
    dtype = run.families[name].probe(module, device).dtype
    return CostModel.measured(device, dtype, heads, head_dim, grid.block, tokens)
