"""k-means over the tokens of every head at once: assign, update, and a fixed number of rounds of both.

Lloyd, "Least squares quantization in PCM" (1982), by squared Euclidean distance; for video attention by Yang et al.,
"Sparse VideoGen2" (2025). A lane is a head of a batch row, batch slowest. The same input gives the same result: sums
are over tokens sorted by cluster, with no atomics. Nothing waits for a GPU, so rounds go on when all has settled.

Which tokens are clustered is the caller's choice: pass a slice of the video tokens (a view, it is not copied). Text and
padding can have labels of their own in `order.order_by`. So there are no lengths here, and all points are finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vidaccel.planning import dispatch
from vidaccel.planning.order import Order, order_by
from vidaccel.planning.shapes import check_states, no_dot
from vidaccel.site import Dealt

CHUNK = 1 << 24
"""Numbers of the largest tensor that the torch path makes besides its inputs and results: 64 MB of fp32."""


@dataclass(frozen=True, eq=False)
class KMeans:
    """Clusters of the tokens of each lane.

    Args:
        centroids: fp32 ``[lanes, clusters, head_dim]``, means of the clusters; an empty cluster keeps the one it had.
        labels: int32 ``[lanes, tokens]``, the cluster of each token.
        order: the tokens sorted by cluster, with where each cluster starts.
    """

    centroids: Tensor
    labels: Tensor
    order: Order

    @property
    def sizes(self) -> Tensor:
        """Tokens of each cluster: int32 ``[lanes, clusters]``."""
        return self.order.sizes


def kmeans(
    points: Tensor, clusters: int, *, iterations: int, start: Tensor | None = None, seed: int = 0, together: int = 1
) -> KMeans:  # fmt: skip
    """Rounds of assigning tokens to their nearest centroid and moving centroids to the means of their tokens.

    Args:
        points: ``[batch, tokens, heads, head_dim]``, of any strides.
        clusters: per lane. More than there are tokens leaves some empty.
        iterations: rounds, at least one; the labels are those of the last, the centroids the means of these.
        start: fp32 ``[lanes, clusters, head_dim]``, such as the centroids of an earlier step; None takes random tokens.
        seed: of these; the same on every device.
        together: the batch is that many equal runs of rows, such as two guidance branches, and rows of one place in
            them have common centroids, the means over all their tokens. A `start` is then as common.

    Raises:
        ValueError: shapes or types that do not fit together, or no round.
    """
    if iterations < 1:
        raise ValueError(f"iterations={iterations}; k-means has at least one")
    if clusters < 1:
        raise ValueError(f"clusters={clusters}; k-means has at least one")
    if together < 1 or len(points) % together:
        raise ValueError(f"together={together}; {len(points)} batch rows are not that many equal runs")
    centroids = sample(points, clusters, seed, together) if start is None else start
    if centroids.shape[1:2] != (clusters,):
        raise ValueError(f"start is [lanes, {clusters}, head_dim], got {list(centroids.shape)}")
    for _ in range(iterations):
        result = _common(update(points, assign(points, centroids), centroids), together)
        centroids = result.centroids
    return result


def _common(result: KMeans, together: int) -> KMeans:
    """Centroids that are means over the clusters of several lanes; where all are empty, they were equal before."""
    if together == 1:
        return result
    centroids = result.centroids.unflatten(0, (together, -1))
    sizes = result.sizes.unflatten(0, (together, -1))[..., None]
    total = sizes.sum(0)
    means = torch.where(total > 0, (centroids * sizes).sum(0) / total.clamp(min=1), centroids[0])
    return KMeans(means.repeat(together, 1, 1), result.labels, result.order)


def sample(
    points: Tensor, clusters: int, seed: int, together: int = 1, dealt: Dealt | None = None
) -> Tensor:  # fmt: skip
    """Random tokens of each lane, all different as long as there are enough: fp32 ``[lanes, clusters, head_dim]``.

    Lanes with common centroids (see `kmeans`) start from tokens of the first of them. A head starts from the same
    tokens whatever process has it: `dealt` says which heads these are, where others have others.
    """
    _check(points)
    if together > 1:
        return sample(points[: len(points) // together], clusters, seed, 1, dealt).repeat(together, 1, 1)
    batch, tokens, heads, head_dim = points.shape
    every = heads if dealt is None else dealt.total
    places = torch.arange(batch * every * tokens, device=points.device).view(batch, every, tokens)
    places = places if dealt is None else dealt.here(places, 1)
    shuffled = _mixed(places, seed).argsort(dim=-1)
    token = shuffled[..., torch.arange(clusters, device=points.device) % tokens].transpose(1, 2)
    chosen = points.gather(1, token[..., None].expand(-1, -1, -1, head_dim))
    return chosen.transpose(1, 2).reshape(batch * heads, clusters, head_dim).float()


def _mixed(numbers: Tensor, seed: int) -> Tensor:
    """Different numbers as different ones in a random sequence, from no state (splitmix64, Steele et al. 2014)."""
    mixed = numbers * -0x61C8864680B583EB + seed * 0x2545F4914F6CDD1D % (1 << 63)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        # Shifts bring in zeros, not the sign.
        mixed = (mixed ^ (mixed >> shift & (1 << 64 - shift) - 1)) * factor
    return mixed ^ (mixed >> 31 & (1 << 33) - 1)


def assign(points: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid of each token, of equally near ones the lowest number: int32 ``[lanes, tokens]``.

    Centroids are rounded to the type of the points, and distances to the rounded ones are accurate to fp32 sums. So a
    token may go to another centroid than the nearest where two are as near as that rounding: for bf16, about 1/256 of
    a centroid's length.

    Args:
        points: ``[batch, tokens, heads, head_dim]``.
        centroids: fp32 ``[lanes, clusters, head_dim]``.

    Raises:
        ValueError: shapes or types that do not fit together.
    """
    _check(points, centroids)
    if dispatch.uses_triton(points, centroids, unless=no_dot(points)):
        labels: Tensor = dispatch.module("kmeans").assign(points, centroids)
        return labels
    return assign_reference(points, centroids)


