"""Block means, self-similarity and pooled scores in torch, against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.planning.score_cases import NAN, close, orders, poisoned, states
from vidaccel.planning import pool


def by_hand(tensor: Tensor, block: int, order: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Token lists, pair by pair."""
    batch, tokens, heads, head_dim = tensor.shape
    blocks = -(-tokens // block)
    means, alike = torch.zeros(batch, blocks, heads, head_dim), torch.zeros(batch * heads, blocks)
    for lane in range(batch * heads):
        b, h = lane // heads, lane % heads
        sequence = list(range(tokens)) if order is None else order[lane % len(order)].tolist()
        sequence = sequence[: tokens if lengths is None else int(lengths[b])]
        for at in range(blocks):
            members = [tensor[b, token, h].float() for token in sequence[at * block : (at + 1) * block]]
            if members:
                means[b, at, h] = torch.stack(members).mean(0)
                pairs = [torch.cosine_similarity(x, y, dim=0) for x in members for y in members]
                alike[lane, at] = torch.stack(pairs).mean()
    return means, alike


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens, block", [(23, 4), (24, 8), (1, 16), (5, 64), (7, 1)])
def test_mean_and_similarity_are_what_they_say(tokens: int, block: int, dtype: torch.dtype) -> None:
    tensor = states(2, tokens, 3, 8, dtype)
    for order in (None, orders(1, tokens), orders(3, tokens), orders(6, tokens)):
        for lengths in (None, torch.tensor([tokens, tokens // 2])):
            means, alike = by_hand(tensor, block, order, lengths)
            close(pool.block_mean(tensor, block, order=order, lengths=lengths), means, 1e-5)
            close(pool.self_similarity(tensor, block, order=order, lengths=lengths), alike, 1e-5)
            both = pool.summary(tensor, block, order=order, lengths=lengths)
            close(both.mean, means, 1e-5)
            close(both.similarity, alike, 1e-5)


def test_padding_may_be_nan_and_a_block_of_it_gives_zeros() -> None:
    lengths = torch.tensor([9, 0, 30])
    tensor = poisoned(states(3, 30, 2, 8), lengths)
    both = pool.summary(tensor, 8, lengths=lengths)
    means, alike = by_hand(tensor.nan_to_num(0.0), 8, None, lengths)
    close(both.mean, means, 1e-5)
    close(both.similarity, alike, 1e-5)
    assert (both.mean[0, 2:] == 0).all() and (both.mean[1] == 0).all() and (both.similarity[2:4] == 0).all()
    assert (both.mean[0, 1] != 0).all()


def test_similarity_of_equal_opposite_and_zero_tokens() -> None:
    tensor = torch.ones(1, 6, 1, 4)
    tensor[0, 2] = -1
    tensor[0, 4] = 0
    tensor[0, 1] *= 100  # only directions count
    close(pool.self_similarity(tensor, 2), torch.tensor([[1.0, 0.0, 0.25]]), 1e-6)


def test_pooled_scores_are_the_softmax_of_products_of_means() -> None:
    query, key = states(2, 5, 3, 8), states(2, 7, 3, 8, seed=1)
    scores = pool.pooled_scores(query, key, 0.3)
    for lane in range(6):
        product = query[lane // 3, :, lane % 3] @ key[lane // 3, :, lane % 3].T
        close(scores[lane], (product * 0.3).softmax(-1), 1e-6)


@pytest.mark.parametrize("rows", [0, 1, 6])
def test_pooled_scores_of_some_lanes_at_a_time(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, blocks, 3, 8, generator=generator) for blocks in (4, 5))
    allowed = torch.rand(rows, 5, generator=generator) < 0.5 if rows else None
    whole = pool.pooled_scores(query, key, 0.3, allowed=allowed)
    for chunk in (1, 2 * 4 * 5):
        monkeypatch.setattr(pool, "CHUNK", chunk)
        torch.testing.assert_close(pool.pooled_scores(query, key, 0.3, allowed=allowed), whole)


def test_pooled_scores_give_blocks_that_are_not_allowed_nothing() -> None:
    query, key = states(1, 4, 2, 8), states(1, 3, 2, 8, seed=1)
    allowed = torch.tensor([[True, False, True], [False, False, False]])
    scores = pool.pooled_scores(query, key, 1.0, allowed=allowed)
    assert (scores[0, :, 1] == 0).all() and (scores[1] == 0).all()
    close(scores[0].sum(-1), torch.ones(4), 1e-6)
    close(pool.pooled_scores(query, key, 1.0, allowed=allowed[:1])[1].sum(-1), torch.ones(4), 1e-6)


def test_what_does_not_fit_is_refused() -> None:
    tensor = states(2, 10, 3, 8)
    for call, message in (
        (lambda: pool.block_mean(tensor[0], 4), r"states is floating-point \[batch, tokens, heads, head_dim\], got"),
        (lambda: pool.block_mean(tensor.int(), 4), "torch.int32"),
        (lambda: pool.block_mean(tensor, 0), "block=0 is not a positive multiple of 1"),
        (lambda: pool.block_mean(tensor, 4, order=orders(2, 10)), "order has 2 rows; allowed: 1, 3 .* 6"),
        (lambda: pool.block_mean(tensor, 4, order=orders(1, 9)), r"order is int32 \[rows, 10\]"),
        (lambda: pool.block_mean(tensor, 4, lengths=torch.tensor([NAN, 1])), r"lengths is int \[2\]"),
        (lambda: pool.pooled_scores(tensor, tensor[:1], 1.0), "key_means is"),
        (lambda: pool.pooled_scores(tensor, tensor, 1.0, allowed=torch.ones(2, 10) > 0), "allowed is bool"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
