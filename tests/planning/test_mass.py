"""Block mass in torch, against sums over the dense attention map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.planning.score_cases import close, lse_of, orders, poisoned, states
from vidaccel.planning import mass
from vidaccel.planning.mass import block_mass

SIZES = [(48, 48, 16, 16), (45, 37, 16, 10), (1, 1, 16, 16), (50, 3, 7, 1), (29, 31, 64, 64), (5, 5, 1, 1)]


def by_hand(weights: Tensor, query_block: int, key_block: int) -> Tensor:
    """Sums over rectangles of one head's map, divided by their rows."""
    rows = weights.split(query_block)
    return torch.stack([torch.stack([part.sum() / len(row) for part in row.split(key_block, 1)]) for row in rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("queries, keys, query_block, key_block", SIZES)
def test_mass_is_the_mean_weight_of_a_block(
    queries: int, keys: int, query_block: int, key_block: int, dtype: torch.dtype
) -> None:
    query, key = states(2, queries, 3, 8, dtype), states(2, keys, 3, 8, dtype, seed=1)
    result = block_mass(query, key, lse_of(query, key, 0.4), query_block, key_block, scale=0.4)
    for lane in range(6):
        b, h = lane // 3, lane % 3
        weights = (query[b, :, h].float() @ key[b, :, h].float().T * 0.4).softmax(-1)
        close(result[lane], by_hand(weights, query_block, key_block), 1e-5)
    close(result.sum(-1), torch.ones(result.shape[:2]), 1e-5)


@pytest.mark.parametrize("query_rows, key_rows", [(1, 1), (3, 6), (6, 3)])
def test_blocks_of_positions(query_rows: int, key_rows: int) -> None:
    query, key = states(2, 33, 3, 8), states(2, 29, 3, 8, seed=1)
    query_order, key_order = orders(query_rows, 33), orders(key_rows, 29, 1)
    lse = lse_of(query, key, 0.4)
    result = block_mass(query, key, lse, 8, 8, scale=0.4, query_order=query_order, key_order=key_order)
    for lane in range(6):
        rows, columns = query_order[lane % query_rows].long(), key_order[lane % key_rows].long()
        weights = (query[lane // 3, :, lane % 3] @ key[lane // 3, :, lane % 3].T * 0.4).softmax(-1)
        close(result[lane], by_hand(weights[rows][:, columns], 8, 8), 1e-5)


def test_padding_may_be_nan_and_has_no_mass() -> None:
    lengths = torch.tensor([13, 0, 40])
    query, key = states(3, 30, 2, 8), poisoned(states(3, 40, 2, 8, seed=1), lengths)
    lse = lse_of(query, key, 0.4, lengths)
    result = block_mass(query, key, lse, 8, 8, scale=0.4, key_lengths=lengths, key_order=orders(1, 40, last=13)[:, :])
    assert torch.isfinite(result).all() and (result[:2, :, 2:] == 0).all() and (result[2:4] == 0).all()
    close(result[[0, 1, 4, 5]].sum(-1), torch.ones(4, 4), 1e-5)


def test_rows_without_keys_count_as_rows_without_weights() -> None:
    query, key = states(1, 16, 1, 8), states(1, 16, 1, 8, seed=1)
    lse = lse_of(query, key, 0.4)
    full = block_mass(query, key, lse, 8, 8, scale=0.4)
    lse[..., 3] = float("-inf")
    weights = (query[0, :, 0] @ key[0, :, 0].T * 0.4).softmax(-1)
    weights[3] = 0
    close(block_mass(query, key, lse, 8, 8, scale=0.4)[0], by_hand(weights, 8, 8), 1e-5)
    assert (block_mass(query, key, lse, 8, 8, scale=0.4)[0, 0].sum() < full[0, 0].sum() - 0.1).all()


def test_little_working_memory_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = states(1, 77, 2, 8), states(1, 50, 2, 8, seed=1)
    lse = lse_of(query, key, 0.4)
    expected = block_mass(query, key, lse, 16, 16, scale=0.4)
    monkeypatch.setattr(mass, "WORKING_BYTES", 1)
    close(block_mass(query, key, lse, 16, 16, scale=0.4), expected, 1e-6)


def test_what_does_not_fit_is_refused() -> None:
    query = states(1, 20, 2, 8)
    lse = lse_of(query, query, 1.0)
    for call, message in (
        (lambda: block_mass(query, query, lse[:, :, :9], 8, 8, scale=1.0), r"lse is float32 \[1, 2, 20\] on cpu, got"),
        (lambda: block_mass(query, query, lse.double(), 8, 8, scale=1.0), "torch.float64"),
        (lambda: block_mass(query, query, lse, 0, 8, scale=1.0), "query_block=0"),
        (lambda: block_mass(query, query, lse, 8, 8, scale=1.0, key_order=orders(3, 20)), "key_order has 3 rows"),
        (lambda: block_mass(query, query, lse, 8, 8, scale=1.0, key_lengths=lse), r"key_lengths is int \[1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
