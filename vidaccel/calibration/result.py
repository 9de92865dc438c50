"""From all prompts' measurements to the profile."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vidaccel import architecture
from vidaccel._version import __version__
from vidaccel.api import facts
from vidaccel.calibration.further import Further
from vidaccel.calibration.generation import Generations
from vidaccel.calibration.grid import Grid
from vidaccel.calibration.library import tiles_of
from vidaccel.calibration.made import Place
from vidaccel.calibration.measure import cells_of
from vidaccel.calibration.table import Cost, Measured, table_of
from vidaccel.costs import CostModel
from vidaccel.heads import HeadOption, HeadsAt, HeadTable, Picks
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
        picks: the option of every head, at the first size.
        further: what is predicted at each further size.
        maps: see `made.means`.
        seconds: of the generations.
    """

    profile: Profile
    grid: Grid
    picks: Picks
    further: tuple[dict[str, float], ...]
    maps: dict[str, Tensor]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What was found, JSON-ready: predicted means, and how many heads have each kind of pattern."""
        table = self.profile.heads
        assert table is not None
        heads = [option for bands in self.picks.values() for band in bands for layer in band for option in layer]
        others = zip(self.profile.heads_at, self.further, strict=True)
        kinds = Counter(table.patterns[option.pattern].name for option in heads)
        return {
            "goal": self.profile.options, "predicted": table.predicted(self.picks), "kinds": dict(kinds.most_common()),
            "patterns": len({option.pattern for option in heads}), "grid": str(self.grid.layout),
            "further": [{"grid": str(each.layout), "predicted": found} for each, found in others],
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


def finish(runs: Sequence[Generations], goal: dict[str, float], cost: str | CostModel) -> Calibration:
    """The profile of all prompts' sums at all sizes, the first one first.

    Raises:
        ValueError: an expert that ran at none of the measured steps, or a density that no choice reaches.
    """
    first, *others = runs
    priced = _Costs(first, cost)
    table, picks = _chosen(first, priced, goal)
    further = [(each.grid.layout, *_chosen(each, priced, goal)) for each in others]
    done = [each.done(prompt) for each in runs for prompt in each.prompts]
    projected = all(each["projected"] for _, each in done)
    how = _described(first, others) | {"cost": priced.described(), "projected": projected}
    models = {name: facts(module) for name, module in first.modules.items()}
    profile = Profile(
        "head_profile", dict(goal), heads=table, calibration=how, model=architecture.describe(models),
        source="vidaccel.calibrate", heads_at=tuple(HeadsAt(layout, heads) for layout, heads, _ in further),
    )  # fmt: skip
    predicted = tuple(heads.predicted(chosen) for _, heads, chosen in further)
    return Calibration(profile, first.grid, picks, predicted, first.maps(), sum(each["seconds"] for _, each in done))


def _chosen(run: Generations, priced: _Costs, goal: dict[str, float]) -> tuple[HeadTable, Picks]:
    """The heads' options at one size, and the goal's choice among them."""
    settings, grid = run.settings, run.grid
    own = run.own(grid) if settings.library.learned else {}
    measuring = [tensors for tensors, _ in run.measured]
    found = Measured.of(grid, grid.bands(settings.bands), run.ladder(grid).patterns, own, measuring, tuple(run.modules))
    # As its file will have them, rounded: what is chosen here is what is chosen from there.
    table = HeadTable.of(table_of(found, priced.on(grid), run.first_layers()).to_dict(), "the calibration")
    try:
        return table, table.choose(**goal)
    except ValueError as error:
        raise ValueError(f"on {grid.layout}: {error}") from error


def _described(run: Generations, others: Sequence[Generations]) -> dict[str, Any]:
    """How the heads were measured, for the profile; nothing in it depends on when or how often it was resumed."""
    also = [{"grid": str(each.grid.layout), **each.size} for each in others if isinstance(each, Further)]
    return {
        **run.settings.described(), "steps": run.grid.steps, "grid": str(run.grid.layout),
        **({"also": also} if also else {}), "pipeline": type(run.pipe).__name__,
        "versions": {"vidaccel": __version__, "torch": torch.__version__,
                     "diffusers": importlib.metadata.version("diffusers")},
    }  # fmt: skip


class _Costs:
    """What a head's pattern costs over a dense head, at any size of a calibration.

    Args:
        run: the first size's.
        cost: see `calibrate`.
    """

    def __init__(self, run: Generations, cost: str | CostModel) -> None:
        self.run, self.cost = run, cost

    def on(self, grid: Grid) -> Cost:
        """On a grid."""
        if self.cost == "density":
            return lambda pattern: density_of(pattern, grid.layout, grid.block)
        model, tokens = self._model(grid), grid.layout.tokens
        # Over a dense head of the same sparse call: a budget is then a density, but for what short ranges add.
        whole = model.cost(BlockMask.full(tokens, tokens, grid.block, grid.block), grid.layout)
        return lambda pattern: model.cost(plan_of([pattern], grid.layout, grid.block), grid.layout) / whole

    def described(self) -> dict[str, Any]:
        """How that is told: at the first size, where it was timed."""
        return {"source": "video density"} if self.cost == "density" else self._model(self.run.grid).to_dict()

    def _model(self, grid: Grid) -> CostModel:
        if self.cost != "measured":
            return CostModel.counted() if isinstance(self.cost, str) else self.cost
        # What a range costs depends on the tile, hardly on the size: one timing serves all sizes of one tile.
        name = "cost" if grid.block == self.run.grid.block else f"cost of tiles of {grid.block}"
        return CostModel.of(self.run.work.note(name, lambda: _timed(self.run, grid).to_dict()))


def _timed(run: Generations, grid: Grid) -> CostModel:
    name, module = next(iter(run.modules.items()))
    heads, head_dim = run.families[name].heads(module)
    parameter = next(module.parameters())
    device = getattr(run.pipe, "_execution_device", parameter.device)
    tokens = max(LEAST_BLOCKS * grid.block, min(TIMED_TOKENS, grid.layout.tokens))
    dtype = run.families[name].probe(module, device).dtype
    return CostModel.measured(device, dtype, heads, head_dim, grid.block, tokens)
