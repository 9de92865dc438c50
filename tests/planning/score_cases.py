"""Inputs and plans that the tests of scoring operations share, and definitions too slow for anything else."""

from __future__ import annotations

import torch
from torch import Tensor

from vidaccel.plan import AttentionPlan, BlockMask, ExtraKeys

NAN = float("nan")


def states(
    batch: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:  # fmt: skip
    """A view into fused projections, so that no stride is what a fresh tensor has."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, 3, heads, head_dim, generator=generator).to(dtype)[:, :, seed % 3]


def orders(rows: int, tokens: int, seed: int = 0, last: int | None = None) -> Tensor:
    """Random permutations; with `last`, of the tokens before it, which the others follow."""
    generator = torch.Generator().manual_seed(seed)
    count = tokens if last is None else last
    tail = torch.arange(count, tokens)
    return torch.stack([torch.cat([torch.randperm(count, generator=generator), tail]) for _ in range(rows)]).int()


def random_mask(
    patterns: int, queries: int, keys: int, query_block: int = 16, key_block: int = 16, kept: float = 0.5,
    slack: int = 0,
) -> BlockMask:  # fmt: skip
    """Random blocks, with slack at the end of the ranges as a GPU's masks have it."""
    generator = torch.Generator().manual_seed(patterns + queries)
    shape = (patterns, -(-queries // query_block), -(-keys // key_block))
    blocks = torch.rand(shape, generator=generator) < kept
    mask = BlockMask.from_blocks(blocks, query_block, key_block, queries, keys)
    ranges = torch.cat([mask.ranges, torch.zeros(slack, 2, dtype=torch.int32)])
    return BlockMask(mask.offsets, ranges, query_block, key_block, queries, keys)


def extra_keys(mask: BlockMask, batch: int, groups: int, heads: int, head_dim: int) -> ExtraKeys:
    """Group means with biases of the sort that methods give, some groups unseen by some tiles."""
    generator = torch.Generator().manual_seed(groups)
    bias = torch.randn(heads, mask.tiles, groups, generator=generator)
    bias[torch.rand(bias.shape, generator=generator) < 0.4] = float("-inf")
    key, value = (states(batch, groups, heads, head_dim, seed=each).contiguous() for each in (7, 8))
    return ExtraKeys(key, value, bias)


def dense_keep(plan: AttentionPlan, lane: int) -> Tensor:
    """Whether a query attends to a key, in natural places: bool ``[queries, keys]``."""
    mask = plan.mask
    assert mask is not None
    kept = mask.to_dense()[lane % mask.patterns]
    natural = torch.empty_like(kept)
    rows = torch.arange(mask.queries) if plan.query_order is None else plan.query_order[lane % len(plan.query_order)]
    columns = torch.arange(mask.keys) if plan.key_order is None else plan.key_order[lane % len(plan.key_order)]
    natural[rows.long()[:, None], columns.long()[None]] = kept
    return natural


def lse_of(query: Tensor, key: Tensor, scale: float, lengths: Tensor | None = None) -> Tensor:
    """The log-sum-exp of dense attention, fp32 ``[batch, heads, queries]``."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query.double(), key.double().nan_to_num(0.0)) * scale
    if lengths is not None:
        padding = torch.arange(key.shape[1]) >= lengths[:, None]
        scores = scores.masked_fill(padding[:, None, None], float("-inf"))
    return scores.logsumexp(-1).float()


def poisoned(tensor: Tensor, lengths: Tensor) -> Tensor:
    """The same with NaN in the padding, and the same strides."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)
    for row, length in enumerate(lengths.tolist()):
        copy[row, length:] = NAN
    return copy


def plan_list(
    queries: int, keys: int, batch: int, heads: int, head_dim: int, last: int | None = None
) -> list[AttentionPlan]:
    """One candidate of every sort: shared, per head, in orders, with empty tiles, with extra keys."""
    lanes = batch * heads
    empty = random_mask(1, queries, keys, kept=0.1, slack=3)
    mask = random_mask(heads, queries, keys, 13, 9)
    per_head = orders(heads, keys, 3, last)
    return [
        AttentionPlan(random_mask(1, queries, keys, slack=5)),
        AttentionPlan(random_mask(lanes, queries, keys, 8, 32, slack=2)),
        AttentionPlan(mask, orders(1, queries, 1), per_head),
        AttentionPlan(random_mask(1, queries, keys, slack=1), orders(lanes, queries, 2), orders(1, keys, 4, last)),
        AttentionPlan(empty),
        AttentionPlan(mask, orders(heads, queries, 5), None, extra_keys(mask, batch, 5, heads, head_dim)),
    ]


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal to a tolerance relative to the largest expected number, and finite."""
    assert actual.shape == expected.shape and torch.isfinite(actual).all()
    distance = (actual.double() - expected.double()).abs().max()
    assert distance <= tolerance * expected.double().abs().max().clamp(min=1e-6), float(distance)
