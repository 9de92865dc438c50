"""VMoBA without its training: keys in chunks of time, of space and of both, layer by layer (arXiv 2506.23858).

Implemented from the paper. It chooses chunks for single queries; here they are chosen for tiles of queries.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.methods.dynamic import Dynamic
from vidaccel.methods.presets import Preset
from vidaccel.patterns import cover, orders
from vidaccel.plan import AttentionPlan
from vidaccel.planning import pool, select, shapes
from vidaccel.planning.order import cluster_mask
from vidaccel.site import Site

KEPT = 64
Box = tuple[int, int, int]
PRESETS = {
    "wan2.1-1.3b-448p": Preset(
        {"top_p": 0.25, "temporal": 2, "spatial": (4, 13), "both": (4, 4, 13)}, dense_steps=12,
    ),
}  # fmt: skip
"""The settings that FastVideo ships for Wan 2.1 1.3B at 77x448x832; its threshold is for single queries."""


@dataclass(frozen=True)
class Vmoba(Dynamic):
    """Chunks of keys by how alike their mean and the mean of a tile of queries are, the best of all tiles of a head.

    Layers take turns: the first cuts the video in time, the second in rows and columns, the third in all three.

    Args:
        density: video density of each head, see `Dynamic`.
        top_p: instead, the share of the likeness of all tiles and chunks of a head that is kept, in (0, 1].
        block, refresh, drift: see `Dynamic`; `block` is of queries.
        temporal: frames of a chunk in time.
        spatial: rows and columns of a chunk in space; by default the least of at least `block` tokens whose sides are
            powers of two.
        both: frames, rows and columns of a chunk in both; by default the most compact of at most `block` tokens.
        preset: one of `PRESETS`, the published settings for a model and their dense steps.

    Raises:
        ValueError: a value out of range, or options beside a preset that has its own.
    """

    presets = PRESETS
    name: ClassVar[str] = "vmoba"
    paper: ClassVar[str] = "VMoBA, arXiv 2506.23858"
    alternatives: ClassVar[tuple[str, ...]] = ("density", "top_p", "preset")

    temporal: int = 1
    spatial: tuple[int, int] | None = None
    both: tuple[int, int, int] | None = None
    preset: str | None = None

    def __post_init__(self) -> None:
        for name, sides in (("spatial", 2), ("both", 3)):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else _sizes(name, value, sides))
        _sizes("temporal", [self.temporal], 1)
        super().__post_init__()

    def box(self, layer: int, layout: TokenLayout) -> Box:
        """Frames, rows and columns of the chunks of a layer."""
        if layer % 3 == 0:
            return self.temporal, layout.height, layout.width
        if layer % 3 == 1:
            return layout.frames, *(self.spatial or _columns(layout, self.block))
        return self.both or orders.compact_tile(layout, self.block)

    def choose(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> AttentionPlan:
        layout = site.layout
        box = self.box(site.layer, layout)
        chunks = chunks_of(layout, box, self.block, query.device)
        scores = likeness(pool.block_mean(query, self.block, order=chunks.order), box_means(key, layout, box), chunks)
        kept = self.kept(scores, chunks, self.density_at(site))
        lanes, tokens = len(scores), layout.tokens
        mask = cluster_mask(
            chunks.tile_starts.expand(lanes, -1), chunks.starts.expand(lanes, -1), kept,
            queries=tokens, keys=tokens, query_block=self.block, key_block=self.block,
        )  # fmt: skip
        return AttentionPlan(mask, chunks.order, chunks.order)

    def kept(self, scores: Tensor, chunks: Chunks, density: float | None) -> Tensor:
        """The best pairs of a tile and a chunk over all tiles of a head: bool of the scores' shape."""
        keep = chunks.keep.expand(scores.shape)
        if density is not None:
            return select.budgeted(scores, density, weights=chunks.weights[None], groups=len(scores), keep=keep)
        assert self.top_p is not None
        flat = select.top_p(scores.flatten(1)[:, None], self.top_p, keep=keep.flatten(1)[:, None])
        return flat.view(scores.shape)


@dataclass(frozen=True, eq=False)
class Chunks:
    """What a token grid decides of boxes of keys and tiles of queries, on a device.

    Args:
        order: int32 ``[1, tokens]``: video box by box, then text.
        tile_starts: int32 ``[1, tiles + 1]``, where tiles of queries start in it.
        starts: int32 ``[1, chunks + 1]``, where boxes start, and as the last chunk the text, if there is any.
        video: bool ``[tiles, chunks]``, pairs without text: only these are chosen among.
        keep: bool ``[tiles, chunks]``, what is always kept: chunks that a tile has tokens of, and all pairs with text.
        weights: int32 ``[tiles, chunks]``, video-video pairs.
    """

    order: Tensor
    tile_starts: Tensor
    starts: Tensor
    video: Tensor
    keep: Tensor
    weights: Tensor


