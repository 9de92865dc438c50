"""What planning costs beside one dense attention call: scores, selection, clustering, permutation, whole methods."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vidaccel.bench import planning_cost
from vidaccel.bench.attention import Board
from vidaccel.bench.measure import percentiles
from vidaccel.bench.shapes import Shape
from vidaccel.mask import BlockMask
from vidaccel.methods import METHODS
from vidaccel.planning import antidiagonal, kmeans, order, pool, select

BLOCK, STRIDE = 128, 16
DENSITY = 0.2
CLUSTERS = 500
"""Of the keys of a head, as Sparse VideoGen2 (arXiv 2505.18875) has; fewer where there are few tokens."""

Operation = Callable[[Tensor, Tensor, Tensor], Any]


def lines(board: Board, shape: Shape) -> Iterator[dict[str, Any]]:
    """Each operation on random queries and keys, with its share of the best dense call's time if that is known."""
    inputs, dense_ms = board.inputs(shape), board.dense_ms(shape)
    makes = dict(OPERATIONS)
    makes |= {f"plan of {name}": functools.partial(_method_plan, name, shape) for name in planning_cost.chosen()}
    for name, make in makes.items():
        line = {"case": "planning", "shape": shape.name, "tokens": shape.tokens, "heads": shape.heads,
                "operation": name, "dense_ms": dense_ms}  # fmt: skip
        try:
            times = percentiles(make(*inputs[0]), inputs)
        except Exception as problem:  # an operation that this GPU does not take must not end the run
            yield {**line, "failed": f"{type(problem).__name__}: {str(problem)[:200]}", "ours": True}
        else:
            yield {**line, **times, "share_of_dense": times["p50_ms"] / dense_ms if dense_ms else None}


def block_plan(query: Tensor, key: Tensor, value: Tensor) -> BlockMask:
    """A whole plan as block methods make it: means, their scores, the best blocks of each row, ranges."""
    means = pool.block_mean(query, BLOCK), pool.block_mean(key, BLOCK)
    return _chosen(pool.pooled_scores(*means, query.shape[-1] ** -0.5), query.shape[1], key.shape[1])


def antidiagonal_plan(query: Tensor, key: Tensor, value: Tensor) -> BlockMask:
    """As `block_plan`, by sums over antidiagonals."""
    scores = antidiagonal.block_scores(query, key, BLOCK, BLOCK, STRIDE, scale=query.shape[-1] ** -0.5)
    return _chosen(scores, query.shape[1], key.shape[1])


def _chosen(scores: Tensor, queries: int, keys: int) -> BlockMask:
    kept = select.top_k(scores, max(1, round(DENSITY * scores.shape[2])))
    return BlockMask.from_blocks(kept, BLOCK, BLOCK, queries, keys)


def _method_plan(name: str, shape: Shape, *_: Tensor) -> Operation:
    """A method's plan at a step after the first, at its default budget and a new plan at every step."""
    cls = METHODS[name]
    options = {"refresh": 1} if "refresh" in {item.name for item in dataclasses.fields(cls)} else {}  # type: ignore[arg-type]
    method, steps = cls.for_family("wan", **options), itertools.count(planning_cost.FIRST)
    state: dict[str, Any] = {}
    return lambda *states: planning_cost.planned(method, shape, states, state, next(steps))


def _kmeans_step(query: Tensor, key: Tensor, value: Tensor) -> Operation:
    """One round over the keys from centroids that are there already, as in every step after the first."""
    clusters = max(2, min(CLUSTERS, key.shape[1] // 64))
    start = kmeans.sample(key, clusters, seed=0)
    return lambda query, key, value: kmeans.kmeans(key, clusters, iterations=1, start=start)


def _permutation(query: Tensor, key: Tensor, value: Tensor) -> Operation:
    """Queries, keys and values into an order of each head, and the output back."""
    lanes, tokens = query.shape[0] * query.shape[2], query.shape[1]
    places = torch.rand(lanes, tokens, device=query.device).argsort(-1).int()

    def move(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        moved = [order.permute(each, places) for each in (query, key, value)]
        return order.unpermute(moved[0], places)

    return move


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Operation]] = {
    "block means of queries and keys": lambda *_: lambda query, key, value: (
        pool.block_mean(query, BLOCK), pool.block_mean(key, BLOCK)
    ),
    "plan by block means and top-k": lambda *_: block_plan,
    f"plan by antidiagonals, stride {STRIDE}, and top-k": lambda *_: antidiagonal_plan,
    "k-means step of the keys": _kmeans_step,
    "permute q, k, v and restore the output": _permutation,
}  # fmt: skip
"""By name, what makes each from one set of inputs."""
