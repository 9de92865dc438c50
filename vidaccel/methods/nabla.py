"""NABLA: pooled attention by share of its mass, united with a window of tiles (arXiv 2507.13546).

Implemented from the paper and from the behaviour of diffusers' Kandinsky 5.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.methods.blocks import Blocks, Tiles, patch, patch_order, pooled
from vidaccel.methods.neighborhood import sizes
from vidaccel.methods.presets import Preset
from vidaccel.patterns import at_density, density_of
from vidaccel.patterns.neighborhood import Neighborhood
from vidaccel.plan import AttentionPlan
from vidaccel.planning import select
from vidaccel.site import Dealt, Site

WINDOW = "11x3x3"
"""Of Kandinsky 5, in tiles: the default beside `top_p`."""
LOCAL = 0.25
"""Share of a density that the default window takes."""
NO_WINDOW = "none"
KEPT = 64

PRESETS: Mapping[str, Preset] = {
    "kandinsky5": Preset({"top_p": 0.9, "window": WINDOW, "block": 64}),
    "kandinsky6-sr": Preset({"top_p": 0.8, "window": "11x7x7", "block": 64}),
}


@dataclass(frozen=True)
class Nabla(Blocks):
    """Attention of averaged in-frame patches says which blocks hold its mass; a window of patches is always kept.

    With `top_p` each row keeps the fewest blocks that hold this share, and its window. With a density the window counts
    towards it and comes first. Each tile keeps its own block, and text is kept whole.

    Args:
        block: tile size in tokens, a patch of a frame: of 64, 8 x 8.
        window: tiles of "FRAMESxROWSxCOLUMNS" around each, moved inside the clip at its edges; "none" has no window. By
            default 11x3x3 with `top_p`; with a density that of the clip's own proportions which takes about a quarter.
        preset: "kandinsky5" or "kandinsky6-sr": published `top_p`, window and block.
    """

    presets = PRESETS
    name: ClassVar[str] = "nabla"
    paper: ClassVar[str] = "NABLA, arXiv 2507.13546"
    alternatives: ClassVar[tuple[str, ...]] = ("density", "top_p", "preset")

    block: int = 64
    window: str | None = None
    preset: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and self.window != NO_WINDOW:
            sizes("window", self.window)

    def order_of(self, layout: TokenLayout) -> str:
        return patch_order(self.block)

    def scores(
        self, query: Tensor, key: Tensor, value: Tensor, tiles: Tiles, site: Site, state: dict[str, Any]
    ) -> Tensor:  # fmt: skip
        return pooled(query, key, tiles, self.block)

    def always(self, query: Tensor, key: Tensor, tiles: Tiles, site: Site) -> Tensor:
        return tiles.keep | self._window(site).blocks_on(query.device)

    def pick(
        self, scores: Tensor, keep: Tensor, tiles: Tiles, batch: int, density: float | None, heads: Dealt | None = None
    ) -> Tensor:
        if density is not None:
            return super().pick(scores, keep, tiles, batch, density, heads)
        assert self.top_p is not None
        # A union: what the window holds does not count towards the share.
        return select.top_p(scores, self.top_p).logical_or_(keep)

    def choose(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> AttentionPlan:
        return self.with_notes(super().choose(query, key, value, site, state), *self._window(site).notes)

    def _window(self, site: Site) -> Window:
        return window_of(self.window, _least(self.density), site.layout, self.block)


@dataclass(frozen=True, eq=False)
class Window:
    """What is kept around each tile: blocks ``[tiles, tiles]`` of the order of patches, and what to tell the user."""

    blocks: Tensor
    notes: tuple[str, ...] = ()
    _copies: dict[torch.device, Tensor] = field(default_factory=dict)

    def blocks_on(self, device: torch.device) -> Tensor:
        """The blocks on a device, copied to it once."""
        if device not in self._copies:
            self._copies[device] = self.blocks.to(device)
        return self._copies[device]


@functools.lru_cache(KEPT)
def window_of(window: str | None, density: float | None, layout: TokenLayout, block: int) -> Window:
    """The window of a grid, made once.

    Args:
        window: as the option.
        density: what it counts towards; None where `top_p` is the budget.
    """
    if window is None and density is not None:
        found = _fitting(density, layout, block)
    else:
        found = _sized(window or WINDOW, layout, block)
    if found is None:
        return Window(torch.zeros((), dtype=torch.bool))
    share = density_of(found, layout, block)
    if density is None or share <= density:
        return Window(found.blocks(layout, block))
    note = f"the window {window} alone has video density {share:.3f}, the density asked for is {density:g}"
    return Window(found.blocks(layout, block), (note,))


def _fitting(density: float, layout: TokenLayout, block: int) -> Neighborhood | None:
    """The window that takes nearest to `LOCAL` of the density; None where the smallest one takes it all."""
    found, reached = at_density(lambda share: Neighborhood(share, share, share, patch(block)), layout, block,
                                LOCAL * density)  # fmt: skip
    assert isinstance(found, Neighborhood)
    return None if reached > density else found


def _sized(window: str, layout: TokenLayout, block: int) -> Neighborhood | None:
    """The window of so many tiles, cut to the clip."""
    if window == NO_WINDOW:
        return None
    whole = Neighborhood(1, 1, 1, patch(block)).tiles(layout)
    frames, rows, columns = (min(1.0, k / n) for k, n in zip(sizes("window", window), whole, strict=True))
    return Neighborhood(frames, rows, columns, patch(block))


def _least(density: float | Sequence[Sequence[float]] | None) -> float | None:
    """The density, or the least of a curve: one window serves a run."""
    return density if density is None or isinstance(density, (int, float)) else min(each for _, each in density)