def assign_reference(points: Tensor, centroids: Tensor) -> Tensor:
    """`assign` in torch, as many tokens at a time as CHUNK allows."""
    rounded = centroids.to(points.dtype).float()
    # |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2), of which the first term is the same for all c.
    bias = rounded.square().sum(-1)[:, None] * -0.5
    labels = [
        torch.baddbmm(bias, chunk, rounded.transpose(1, 2)).argmax(-1).int()
        for _, chunk in _chunks(points, centroids.shape[1])
    ]  # fmt: skip
    return torch.cat(labels, 1)


def update(points: Tensor, labels: Tensor, centroids: Tensor) -> KMeans:
    """Move every centroid to the mean of its tokens; one without tokens stays where it is.

    Args:
        points: ``[batch, tokens, heads, head_dim]``.
        labels: int32 ``[lanes, tokens]``, see `assign`.
        centroids: fp32 ``[lanes, clusters, head_dim]``.

    Raises:
        ValueError: shapes or types that do not fit together.
    """
    _check(points, centroids, labels)
    order = order_by(labels, centroids.shape[1])
    if dispatch.uses_triton(points, centroids, labels):
        return KMeans(dispatch.module("kmeans").means(points, order, centroids), labels, order)
    return KMeans(_moved(centroids, _sums(points, order), order), labels, order)


def update_reference(points: Tensor, labels: Tensor, centroids: Tensor) -> KMeans:
    """`update` by matrix products with one-hot labels."""
    clusters = centroids.shape[1]
    order = order_by(labels, clusters)
    numbers = torch.arange(clusters, dtype=torch.int32, device=labels.device)[:, None]
    sums = torch.zeros_like(centroids)
    for first, chunk in _chunks(points, clusters):
        members = labels[:, None, first : first + chunk.shape[1]] == numbers
        sums.baddbmm_(members.float(), chunk)
    return KMeans(_moved(centroids, sums, order), labels, order)


def _sums(points: Tensor, order: Order) -> Tensor:
    """The sum of each cluster's tokens, lane by lane in torch: fp32 ``[lanes, clusters, head_dim]``."""
    heads = points.shape[2]
    lanes = ((points[lane // heads, :, lane % heads].float(), lane) for lane in range(points.shape[0] * heads))
    return torch.stack([
        torch.nn.functional.embedding_bag(order.order[lane], states, order.starts[lane, :-1], mode="sum")
        for states, lane in lanes
    ])  # fmt: skip


def _moved(centroids: Tensor, sums: Tensor, order: Order) -> Tensor:
    """Means of clusters, of an empty one the old."""
    sizes = order.sizes[..., None]
    return torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)


def _chunks(points: Tensor, clusters: int) -> Iterator[tuple[int, Tensor]]:
    """Tokens in runs, each with its first token: fp32 ``[lanes, run, head_dim]`` of at most CHUNK points x clusters."""
    batch, tokens, heads, head_dim = points.shape
    step = max(1, CHUNK // (batch * heads * max(clusters, head_dim)))
    for first in range(0, tokens, step):
        run = points[:, first : first + step].transpose(1, 2).float()
        yield first, run.reshape(batch * heads, -1, head_dim)


def _check(points: Tensor, centroids: Tensor | None = None, labels: Tensor | None = None) -> None:
    check_states("points", points)
    batch, tokens, heads, head_dim = points.shape
    lanes = batch * heads
    if centroids is not None:
        good = centroids.ndim == 3 and centroids.shape[::2] == (lanes, head_dim) and centroids.shape[1]
        if not good or (centroids.dtype, centroids.device) != (torch.float32, points.device):
            raise ValueError(
                f"centroids are float32 [{lanes}, clusters, {head_dim}] on {points.device}, got {centroids.dtype} "
                f"{list(centroids.shape)} on {centroids.device}"
            )
    if labels is not None and (labels.dtype != torch.int32 or labels.shape != (lanes, tokens)):
        raise ValueError(f"labels are int32 [{lanes}, {tokens}], got {labels.dtype} {list(labels.shape)}")
