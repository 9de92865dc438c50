"""Tokens put in the order of their clusters, and the masks that clusters of unequal sizes give.

A lane is a head of a batch row, batch slowest; an order is int32 ``[lanes, tokens]``, the token at each position, as
`AttentionPlan` takes it. Nothing waits for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vidaccel.mask import BlockMask, runs
from vidaccel.plan import index_of
from vidaccel.planning import dispatch

RUN = 1 << 23
"""Tiles times clusters of the lanes that are worked on at a time."""


@dataclass(frozen=True, eq=False)
class Order:
    """Tokens sorted by cluster.

    Args:
        order: int32 ``[lanes, tokens]``, the token at each position; those of a cluster keep their own order.
        starts: int32 ``[lanes, clusters + 1]``: cluster ``k`` is at positions ``[starts[k], starts[k + 1])``.
    """

    order: Tensor
    starts: Tensor

    @cached_property
    def inverse(self) -> Tensor:
        """The position of each token: int32 ``[lanes, tokens]``."""
        positions = torch.arange(self.order.shape[1], dtype=torch.int32, device=self.order.device)
        return torch.empty_like(self.order).scatter_(1, self.order.long(), positions.expand(self.order.shape))

    @cached_property
    def sizes(self) -> Tensor:
        """Tokens of each cluster: int32 ``[lanes, clusters]``."""
        return self.starts.diff(dim=1)


def order_by(labels: Tensor, clusters: int) -> Order:
    """Sort the tokens of each lane by label.

    Text or padding that was not clustered can have labels of its own after the others: the highest come last.

    Args:
        labels: int ``[lanes, tokens]`` in ``[0, clusters)``, which is not checked: that would wait for a GPU.
        clusters: number of labels, used or not.

    Raises:
        ValueError: labels of another shape or type, or no cluster.
    """
    if labels.ndim != 2 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels are integers [lanes, tokens], got {labels.dtype} {list(labels.shape)}")
    if clusters < 1:
        raise ValueError(f"clusters={clusters}; there is at least one")
    lanes, tokens = labels.shape
    # One sort over all lanes: a sort per lane is a launch per lane on a GPU.
    lane = torch.arange(lanes, dtype=torch.int32, device=labels.device)[:, None]
    combined, place = (labels.int() + lane * clusters).flatten().sort(stable=True)
    borders = torch.arange(lanes * clusters + 1, dtype=torch.int32, device=labels.device)
    starts = torch.searchsorted(combined, borders, out_int32=True)
    at = lane * clusters + torch.arange(clusters + 1, dtype=torch.int32, device=labels.device)
    return Order((place.view(lanes, tokens) - lane * tokens).int(), starts[at] - lane * tokens)


def chain(points: Tensor) -> Tensor:
    """Points put in a row, after each the nearest of those left: int64 ``[lanes, points]``, the first of all first.

    Of clusters in the order of their centroids, those that a query attends to are often neighbours and make one range.
    A few small operations for each point, and fp32 ``[lanes, points, points]``.

    Args:
        points: fp32 ``[lanes, points, width]``.
    """
    lanes, count, _ = points.shape
    # Squared distances but for |from|^2, the same for all that are compared.
    away = torch.baddbmm(points.square().sum(-1)[:, None], points, points.transpose(1, 2), alpha=-2)
    order = torch.zeros(lanes, count, dtype=torch.int64, device=points.device)
    for place in range(1, count):
        at = order[:, place - 1, None, None]
        away.scatter_(2, at.expand(-1, count, 1), float("inf"))
        order[:, place] = away.gather(1, at.expand(-1, 1, count))[:, 0].argmin(1)
    return order


def permute(states: Tensor, order: Tensor) -> Tensor:
    """States in an order: position ``i`` of the result is token ``order[i]``.

    Args:
        states: ``[batch, tokens, heads, head_dim]``, of any strides.
        order: int32 ``[rows, tokens]``; rows is 1, heads or batch * heads.

    Raises:
        ValueError: an order of another shape or type.
    """
    return _moved(states, order, back=False)


def unpermute(states: Tensor, order: Tensor) -> Tensor:
    """What `permute` undoes: token ``order[i]`` of the result is position ``i`` of `states`."""
    return _moved(states, order, back=True)


def _moved(states: Tensor, order: Tensor, back: bool) -> Tensor:
    batch, tokens, heads, _ = states.shape
    good = order.ndim == 2 and order.shape[1] == tokens and order.shape[0] in (1, heads, batch * heads)
    if not good or order.dtype != torch.int32:
        raise ValueError(
            f"an order of states {list(states.shape)} is int32 [1, {heads} or {batch * heads}, {tokens}], got "
            f"{order.dtype} {list(order.shape)}"
        )
    if dispatch.uses_triton(states, order):
        moved: Tensor = dispatch.module("order").move(states, order, back)
        return moved
    return unpermute_reference(states, order) if back else permute_reference(states, order)


def permute_reference(states: Tensor, order: Tensor) -> Tensor:
    """`permute` by a gather."""
    return states.gather(1, index_of(order, states))


def unpermute_reference(states: Tensor, order: Tensor) -> Tensor:
    """`unpermute` by a scatter."""
    return torch.empty_like(states).scatter_(1, index_of(order, states), states)


def cluster_mask(
    query_starts: Tensor,
    key_starts: Tensor,
    kept: Tensor,
    *,
    queries: int,
    keys: int,
    query_block: int = 128,
    key_block: int = 128,
) -> BlockMask:
    """The mask, over ordered positions, of query clusters that attend to key clusters.

    A query tile that lies in several clusters attends to what any of them keeps. See `tile_mask` for the rest.

    Args:
        query_starts, key_starts: int32 ``[lanes, clusters + 1]``, see `Order`; the last are `queries` and `keys`.
        kept: bool ``[lanes, query clusters, key clusters]``.
        queries, keys: tokens.
        query_block, key_block: as of `BlockMask`; ranges start and end anywhere, whatever `key_block` is.

    Raises:
        ValueError: shapes or types that do not fit together.
    """
    _check_kept(kept, key_starts, query_starts.shape[-1] - 1, f"starts {list(query_starts.shape)}")
    tiles = union(kept, query_starts, queries, query_block)
    return tile_mask(key_starts, tiles, queries=queries, keys=keys, query_block=query_block, key_block=key_block)


def tile_mask(
    key_starts: Tensor, kept: Tensor, *, queries: int, keys: int, query_block: int = 128, key_block: int = 128
) -> BlockMask:  # fmt: skip
    """The mask, over ordered positions, of query tiles that attend to key clusters.

    Ranges are token-exact, neighbouring kept clusters are one range, and clusters without tokens count nowhere. It
    takes about 4 bytes per tile and key cluster while it works, besides 12 for at most RUN of these at a time (or for a
    lane's, if they are more), and has room for half as many ranges as there are tiles times key clusters.

    Args:
        key_starts: int32 ``[lanes, clusters + 1]``, see `Order`; the last is `keys`.
        kept: bool ``[lanes, tiles, key clusters]``.
        queries, keys: tokens.
        query_block, key_block: as of `BlockMask`; ranges start and end anywhere, whatever `key_block` is.

    Raises:
        ValueError: shapes or types that do not fit together.
    """
    _check_kept(kept, key_starts, -(-queries // query_block), f"{queries} queries in tiles of {query_block}")
    starts, ends = key_starts[:, :-1], key_starts[:, 1:]
    # Empty clusters go last, where they part no neighbours.
    filled, column = (ends > starts).byte().sort(dim=1, descending=True, stable=True)
    starts, ends = starts.gather(1, column), ends.gather(1, column)
    kept = kept.gather(2, column[:, None].expand(kept.shape)) & filled.bool()[:, None]
    offsets, ranges = runs(kept, starts.int(), ends.int(), RUN)
    mask = BlockMask(offsets, ranges, query_block, key_block, queries, keys)
    return mask.trimmed() if kept.device.type == "cpu" else mask


def union(kept: Tensor, starts: Tensor, queries: int, query_block: int) -> Tensor:
    """What any cluster of each query tile keeps: bool ``[lanes, tiles, key clusters]``.

    Args:
        kept: bool ``[lanes, query clusters, key clusters]``.
        starts: int32 ``[lanes, query clusters + 1]``, see `Order`; the last is `queries`.
        queries, query_block: tokens.
    """
    first = torch.arange(0, queries, query_block, dtype=starts.dtype, device=starts.device)
    last = (first + query_block).clamp(max=queries) - 1
    cluster = [cluster_at(starts, each) for each in (first, last)]
    filled, (lanes, clusters, columns) = starts.diff(dim=1) > 0, kept.shape
    united = kept.new_empty(lanes, len(first), columns)
    # Counts of what is kept take many times what marks do: some lanes at a time.
    step = max(1, RUN // ((clusters + len(first)) * columns))
    for lane in range(0, lanes, step):
        some = slice(lane, lane + step)
        marks = kept[some] & filled[some, :, None]
        before = torch.nn.functional.pad(marks.cumsum(1, dtype=torch.int32), (0, 0, 1, 0))
        begin, end = (each[some, :, None].expand(-1, -1, columns) for each in (cluster[0], cluster[1] + 1))
        united[some] = before.gather(1, end) > before.gather(1, begin)
    return united


def cluster_at(starts: Tensor, positions: Tensor) -> Tensor:
    """The cluster that holds each position: int64 ``[lanes, positions]``.

    Args:
        starts: int32 ``[lanes, clusters + 1]``, see `Order`.
        positions: int32 ``[positions]`` or ``[lanes, positions]``, all before the last start.
    """
    # It is the first cluster that ends after the position: empty ones never are.
    at = positions.expand(len(starts), -1).contiguous()
    return torch.searchsorted(starts[:, 1:].contiguous(), at, right=True)


def _check_kept(kept: Tensor, key_starts: Tensor, rows: int, of: str) -> None:
    expected = (len(key_starts), rows, key_starts.shape[-1] - 1)
    if kept.dtype != torch.bool or tuple(kept.shape) != expected:
        raise ValueError(
            f"kept clusters are bool {list(expected)} by {of} and {list(key_starts.shape)}, got "
            f"{kept.dtype} {list(kept.shape)}"
        )
