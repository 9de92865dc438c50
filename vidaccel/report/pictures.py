"""Pictures of plans, as PNG bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vidaccel.layout import TokenLayout
from vidaccel.plan import BlockMask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

MAX_CELLS = 512
"""Cells along one side of a block map; more blocks than that share cells."""
_INK, _PAPER, _LINE, _COLOURS = "#1c2733", "#ffffff", "#9aa5b1", ("#f1f4f7", "#1d4f7c")


def block_map(mask: BlockMask, pattern: int = 0, max_cells: int = MAX_CELLS) -> tuple[NDArray[np.float64], int, int]:
    """The share of each cell that one pattern of `mask` computes.

    A cell is a whole number of query tiles by a whole number of key blocks. Time and memory grow with the ranges and
    cells, not with tokens squared.

    Returns:
        ``[rows, columns]`` in [0, 1], the query tokens of a row, and the key tokens of a column.

    Raises:
        ValueError: `mask` has no such pattern.
    """
    if not 0 <= pattern < mask.patterns:
        raise ValueError(f"pattern {pattern} is not one of the mask's {mask.patterns}, counted from 0")
    tiles_per_row = _ceil_div(mask.tiles, max_cells)
    width = _ceil_div(_ceil_div(mask.keys, mask.key_block), max_cells) * mask.key_block
    rows, columns = _ceil_div(mask.tiles, tiles_per_row), _ceil_div(mask.keys, width)

    offsets = mask.offsets[pattern].cpu().numpy().astype(np.int64)
    start, end = mask.ranges[offsets[0] : offsets[-1]].cpu().numpy().astype(np.int64).T
    tile = np.repeat(np.arange(mask.tiles), np.diff(offsets))
    queries = np.minimum((tile + 1) * mask.query_block, mask.queries) - tile * mask.query_block

    # Keys attended in a cell, as differences along the row: a range that starts `d` tokens into a cell adds width - d
    # there and d more from the next cell on, and its end takes the same away again.
    change = np.zeros(rows * (columns + 2))
    for position, sign in ((start, 1), (end, -1)):
        cell, depth = np.divmod(position, width)
        place = tile // tiles_per_row * (columns + 2) + cell
        change += np.bincount(place, sign * queries * (width - depth), change.size)
        change += np.bincount(place + 1, sign * queries * depth, change.size)
    pairs = change.reshape(rows, columns + 2).cumsum(axis=1)[:, :columns]

    height = tiles_per_row * mask.query_block
    row_tokens = np.minimum(height, mask.queries - np.arange(rows) * height)
    column_tokens = np.minimum(width, mask.keys - np.arange(columns) * width)
    return (pairs / np.outer(row_tokens, column_tokens)).clip(0, 1), height, width


def mask_picture(mask: BlockMask, layout: TokenLayout, size: int = 900, pattern: int = 0) -> bytes:
    """Draw one pattern of `mask` as a block map: queries down, keys across, a line at each latent frame.

    Args:
        mask: a self-attention mask over `layout`.
        layout: names the frames and the text on the axes.
        size: width of the picture in pixels.
        pattern: which row of ``mask.offsets`` to draw.

    Returns:
        A PNG file with its own background, readable on a light and on a dark page.

    Raises:
        ValueError: `mask` is not over `layout`'s tokens, has no such pattern, or `size` is below 200 pixels.
    """
    if (mask.queries, mask.keys) != (layout.tokens, layout.tokens):
        raise ValueError(f"a mask of {mask.queries} queries and {mask.keys} keys does not belong to the grid {layout} "
                         f"of {layout.tokens} tokens")
    if size < 200:
        raise ValueError(f"a picture of {size} pixels is too small to read; 200 is the least")
    cells, height, width = block_map(mask, pattern, min(MAX_CELLS, size // 2))

    # Matplotlib takes half a second to import, and its object API leaves no global state behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 4.3), dpi=size / 5.0, facecolor=_PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(cells, cmap=LinearSegmentedColormap.from_list("density", _COLOURS), vmin=0, vmax=1,
                        interpolation="nearest", extent=(0, cells.shape[1] * width, cells.shape[0] * height, 0))
    axes.set(xlim=(0, mask.keys), ylim=(mask.queries, 0))
    _mark_frames(axes, layout)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, ticks=[0, 0.5, 1], label="share computed")
    bar.ax.tick_params(length=0, colors=_INK, labelsize=9)
    bar.outline.set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _mark_frames(axes: Axes, layout: TokenLayout) -> None:
    """Lines where frames and text begin, and their names on both axes."""
    edges = [layout.video_start + frame * layout.frame_tokens for frame in range(layout.frames + 1)]
    for edge in edges:
        if 0 < edge < layout.tokens:
            axes.axvline(edge, color=_LINE, linewidth=0.4, alpha=0.8)
            axes.axhline(edge, color=_LINE, linewidth=0.4, alpha=0.8)
    _name_frames(axes.xaxis, layout, "keys, by latent frame")
    _name_frames(axes.yaxis, layout, "queries, by latent frame")
    axes.tick_params(length=0, colors=_INK, labelsize=9)
    axes.spines[:].set_color(_LINE)


def _name_frames(axis: Axis, layout: TokenLayout, label: str) -> None:
    stride = _ceil_div(layout.frames, 11)
    frames = range(0, layout.frames, stride)
    ticks = [(layout.video_start + (frame + 0.5) * layout.frame_tokens, str(frame)) for frame in frames]
    if layout.text_before:
        ticks.insert(0, (layout.text_before / 2, "text"))
    if layout.text_after:
        ticks.append((layout.video_end + layout.text_after / 2, "text"))
    axis.set_ticks([place for place, _ in ticks], [name for _, name in ticks])
    axis.set_label_text(label, color=_INK)


def _ceil_div(count: int, size: int) -> int:
    return -(-count // size)
