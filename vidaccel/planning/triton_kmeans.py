"""Triton kernels of `kmeans` and `groups`: nearest centroids on the tensor cores, and moments of sorted tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidaccel.planning.order import Order
from vidaccel.planning.shapes import power_of_two, read_in_place, strides
from vidaccel.triton_launch import Launch

TILES = {128: (128, 64, 8), 256: (64, 32, 4)}
"""Up to a head dim: tokens of a program of `nearest`, centroids that it compares at once, and warps."""
GATHERED = 32
"""Tokens that a program of `mean_rows` reads at once."""


@triton.jit(do_not_specialize=["tokens", "heads", "clusters"])
def nearest(
    points, centroids, halves, labels, p_batch, p_token, p_head, tokens, heads, clusters,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The centroid with the largest ``point . centroid - halves``, `halves` being half its squared length."""
    tiles = tl.cdiv(tokens, BLOCK_T)
    # Programs of a lane run together: its centroids then stay in the cache.
    lane, token = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    dims, columns = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C)
    points += (lane // heads).to(tl.int64) * p_batch + (lane % heads).to(tl.int64) * p_head
    centroids += lane.to(tl.int64) * clusters * HEAD_DIM
    halves += lane.to(tl.int64) * clusters
    point_at = token.to(tl.int64)[:, None] * p_token + dims[None, :]
    point = tl.load(points + point_at, mask=(token < tokens)[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
    # Each column remembers its own best: one reduction over columns at the end, none in the loop.
    best = tl.full([BLOCK_T, BLOCK_C], float("-inf"), tl.float32)
    winner = tl.zeros([BLOCK_T, BLOCK_C], tl.int32) + columns[None, :]
    for first in range(0, clusters, BLOCK_C):
        valid = first + columns < clusters
        centroid = tl.load(
            centroids + (first + columns)[None, :] * HEAD_DIM + dims[:, None],
            mask=valid[None, :] & (dims < HEAD_DIM)[:, None], other=0.0,
        )  # fmt: skip
        half = tl.load(halves + first + columns, mask=valid, other=float("inf"))
        score = tl.dot(point, centroid, input_precision="ieee") - half[None, :]
        # Only a better one replaces: of equal ones in a column, the lowest number stays.
        better = score > best
        best = tl.where(better, score, best)
        winner = tl.where(better, (first + columns)[None, :], winner)
    equal = best == tl.max(best, 1)[:, None]
    label = tl.min(tl.where(equal, winner, 2147483647), 1)
    tl.store(labels + lane.to(tl.int64) * tokens + token, label, mask=token < tokens)


@triton.jit(do_not_specialize=["tokens", "heads", "clusters"])
def mean_rows(
    points, order, starts, old, out, p_batch, p_token, p_head, tokens, heads, clusters,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GATHERED: tl.constexpr, SQUARED: tl.constexpr,
):  # fmt: skip
    """The mean of the tokens of one cluster, which are next to each other in `order`; `old` if it has none.

    If SQUARED, the mean of the squares of what they differ by from `old`.
    """
    lane, cluster = tl.program_id(0) // clusters, tl.program_id(0) % clusters
    dims = tl.arange(0, BLOCK_D)
    wide = dims < HEAD_DIM
    points += (lane // heads).to(tl.int64) * p_batch + (lane % heads).to(tl.int64) * p_head
    order += lane.to(tl.int64) * tokens
    starts += lane.to(tl.int64) * (clusters + 1) + cluster
    begin, end = tl.load(starts), tl.load(starts + 1)
    at = tl.program_id(0).to(tl.int64) * HEAD_DIM + dims
    before = tl.load(old + at, mask=wide, other=0.0)
    total = tl.zeros([GATHERED, BLOCK_D], tl.float32)
    for first in range(begin, end, GATHERED):
        position = first + tl.arange(0, GATHERED)
        token = tl.load(order + position, mask=position < end, other=0).to(tl.int64)
        row = tl.load(points + token[:, None] * p_token + dims[None, :],
                      mask=(position < end)[:, None] & wide[None, :], other=0.0)  # fmt: skip
        row = row.to(tl.float32)
        if SQUARED:
            row = tl.where((position < end)[:, None], row - before[None, :], 0.0)
            row *= row
        total += row
    mean = tl.sum(total, 0) / tl.maximum(end - begin, 1).to(tl.float32)
    mean = tl.where(end > begin, mean, before)
    tl.store(out + at, mean, mask=wide)


def assign(points: Tensor, centroids: Tensor) -> Tensor:
    """`kmeans.assign` of checked arguments."""
    launch = prepare_assign(points, centroids)
    launch.run()
    labels: Tensor = launch.arguments["labels"]
    return labels


def means(points: Tensor, order: Order, centroids: Tensor) -> Tensor:
    """The centroids that `kmeans.update` gives, of checked arguments."""
    launch = prepare_means(points, order, centroids)
    launch.run()
    out: Tensor = launch.arguments["out"]
    return out


def variances(points: Tensor, order: Order, centroids: Tensor) -> Tensor:
    """The second result of `groups.group_moments`, of checked arguments; `centroids` are the first, 0 for empty ones.
    """
    launch = prepare_means(points, order, centroids, squared=True)
    launch.run()
    out: Tensor = launch.arguments["out"]
    return out


def prepare_assign(points: Tensor, centroids: Tensor) -> Launch:
    """The launch of `nearest`; its ``labels`` are the result."""
    lanes, clusters, _ = centroids.shape
    rounded = centroids.to(points.dtype).contiguous()
    arguments = {
        **_points(points), "centroids": rounded, "halves": rounded.float().square().sum(-1) * 0.5, "clusters": clusters,
        "labels": torch.empty(lanes, points.shape[1], dtype=torch.int32, device=points.device),
    }  # fmt: skip
    rows, columns, warps = next(tile for widest, tile in TILES.items() if points.shape[3] <= widest)
    constants = {**_dims(points), "BLOCK_T": rows, "BLOCK_C": columns}
    grid = (lanes * triton.cdiv(points.shape[1], rows),)
    return Launch(nearest, arguments, constants, {"num_warps": warps, "num_stages": 2}, grid)


def prepare_means(points: Tensor, order: Order, centroids: Tensor, squared: bool = False) -> Launch:
    """The launch of `mean_rows`; its ``out`` is the result."""
    lanes, clusters, _ = centroids.shape
    old = centroids.contiguous()
    arguments = {
        **_points(points), "order": order.order.contiguous(), "starts": order.starts.contiguous(), "old": old,
        "out": torch.empty_like(old), "clusters": clusters,
    }  # fmt: skip
    constants = {**_dims(points), "GATHERED": GATHERED, "SQUARED": squared}
    return Launch(mean_rows, arguments, constants, {"num_warps": 4, "num_stages": 2}, (lanes * clusters,))


def _points(points: Tensor) -> dict[str, object]:
    """Points where they are; only those whose head dim is not dense are copied."""
    points = read_in_place(points)
    return {"points": points, "tokens": points.shape[1], "heads": points.shape[2], **strides("p", points)}


def _dims(points: Tensor) -> dict[str, int]:
    head_dim = points.shape[3]
    return {"HEAD_DIM": head_dim, "BLOCK_D": power_of_two(head_dim)}
