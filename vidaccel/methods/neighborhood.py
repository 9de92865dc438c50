"""Neighbourhood attention with a window of its own shape for each head, chosen online from sampled queries.

Windows are those of generalised neighbourhood attention (GNA, arXiv 2504.16922) and, in tiles, of Sliding Tile
Attention (STA, arXiv 2502.04507), which chooses among a few shapes for each head in a search over many prompts
beforehand; its shapes and dense steps are the presets. Here each head's choice is measured while the clip is made.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.methods.base import Method
from vidaccel.methods.candidates import KEPT_CHOICE, Sample, candidates, picked_by_head
from vidaccel.methods.checks import check_block, check_count, check_density, note_of_density
from vidaccel.patterns import Pattern, at_density, orders
from vidaccel.patterns.neighborhood import TOKEN, Neighborhood, Sizes
from vidaccel.plan import AttentionPlan
from vidaccel.schedule import Schedule
from vidaccel.site import Site

BLOCK = 128
ROWS = 64
DENSITY = 0.25
LENGTHS = 5
"""Candidate windows between the longest in time and the widest in space."""
UNDER, OVER = 0.9, 1.05
"""Densities over the one asked for that are near enough to be compared with it; denser windows would win by density."""
KEPT = 64
SIZES = re.compile(r"([1-9]\d{0,8})x([1-9]\d{0,8})x([1-9]\d{0,8})")


@dataclass(frozen=True)
class Preset:
    """STA's published settings for one model.

    Args:
        windows: candidates, in tiles.
        whole: tiles of the grid that they were made for.
        dense_steps: share of the steps, at the start.
    """

    windows: tuple[Sizes, ...]
    whole: Sizes
    dense_steps: float
    tile: Sizes = (6, 8, 8)


PRESETS = {
    "sta-wan": Preset(
        ((3, 1, 10), (1, 5, 7), (3, 3, 3), (1, 6, 5), (1, 3, 10), (3, 6, 1)), (3, 6, 10), dense_steps=12 / 50
    ),
    "sta-hunyuanvideo": Preset(
        ((5, 3, 3), (1, 6, 10), (3, 3, 5), (5, 1, 10), (5, 6, 1)), (5, 6, 10), dense_steps=15 / 50
    ),
}
STA = "sta"
"""The preset of the model's own family."""


@dataclass(frozen=True)
class NeighborhoodAttention(Method):
    """Each query attends to a window around it in time, height and width; each head has the shape that suits it.

    All candidate windows keep about equally many keys: some are long in time, some wide in space. At a head's first
    sparse step each is measured against dense attention on a few queries. Text is kept whole.

    Args:
        density: video density of all candidates, in (0, 1]; 0.25 if nothing else is given.
        window: one window for all heads instead, in tokens: "FRAMESxROWSxCOLUMNS".
        tile: tokens that share a window, likewise; "1x1x1" gives each query its own, in natural order. By default
            candidates are both of these and of tiles of one block, see `orders.compact_tile`; a `window` is in natural
            order.
        block: tile size in tokens of queries and keys.
        rows: queries that heads' windows are measured on.
        refresh: steps that a head's choice is kept for; None is the whole run, with a preset one step.
        preset: "sta-wan" or "sta-hunyuanvideo", or "sta" for the one of the model's family: the published tile, windows
            and dense steps.

    Raises:
        ValueError: a value out of range, or options that exclude each other.
    """

    name: ClassVar[str] = "neighborhood"
    paper: ClassVar[str] = "GNA, arXiv 2504.16922; STA, arXiv 2502.04507"
    alternatives: ClassVar[tuple[str, ...]] = ("density", "window", "preset")

    density: float | None = None
    window: str | None = None
    tile: str | None = None
    block: int = BLOCK
    rows: int = ROWS
    refresh: int | None = None
    preset: str | None = None

    def __post_init__(self) -> None:
        check_density(self.density)
        check_block(self.block)
        check_count("rows", self.rows)
        check_count("refresh", self.refresh)
        for name in ("window", "tile"):
            if getattr(self, name) is not None:
                sizes(name, getattr(self, name))
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r} of neighborhood; choose {', '.join(PRESETS)}")
        given = [name for name in self.alternatives if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"neighborhood takes one of {', '.join(self.alternatives)}, not {' and '.join(given)}")
        if self.preset is not None and self.tile is not None:
            raise ValueError(f"preset {self.preset!r} has its own tile, not {self.tile}")

    @classmethod
    def for_family(cls, family: str, **options: Any) -> Method:
        if options.get("preset") == STA:
            options["preset"] = f"{STA}-{family}"
        return super().for_family(family, **options)

    def schedule(self) -> Schedule | None:
        return None if self.preset is None else Schedule(PRESETS[self.preset].dense_steps, 0, 0)

    def plan(
        self, query: Tensor | None, key: Tensor | None, value: Tensor | None, site: Site, state: dict[str, Any]
    ) -> AttentionPlan:
        assert query is not None and key is not None and value is not None
        windows, notes = windows_of(self, site.layout)
        run = candidates(windows, site.layout, self.block, query.device)
        refresh = 1 if self.preset is not None and self.refresh is None else self.refresh
        index = Sample(self.rows, refresh=refresh).chosen(run.plans, query, key, value, site, state)
        return run.picked(index, notes)

    def heads_have(self, site: Site, state: dict[str, Any]) -> tuple[Mapping[str, Any], ...] | None:
        return picked_by_head(windows_of(self, site.layout)[0], state)

    def reused(self, state: dict[str, Any]) -> bool:
        return bool(state.get(KEPT_CHOICE, True))


