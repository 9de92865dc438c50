"""The coefficients of this machine: times of a handful of plans beside those of dense attention."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vidaccel import kernels
from vidaccel.costs.fit import Sample, fitted, misses
from vidaccel.costs.model import CostModel, Counts
from vidaccel.plan import AttentionPlan, BlockMask

REPEATS = 7
SEED = 0
PARTS = (1, 4, 16)
"""Calls are on all tokens, and on these parts of them."""
LEAST_BLOCKS = 32
Timer = Callable[[Callable[[], object], torch.device], float]


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call, by the clock; waits for a GPU before and after."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(
    device: torch.device, dtype: torch.dtype, heads: int, head_dim: int, block: int, tokens: int, timer: Timer = seconds
) -> CostModel:
    """The model fitted to what `times` measures; see there.

    Raises:
        ValueError: too few tokens, no backend for such calls, or times that no model fits.
    """
    samples, dense = times(device, dtype, heads, head_dim, block, tokens, timer)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"a {device.type} device"
    call = f"{heads} heads of {head_dim}, {tokens} tokens, blocks of {block}, {str(dtype).removeprefix('torch.')}"
    model = fitted(samples, dense, heads, head_dim, "")
    off = misses(model, samples, dense, heads)["median_error"]
    return dataclasses.replace(model, source=f"measured on {where}: {call}; off by {off:.0%}")


def times(
    device: torch.device, dtype: torch.dtype, heads: int, head_dim: int, block: int, tokens: int, timer: Timer = seconds
) -> tuple[list[Sample], list[tuple[int, float]]]:
    """Sparse calls by `kernels.attention`, and dense ones by `scaled_dot_product_attention` as (tokens, seconds).

    Medians of calls in turns, after one of each to warm up, on `tokens`, a quarter and a sixteenth of them. A few
    seconds on a CPU at 2,048 tokens and 4 heads of 64. Other work on the machine spoils it.

    Args:
        device, dtype, heads, head_dim: of the calls, batch 1.
        block: tile size of the plans.
        tokens: of the longest calls, at least 32 blocks.
        timer: of one call; exchangeable for tests.

    Raises:
        ValueError: too few tokens, or no backend for such calls.
    """
    if tokens < LEAST_BLOCKS * block:
        raise ValueError(f"tokens={tokens} are too few to tell costs by: at least {LEAST_BLOCKS} blocks of {block}")
    calls = [
        each for size in (tokens // part for part in PARTS)
        for each in _calls(size, block, _draw(size, heads, head_dim, dtype, device))
    ]  # fmt: skip
    found = list(zip((what for what, _ in calls), _medians([call for _, call in calls], device, timer), strict=True))
    sparse = [Sample(what, median) for what, median in found if isinstance(what, Counts)]
    return sparse, [(what, median) for what, median in found if isinstance(what, int)]


@torch.no_grad()
def _medians(calls: Sequence[Callable[[], object]], device: torch.device, timer: Timer) -> list[float]:
    """Of each call; in turns, so that a slow moment of the machine falls on all alike."""
    for call in calls:
        call()
    turns = [[timer(call, device) for call in calls] for _ in range(REPEATS)]
    return [statistics.median(times) for times in zip(*turns, strict=True)]


Inputs = tuple[Tensor, Tensor, Tensor]


def _draw(tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> Inputs:
    generator = torch.Generator(device).manual_seed(SEED)
    size = (1, tokens, heads, head_dim)
    query, key, value = (torch.randn(size, generator=generator, device=device).to(dtype) for _ in range(3))
    return query, key, value


def _calls(tokens: int, block: int, inputs: Inputs) -> list[tuple[Counts | int, Callable[[], object]]]:
    """Dense attention, by its number of tokens, and sparse calls, by their counts."""
    query, key, value = (each.transpose(1, 2) for each in inputs)
    found: list[tuple[Counts | int, Callable[[], object]]] = [
        (tokens, functools.partial(scaled_dot_product_attention, query, key, value))
    ]
    for plan in plans(tokens, block, inputs[0].shape[2]):
        there = plan.to(inputs[0].device)
        found.append((Counts.of(plan), functools.partial(kernels.attention, *inputs, there)))
    return found


def plans(tokens: int, block: int, heads: int) -> list[AttentionPlan]:
    """Everything; bands of falling density; a density in many ranges, shared or of each head; a band in an order."""
    count = -(-tokens // block)
    generator = torch.Generator().manual_seed(SEED)
    distance = (torch.arange(count)[:, None] - torch.arange(count)).abs()
    draw = torch.rand(heads, count, count, generator=generator).masked_fill(distance == 0, 0.0)
    maps = [
        distance[None] >= 0, *((distance <= count * width)[None] for width in (0.25, 0.125, 0.05)),
        (distance % 2 == 0)[None], (distance % 4 == 0)[None], draw < 0.25, draw < 0.5,
    ]  # fmt: skip
    found = [AttentionPlan(BlockMask.from_blocks(each, block, block, tokens, tokens)) for each in maps]
    order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(heads)]).int()
    return [*found, AttentionPlan(found[2].mask, query_order=order, key_order=order)]
