"""Pictures of block maps: which blocks of queries by keys a pattern or a plan computes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vidaccel.plan import AttentionPlan

COLUMNS = 5
SMOOTHED = 256
"""Blocks a side from which a map is drawn smoothed, so that thin lines do not vanish between pixels."""
LISTED = 6
"""Heads that a title names one by one."""


def patterns_picture(maps: Sequence[tuple[str, Any]], title: str = "", columns: int = COLUMNS) -> bytes:
    """Named block maps as a PNG, side by side; what is computed is dark.

    Args:
        maps: name and bool ``[query blocks, key blocks]``, an array or a tensor.
        columns: maps in a row, at most.

    Raises:
        ValueError: no map.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not maps:
        raise ValueError("there is no block map to draw")
    columns = min(columns, len(maps))
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(2.1 * columns + 0.3, 2.3 * rows + 0.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(maps) :]:
        axis.set_visible(False)
    for axis, (name, blocks) in zip(axes, maps, strict=False):
        picture: NDArray[np.float64] = np.asarray(blocks, np.float64)
        smooth = "antialiased" if max(picture.shape) > SMOOTHED else "nearest"
        axis.imshow(picture, cmap="Blues", vmin=0, vmax=1.2, interpolation=smooth)
        axis.set(xticks=[], yticks=[])
        axis.set_title(name, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def plan_maps(plan: AttentionPlan) -> list[tuple[str, NDArray[np.bool_]]]:
    """The block maps of a plan's heads, those of equal mask and order once, for `patterns_picture`.

    Names say which heads of the plan each is.
    """
    if plan.mask is None:
        return [("dense", np.ones((1, 1), bool))]
    maps = _block_maps(plan)
    groups: dict[tuple[bytes, bytes], list[int]] = {}
    lanes = max(len(maps), 1 if plan.query_order is None else len(plan.query_order))
    for head in range(lanes):
        order = b"" if plan.query_order is None else _row(plan.query_order, head).numpy().tobytes()
        groups.setdefault((_row(maps, head).numpy().tobytes(), order), []).append(head)
    return [(_heads(heads, lanes), _row(maps, heads[0]).numpy()) for heads in groups.values()]


def _block_maps(plan: AttentionPlan) -> torch.Tensor:
    """Bool ``[patterns, query blocks, key blocks]``, a block kept where any of it is."""
    mask = plan.mask
    assert mask is not None
    used = mask.to("cpu").trimmed()
    row, (start, end) = used.row_of_range(), used.ranges.long().unbind(1)
    blocks = -(-used.keys // used.key_block)
    steps = torch.zeros(used.patterns * used.tiles, blocks + 1, dtype=torch.int32)
    one = torch.ones_like(row, dtype=torch.int32)
    steps.index_put_((row, start // used.key_block), one, accumulate=True)
    steps.index_put_((row, (end - 1) // used.key_block + 1), -one, accumulate=True)
    return (steps.cumsum(1)[:, :-1] > 0).view(used.patterns, used.tiles, blocks)


def _row(rows: torch.Tensor, head: int) -> torch.Tensor:
    """Of a tensor with a row for each head or one for all."""
    return rows[head % len(rows)].cpu()


def _heads(heads: list[int], of: int) -> str:
    if len(heads) == of:
        return "all heads"
    if len(heads) > LISTED:
        return f"{len(heads)} heads: {', '.join(map(str, heads[:LISTED]))}, ..."
    return f"head{'s' if len(heads) > 1 else ''} {', '.join(map(str, heads))}"