def sizes(name: str, given: str) -> Sizes:
    """Frames, rows and columns from text such as "5x9x13".

    Raises:
        ValueError: anything else.
    """
    match = SIZES.fullmatch(given) if isinstance(given, str) else None
    if match is None:
        raise ValueError(f"{name} {given!r} is not FRAMESxROWSxCOLUMNS in tokens, such as '5x9x13'")
    frames, rows, columns = map(int, match.groups())
    return frames, rows, columns


@functools.lru_cache(KEPT)
def windows_of(method: NeighborhoodAttention, layout: TokenLayout) -> tuple[tuple[Pattern, ...], tuple[str, ...]]:
    """The candidate windows of a method on a grid, all different, and what to tell the user of them; solved once."""
    if method.preset is not None:
        return _published(PRESETS[method.preset], layout), ()
    compact = orders.compact_tile(layout, method.block)
    tiles = [TOKEN, compact] if method.tile is None else [sizes("tile", method.tile)]
    if method.window is not None:
        grid = (layout.frames, layout.height, layout.width)
        return (_window(sizes("window", method.window), grid, tiles[0]),), ()
    density = DENSITY if method.density is None else method.density
    found = _equal(density, tiles, layout, method.block)
    nearest = min(found.values(), key=lambda reached: abs(reached - density))
    return tuple(found), note_of_density("neighborhood", density, nearest, layout)


def _published(preset: Preset, layout: TokenLayout) -> tuple[Pattern, ...]:
    windows = [_window(each, preset.whole, preset.tile) for each in preset.windows]
    # On a small grid different fractions round to one window.
    return tuple({each.window(layout): each for each in windows}.values())


def _window(size: Sizes, whole: Sizes, tile: Sizes) -> Neighborhood:
    """A window given as so much of a whole, cut to it."""
    frames, rows, columns = (min(1.0, k / n) for k, n in zip(size, whole, strict=True))
    return Neighborhood(frames, rows, columns, tile)


def _equal(density: float, tiles: Sequence[Sizes], layout: TokenLayout, block: int) -> dict[Pattern, float]:
    """Windows of nearly one density and different shapes, with their densities."""
    makes = [make for tile in tiles for make in _shapes(density, tile, layout)]
    found: dict[Pattern, float] = dict(at_density(make, layout, block, density) for make in makes)
    near = {each: reached for each, reached in found.items() if UNDER <= reached / density <= OVER}
    return near or dict([min(found.items(), key=lambda item: abs(item[1] - density))])


def _shapes(density: float, tile: Sizes, layout: TokenLayout) -> list[Callable[[float], Pattern]]:
    """Some lengths in time, each with three shapes in the frame: of any size, see `_shaped`."""
    whole = Neighborhood(1, 1, 1, tile).tiles(layout)
    shortest = min(whole[0], max(1, int(density * whole[0])))
    lengths = {round(shortest * (whole[0] / shortest) ** (step / (LENGTHS - 1))) for step in range(LENGTHS)}
    return [functools.partial(_shaped, whole, tile, frames, flat) for frames in sorted(lengths) for flat in range(3)]


def _shaped(whole: Sizes, tile: Sizes, frames: int, flat: int, share: float) -> Pattern:
    """A window of some frames and a share of both axes of a frame, of its rows alone, or of its columns alone."""
    shares = (1.0 if flat == 2 else share, 1.0 if flat == 1 else share)
    # In whole tiles, so that what differs in nothing is the same pattern and is made once.
    rows, columns = (max(1, int(part * n + 0.5)) / n for part, n in zip(shares, whole[1:], strict=True))
    return Neighborhood(frames / whole[0], rows, columns, tile)
