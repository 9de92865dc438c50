"""The log-sum-exp of dense attention against its definition and against what attention returns."""

from __future__ import annotations

import pytest
import torch

from tests.planning.no_sync import NoSync
from vidaccel.kernels import attention
from vidaccel.mask import BlockMask
from vidaccel.planning import lse as module
from vidaccel.planning.lse import lse


def _states(batch: int = 2, queries: int = 37, keys: int = 53) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, queries, 3, 16, generator=generator),
        torch.randn(batch, keys, 3, 16, generator=generator),
    )


@pytest.mark.parametrize("working", [1, 12 * 53 * 5, 1 << 20])
def test_is_that_of_the_scores(working: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORKING_BYTES", working)
    query, key = _states()
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * 0.3
    torch.testing.assert_close(lse(query, key, 0.3), scores.logsumexp(-1))


def test_padding_is_absent_whatever_it_holds() -> None:
    query, key = _states()
    lengths = torch.tensor([53, 20])
    key[1, 20:] = float("nan")
    scores = torch.einsum("qhd,khd->hqk", query[1], key[1, :20]) * 0.25
    found = lse(query, key, 0.25, lengths)
    torch.testing.assert_close(found[1], scores.logsumexp(-1))
    torch.testing.assert_close(found[0], lse(query[:1], key[:1], 0.25)[0])
    assert lse(query, key, 0.25, torch.tensor([53, 0]))[1].eq(float("-inf")).all()


def test_is_what_attention_returns() -> None:
    query, key = _states(queries=53)
    _, returned = attention(query, key, key, BlockMask.full(53, 53, 16, 16), return_lse=True)
    torch.testing.assert_close(lse(query, key, 16**-0.5), returned)


def test_nothing_waits() -> None:
    query, key = (each.to("meta") for each in _states())
    with NoSync():
        assert lse(query, key, 0.25).shape == (2, 3, 37)
        lse(query, key, 0.25, torch.empty(2, dtype=torch.int32, device="meta"))


def test_other_keys_are_refused() -> None:
    query, key = _states()
    with pytest.raises(ValueError, match="key is"):
        lse(query, key[..., :8], 1.0)