@functools.lru_cache(KEPT)
def chunks_of(layout: TokenLayout, box: Box, block: int, device: torch.device) -> Chunks:
    """The chunks of a grid; made once, as copying them to a GPU in each call would wait for it."""
    name = "tile:" + "x".join(map(str, box))
    placed, order = orders.placed(layout, name), orders.sequence(layout, name)
    assert order is not None
    sizes = box_sizes(layout, box)
    text = layout.tokens - layout.video_tokens
    sizes = torch.cat([sizes, sizes.new_tensor([text] if text else [])])
    starts = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    first = torch.arange(0, layout.tokens, block)
    last = (first + block).clamp(max=layout.tokens)
    video = torch.ones(len(first), len(sizes), dtype=torch.bool)
    video[cover.text_blocks(placed, block)] = False
    video[:, starts[1:] > layout.video_tokens] = False
    own = (first[:, None] < starts[1:]) & (last[:, None] > starts[:-1])
    tokens = cover.video_in_tiles(placed, block).long()
    weights = (tokens[:, None] * sizes * (starts[1:] <= layout.video_tokens)).int()
    tile_starts = torch.nn.functional.pad(last, (1, 0))
    parts = (order[None], tile_starts[None].int(), starts[None].int(), video, own | ~video, weights)
    return Chunks(*(each.to(device) for each in parts))


def box_sizes(layout: TokenLayout, box: Box) -> Tensor:
    """Tokens of each box in raster order, those at the far ends being what is left of the grid: int64 ``[boxes]``."""
    sides = []
    for length, size in zip((layout.frames, layout.height, layout.width), box, strict=True):
        first = torch.arange(0, length, size)
        sides.append((first + size).clamp(max=length) - first)
    return (sides[0][:, None, None] * sides[1][:, None] * sides[2]).flatten()


def box_means(states: Tensor, layout: TokenLayout, box: Box) -> Tensor:
    """Means of the video's boxes: fp32 ``[batch * heads, boxes, head_dim]``; a head at a time, in the natural order."""
    video, sizes = states[:, layout.video_start : layout.video_end], (layout.frames, layout.height, layout.width)
    means = []
    for lane in range(len(states) * states.shape[2]):
        sums = shapes.states_of_lane(video, lane).unflatten(0, sizes)
        counts = sums.new_ones(*sizes, 1)
        for axis, side in enumerate(box):
            sums, counts = _summed(sums, axis, side), _summed(counts, axis, side)
        means.append((sums / counts).flatten(0, 2))
    return torch.stack(means)


def _summed(grid: Tensor, axis: int, side: int) -> Tensor:
    """Every `side` along an axis added up; the last ones are what is left."""
    padding = [0] * (2 * (grid.ndim - axis - 1)) + [0, -grid.shape[axis] % side]
    padded: Tensor = torch.nn.functional.pad(grid, padding)
    sums: Tensor = padded.unflatten(axis, (-1, side)).sum(axis + 1)
    return sums


def likeness(queries: Tensor, keys: Tensor, chunks: Chunks) -> Tensor:
    """Products of means, from 0 for the least of a head to 1 for the greatest; 0 where there is text.

    Args:
        queries: means of tiles ``[batch, tiles, heads, head_dim]``.
        keys: means of boxes ``[batch * heads, boxes, head_dim]``.

    Returns:
        fp32 ``[batch * heads, tiles, chunks]``.
    """
    products = queries.transpose(1, 2).flatten(0, 1) @ keys.transpose(1, 2)
    products = torch.nn.functional.pad(products, (0, chunks.video.shape[1] - keys.shape[1]))
    low = products.masked_fill(~chunks.video, float("inf")).amin((1, 2), keepdim=True)
    high = products.masked_fill(~chunks.video, float("-inf")).amax((1, 2), keepdim=True)
    alike: Tensor = ((products - low) / (high - low).clamp(min=1e-30)).masked_fill(~chunks.video, 0.0)
    return alike


def _columns(layout: TokenLayout, block: int) -> tuple[int, int]:
    """Rows and columns of a chunk of all frames with at least `block` tokens, if the grid has as many."""
    rows, columns = 1, 1
    while layout.frames * rows * columns < block and (rows < layout.height or columns < layout.width):
        if columns < layout.width and (columns <= rows or rows >= layout.height):
            columns *= 2
        else:
            rows *= 2
    return min(rows, layout.height), min(columns, layout.width)


def _sizes(name: str, value: Any, sides: int) -> tuple[int, ...]:
    """The sides of a chunk as a tuple.

    Raises:
        ValueError: not so many whole numbers of at least 1.
    """
    known = isinstance(value, (list, tuple)) and len(value) == sides
    if not known or not all(isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in value):
        raise ValueError(f"{name} is {sides} whole numbers of tokens of at least 1, got {value!r}")
    return tuple(value)
