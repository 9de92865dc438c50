"""Antidiagonal block scores in torch, against the definition read off the true score matrix."""

from __future__ import annotations

import pytest
import torch

from tests.planning.score_cases import close, poisoned, states
from vidaccel.planning import antidiagonal, dispatch
from vidaccel.planning.antidiagonal import block_scores, block_scores_reference

SIZES = [
    (48, 48, 16, 16, 8), (45, 37, 16, 8, 4), (1, 1, 16, 16, 8), (50, 3, 8, 8, 8), (29, 31, 64, 12, 4), (9, 9, 3, 2, 1),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("queries, keys, query_block, key_block, stride", SIZES)
def test_fast_path_is_the_definition(
    queries: int, keys: int, query_block: int, key_block: int, stride: int, dtype: torch.dtype
) -> None:
    query, key = states(2, queries, 3, 8, dtype), states(2, keys, 3, 8, dtype, seed=1)
    expected = block_scores_reference(query, key, query_block, key_block, stride, scale=0.4)
    scores = block_scores(query, key, query_block, key_block, stride, scale=0.4)
    close(scores, expected, 1e-5)
    close(scores.sum(-1), torch.ones(scores.shape[:2]), 1e-5)


def test_stride_one_is_pooled_attention() -> None:
    """With cells of one token the antidiagonal is the score itself: the mass of every block."""
    query, key = states(1, 20, 1, 8), states(1, 12, 1, 8, seed=1)
    weights = (query[0, :, 0] @ key[0, :, 0].T * 0.5).softmax(-1)
    expected = weights.unflatten(0, (5, 4)).unflatten(2, (4, 3)).sum(3).mean(1)
    close(block_scores(query, key, 4, 3, 1, scale=0.5)[0], expected, 1e-5)


def test_a_bright_slash_is_found() -> None:
    """Each query looks at the key 31 places on, and so do the scores; an even distance would be missed."""
    basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0] * 8
    query, key = basis[None, :, None], basis.roll(31, 0)[None, :, None]
    scores = block_scores(query, key, 16, 16, 8, scale=2.0)[0]
    # Three of the four cells that the slash crosses in two blocks are in the nearer one.
    for tile, (near, far) in enumerate([(2, 1), (3, 2), (0, 3), (1, 0)]):
        close(scores[tile, [near, far]], torch.tensor([0.75, 0.25]), 1e-5)


def test_tokens_past_the_end_are_absent_not_zero() -> None:
    """Equal keys get equal shares per token, whatever the ragged tail holds; a zero key would get less."""
    query, key = torch.ones(1, 16, 1, 4), torch.ones(1, 21, 1, 4)
    scores = block_scores(query, key, 8, 8, 8, scale=1.0)
    close(scores[0, 0], torch.tensor([8, 8, 5]) / 21, 1e-6)


def test_ragged_queries_count_for_the_tokens_they_are() -> None:
    """In a tile of one whole cell and one of a single token, the whole cell has 8 of 9 parts."""
    key = torch.eye(4)[[0, 1]].repeat_interleave(8, 0)[None, :, None] * 50
    query = torch.cat([key[:, :8], key[:, 8:9]], 1)
    close(block_scores(query, key, 16, 8, 8, scale=1.0)[0, 0], torch.tensor([8, 1]) / 9, 1e-5)


def test_key_lengths_are_as_if_the_keys_ended_there() -> None:
    lengths = torch.tensor([13, 0, 40])
    query, key = states(3, 40, 2, 8), poisoned(states(3, 40, 2, 8, seed=1), lengths)
    scores = block_scores(query, key, 8, 8, 4, scale=0.4, key_lengths=lengths)
    short = block_scores(query[:1], key[:1, :13], 8, 8, 4, scale=0.4)
    close(scores[:2, :, :2], short, 1e-6)
    assert (scores[:2, :, 2:] == 0).all() and (scores[2:4] == 0).all()
    close(scores[4:], block_scores(query[2:], key[2:], 8, 8, 4, scale=0.4), 1e-6)


def test_little_working_memory_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = states(1, 77, 2, 8), states(1, 50, 2, 8, seed=1)
    expected = block_scores(query, key, 16, 16, 4, scale=0.4)
    monkeypatch.setattr(antidiagonal, "WORKING_BYTES", 1)
    close(block_scores(query, key, 16, 16, 4, scale=0.4), expected, 1e-6)


def test_what_does_not_fit_is_refused() -> None:
    query = states(1, 20, 2, 8)
    for call, message in (
        (lambda: block_scores(query, query, 12, 16, 8, scale=1.0), "query_block=12 is not a positive multiple of 8"),
        (lambda: block_scores(query, query, 16, 20, 8, scale=1.0), "key_block=20"),
        (lambda: block_scores(query, query, 16, 16, 0, scale=1.0), "stride=0"),
        (lambda: block_scores(query, query[..., :4], 16, 16, 8, scale=1.0), r"key is \[1, 20, 2, 4\]"),
        (lambda: block_scores(query, query.half(), 16, 16, 8, scale=1.0), "key is torch.float16 on cpu, the query"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with dispatch.forced("triton"), pytest.raises(ValueError, match="Triton cannot run this planning operation: .*GPU"):
        block_scores(query, query, 16, 16, 8, scale=1.0)
