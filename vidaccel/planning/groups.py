"""Groups of consecutive positions of a key order: their means, and how much of each a mask leaves out.

A lane is a head of a batch row, batch slowest. Groups are given by where they start, int32 ``[rows, groups + 1]``, the
last at their end; rows is 1, heads or batch * heads. Nothing waits for a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidaccel.mask import BlockMask
from vidaccel.planning import dispatch, shapes
from vidaccel.planning.order import Order

CHUNK = 1 << 21
"""Numbers of the largest tensors that `left_out` makes for some patterns at a time: 16 MB each."""


def group_mean(
    states: Tensor, starts: Tensor, *, order: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Mean of the tokens of each group, the like of `pool.block_mean` for groups of unequal sizes.

    The same input gives the same result: there are no atomics.

    Args:
        states: ``[batch, tokens, heads, head_dim]``.
        starts: of the groups, see above; rising, which is not checked.
        order: int32 ``[rows, tokens]``, whose consecutive positions groups are of; None is the natural order.
        lengths: int ``[batch]``; positions from there on are padding that no mean counts.

    Returns:
        fp32 ``[batch, groups, heads, head_dim]``; zeros for a group without tokens.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    starts, order = _checked(states, starts, order, lengths)
    if not dispatch.uses_triton(states):
        return group_mean_reference(states, starts, order)
    groups, empty = _groups(states, starts, order)
    return _of_batch(dispatch.module("kmeans").means(states, groups, empty), states)


def group_moments(
    states: Tensor, starts: Tensor, *, order: Tensor | None = None, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean and variance of the tokens of each group: `group_mean`, and as much again of the same shape.

    Variances are means of squared distances from the mean, in a second pass over the group: the mean of squares less
    the square of the mean would be rounding errors where groups are far from 0 for their size, as keys often are.

    Args:
        states, starts, order, lengths: see `group_mean`.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    starts, order = _checked(states, starts, order, lengths)
    if not dispatch.uses_triton(states):
        means = group_mean_reference(states, starts, order)
        return means, group_variance_reference(states, starts, order, means)
    groups, empty = _groups(states, starts, order)
    kernels = dispatch.module("kmeans")
    means = kernels.means(states, groups, empty)
    return _of_batch(means, states), _of_batch(kernels.variances(states, groups, means), states)


def group_mean_reference(states: Tensor, starts: Tensor, order: Tensor | None) -> Tensor:
    """`group_mean` in torch, head by head: fp32 memory for one head. `starts` are of every lane and end at padding."""
    batch, _, heads, head_dim = states.shape
    means = states.new_empty(batch, starts.shape[1] - 1, heads, head_dim, dtype=torch.float32)
    for lane in range(batch * heads):
        rows = shapes.cleared(shapes.states_of_lane(states, lane, order), starts[lane, -1])
        # Without its checks, which read the offsets.
        sums = torch.segment_reduce(rows, "sum", offsets=starts[lane].long(), axis=0, unsafe=True)
        means[lane // heads, :, lane % heads] = sums / starts[lane].diff().clamp(min=1)[:, None]
    return means


def group_variance_reference(states: Tensor, starts: Tensor, order: Tensor | None, means: Tensor) -> Tensor:
    """The variances of `group_moments` in torch, as `group_mean_reference`, whose result it takes."""
    batch, tokens, heads, _ = states.shape
    variances = torch.empty_like(means)
    place = torch.arange(tokens, dtype=torch.int32, device=states.device)
    for lane in range(batch * heads):
        mean = means[lane // heads, :, lane % heads]
        # Positions past the last group's end, or before the first's start, are in no sum: any group will do.
        group = torch.searchsorted(starts[lane], place, right=True).sub_(1).clamp_(0, len(mean) - 1)
        rows = shapes.cleared(shapes.states_of_lane(states, lane, order), starts[lane, -1]) - mean[group]
        sums = torch.segment_reduce(rows.square_(), "sum", offsets=starts[lane].long(), axis=0, unsafe=True)
        variances[lane // heads, :, lane % heads] = sums / starts[lane].diff().clamp(min=1)[:, None]
    return variances


def left_out(mask: BlockMask, starts: Tensor, *, lengths: Tensor | None = None, heads: int = 1) -> Tensor:
    """Tokens of each group that each tile of a mask does not attend to, padding never counted.

    They are read off the ranges. While it works it takes about 40 bytes per range and 60 MB besides, whatever the
    number of tokens.

    Args:
        mask: on the device of `starts`.
        starts: of the groups in the mask's key order, see above.
        lengths: int ``[batch]``; positions from there on are padding.
        heads: of a batch row; only counts with `lengths` of several rows.

    Returns:
        fp32 ``[patterns, tiles, groups]`` of whole numbers; patterns as many as mask, groups and lengths tell apart.
    """
    borders = starts.long()
    if lengths is not None:
        most = lengths.long()[:, None].expand(-1, 1 if len(lengths) == 1 else heads).reshape(-1, 1)
        borders = torch.minimum(borders.repeat(max(1, len(most) // len(borders)), 1), most)
    keys, ends, total = _flattened(mask)
    patterns, width = max(mask.patterns, len(borders)), mask.keys + 1
    left = torch.empty(patterns, mask.tiles, borders.shape[1] - 1, dtype=torch.float32, device=borders.device)
    step = max(1, CHUNK // (mask.tiles * borders.shape[1]))
    for first in range(0, patterns, step):
        lane = torch.arange(first, min(first + step, patterns), device=borders.device)
        border = borders[lane % len(borders)][:, None]
        row = lane[:, None] % mask.patterns * mask.tiles + torch.arange(mask.tiles, device=borders.device)
        place = row[..., None] * width + border
        count = torch.searchsorted(keys, place)
        # What starts before a border, less what of it lies after: the last range's overhang.
        covered = (total[count] - (ends[count] - place).clamp_(min=0)).diff(dim=-1)
        left[first : first + step] = border.diff(dim=-1) - covered
    return left


def _flattened(mask: BlockMask) -> tuple[Tensor, Tensor, Tensor]:
    """Ranges on one line on which row after row of the mask has its keys: where each starts, and from one before the
    first on, where it ends and how many keys it and those before have. Slack starts past all."""
    start, end = mask.ranges.long().unbind(1)
    row, width = mask.row_of_range(), mask.keys + 1
    slack = torch.arange(len(start), dtype=torch.int32, device=start.device) >= mask.offsets[-1, -1]
    keys = torch.where(slack, mask.patterns * mask.tiles * width, row * width + start)
    ends, total = row * width + end, (end - start).cumsum(0)
    return keys, torch.nn.functional.pad(ends, (1, 0)), torch.nn.functional.pad(total, (1, 0))


def check_starts(starts: Tensor, states: Tensor) -> Tensor:
    """Starts of groups on the device of `states`.

    Raises:
        ValueError: not int32 ``[rows, groups + 1]`` with 1, heads or batch * heads rows.
    """
    batch, _, heads, _ = states.shape
    good = starts.dtype == torch.int32 and starts.ndim == 2 and starts.shape[1] > 1
    if not good or len(starts) not in (1, heads, batch * heads):
        raise ValueError(
            f"starts of groups are int32 [1, {heads} or {batch * heads}, groups + 1], got {starts.dtype} "
            f"{list(starts.shape)}"
        )
    return starts.to(states.device)


def _checked(
    states: Tensor, starts: Tensor, order: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Starts of every lane, none past its length, and the order, of what was given to `group_mean`."""
    shapes.check_states("states", states)
    order, lengths = shapes.check_order("order", order, states), shapes.check_lengths("lengths", lengths, states)
    return _of_lanes(check_starts(starts, states), lengths, states), order


def _groups(states: Tensor, starts: Tensor, order: Tensor | None) -> tuple[Order, Tensor]:
    """What the kernels take: groups of every lane, and zeros for those without tokens."""
    if order is None:
        order = torch.arange(states.shape[1], dtype=torch.int32, device=states.device)[None]
    empty = states.new_zeros(len(starts), starts.shape[1] - 1, states.shape[3], dtype=torch.float32)
    return Order(order.repeat(len(starts) // len(order), 1), starts), empty


def _of_batch(of_lanes: Tensor, states: Tensor) -> Tensor:
    """``[lanes, groups, head_dim]`` as ``[batch, groups, heads, head_dim]``, a view."""
    return of_lanes.view(states.shape[0], states.shape[2], -1, states.shape[3]).transpose(1, 2)


def _of_lanes(starts: Tensor, lengths: Tensor | None, states: Tensor) -> Tensor:
    """Starts of every lane, int32 ``[batch * heads, groups + 1]``, none past its length."""
    lanes = states.shape[0] * states.shape[2]
    starts = starts.repeat(lanes // len(starts), 1)
    if lengths is None:
        return starts
    return torch.minimum(starts, lengths[:, None].expand(-1, states.shape[2]).reshape(-1, 1))
