"""Means of blocks of tokens, how alike the tokens of a block are, and the block map that means predict."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidaccel.planning import dispatch, shapes

CHUNK = 1 << 23
"""Entries of the maps that `pooled_scores` works on at a time, besides the result: 32 MB, twice."""

@dataclass(frozen=True, eq=False)
class Summary:
    """What `summary` reads off blocks of tokens.

    Args:
        mean: fp32 ``[batch, blocks, heads, head_dim]``.
        similarity: fp32 ``[batch * heads, blocks]``, 1 where all tokens of a block point the same way.
    """

    mean: Tensor
    similarity: Tensor


def block_mean(states: Tensor, block: int, *, order: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
    """Mean of every `block` consecutive tokens, the last ragged block over the tokens that it has.

    The kernel reads every valid token once: at 75,600 tokens and 40 heads of 128 in bf16, 774 MB.

    Args:
        states: ``[batch, tokens, heads, head_dim]``.
        block: tokens of a block.
        order: int32 ``[rows, tokens]``; blocks are then of consecutive positions in this order.
        lengths: int ``[batch]``; positions from there on are padding that no mean counts.

    Returns:
        fp32 ``[batch, blocks, heads, head_dim]``; zeros for a block of padding alone.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    mean, _ = _summarise(states, block, order, lengths, mean=True, similarity=False)
    assert mean is not None
    return mean


def self_similarity(
    states: Tensor, block: int, *, order: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Mean cosine similarity over all pairs of tokens of a block, a token with itself included.

    SpargeAttn (Zhang et al. 2025) trusts a block's mean where this is high. The sum over pairs of n unit vectors,
    divided by n^2, is the squared norm of their mean, so each token is read once. A token of zeros is like no other.

    Args:
        states, block, order, lengths: as for `block_mean`.

    Returns:
        fp32 ``[batch * heads, blocks]`` in 0 to 1; zero for a block of padding alone.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    _, similarity = _summarise(states, block, order, lengths, mean=False, similarity=True)
    assert similarity is not None
    return similarity


def summary(states: Tensor, block: int, *, order: Tensor | None = None, lengths: Tensor | None = None) -> Summary:
    """`block_mean` and `self_similarity` in one pass over the tokens; same arguments and errors."""
    mean, similarity = _summarise(states, block, order, lengths, mean=True, similarity=True)
    assert mean is not None and similarity is not None
    return Summary(mean, similarity)


def pooled_scores(query_means: Tensor, key_means: Tensor, scale: float, *, allowed: Tensor | None = None) -> Tensor:
    """The block map that means predict: softmax over key blocks of the scaled products of means.

    Args:
        query_means, key_means: ``[batch, blocks, heads, head_dim]``, as from `block_mean`.
        scale: of the scores.
        allowed: bool ``[batch * heads or 1, key blocks]``; other blocks get nothing (padding, or SpargeAttn's blocks
            whose mean is not trusted).

    Returns:
        fp32 ``[batch * heads, query blocks, key blocks]``, rows that sum to 1; zeros where no block is allowed.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    shapes.check_pair(query_means, key_means, "key_means")
    query, key = (means.float().transpose(1, 2).flatten(0, 1) for means in (query_means, key_means))
    lanes, blocks, others = len(query), query.shape[1], key.shape[1]
    if allowed is not None and (allowed.dtype != torch.bool or allowed.shape not in ((1, others), (lanes, others))):
        expected = f"[1 or {lanes}, {others}]"
        raise ValueError(f"allowed is bool {expected}, got {allowed.dtype} {list(allowed.shape)}")
    absent = None if allowed is None else ~allowed[:, None].expand(lanes, 1, others)
    scores = query.new_empty(lanes, blocks, others)
    step = max(1, CHUNK // (blocks * others))
    for first in range(0, lanes, step):
        some = slice(first, first + step)
        part = torch.bmm(query[some], key[some].transpose(1, 2)).mul_(scale)
        if absent is None:
            scores[some] = part.softmax(-1)
        else:
            scores[some] = part.masked_fill_(absent[some], float("-inf")).softmax(-1).nan_to_num_(0.0)
    return scores


def _summarise(
    states: Tensor, block: int, order: Tensor | None, lengths: Tensor | None, *, mean: bool, similarity: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The asked-for ones of mean and similarity."""
    shapes.check_states("states", states)
    shapes.check_block("block", block)
    order, lengths = shapes.check_order("order", order, states), shapes.check_lengths("lengths", lengths, states)
    if not dispatch.uses_triton(states):
        return summary_reference(states, block, order, lengths, mean=mean, similarity=similarity)
    launch = dispatch.module("pool").prepare(states, block, order, lengths, mean=mean, similarity=similarity)
    launch.run()
    return launch.arguments["means"], launch.arguments["similarity"]


def summary_reference(
    states: Tensor, block: int, order: Tensor | None, lengths: Tensor | None, *, mean: bool, similarity: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The definition, head by head in torch: fp32 memory for one head."""
    batch, tokens, heads, head_dim = states.shape
    blocks = -(-tokens // block)
    means = states.new_empty(batch, blocks, heads, head_dim, dtype=torch.float32) if mean else None
    alike = states.new_empty(batch * heads, blocks, dtype=torch.float32) if similarity else None
    for lane in range(batch * heads):
        length = shapes.length_of_lane(lengths, lane, states)
        rows = shapes.cleared(shapes.states_of_lane(states, lane, order), length)
        starts = torch.arange(0, tokens, block, device=states.device)
        counts = (torch.minimum(starts + block, length) - starts).clamp(min=1)[:, None]
        if means is not None:
            means[lane // heads, :, lane % heads] = _block_sum(rows, block) / counts
        if alike is not None:
            alike[lane] = (_block_sum(torch.nn.functional.normalize(rows), block) / counts).square().sum(1)
    return means, alike


def _block_sum(rows: Tensor, block: int) -> Tensor:
    """Sum of every `block` rows, ``[blocks, head_dim]``."""
    padded: Tensor = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % block))
    sums: Tensor = padded.unflatten(0, (-1, block)).sum(1)
    return sums
