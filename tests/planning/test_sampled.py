"""Row-sampled output errors in torch, against whole attention maps; which keys single rows see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.planning.score_cases import close, dense_keep, orders, plan_list, poisoned, random_mask, states
from vidaccel.kernels import reference
from vidaccel.plan import AttentionPlan, BlockMask
from vidaccel.planning.rows import keys_of_rows, patterns_of
from vidaccel.planning.sampled import output_errors

ROWS = torch.tensor([0, 36, 5, 5, 17, 30])


def by_hand(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, plan: AttentionPlan, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Squared errors and norms of the reference backend's outputs."""
    tensors = (each.float().nan_to_num(0.0) for each in (query, key, value))
    query, key, value = tensors
    full = AttentionPlan(BlockMask.full(query.shape[1], key.shape[1]))
    outs = [
        reference.attention(query, key, value, each, key_lengths=lengths, scale=0.4, return_lse=False)[0][:, rows]
        for each in (plan, full)
    ]
    return (outs[0] - outs[1]).square().sum((1, 3)), outs[1].square().sum((1, 3))


@pytest.mark.parametrize("queries, keys", [(37, 41), (37, 5), (1, 1)])
def test_keys_of_rows_are_rows_of_the_mask(queries: int, keys: int) -> None:
    rows = ROWS.clamp(max=queries - 1)
    for plan in plan_list(queries, keys, 2, 3, 8):
        kept = keys_of_rows(plan, rows)
        assert kept.shape == (patterns_of(plan), len(rows), keys) and kept.dtype == torch.bool
        for lane in range(len(kept)):
            assert torch.equal(kept[lane], dense_keep(plan, lane)[rows])
        assert torch.equal(keys_of_rows(plan, rows, range(2, 5)), torch.stack([kept[i % len(kept)] for i in (2, 3, 4)]))


def test_keys_of_rows_reads_no_slack() -> None:
    """Slack after the last row is no range of it, and an empty last row stays empty."""
    mask = random_mask(2, 32, 20, slack=9)
    offsets = mask.offsets.clone()
    offsets[1, -1] = offsets[1, -2]
    empty_last = BlockMask(offsets, mask.ranges.clone(), 16, 16, 32, 20)
    empty_last.ranges[int(offsets[1, -1]) :] = 0
    empty_last.validate()
    kept = keys_of_rows(empty_last, torch.tensor([0, 31]))
    assert torch.equal(kept[0], keys_of_rows(mask, torch.tensor([0, 31]))[0])
    assert not kept[1, 1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_errors_of_every_sort_of_candidate(dtype: torch.dtype) -> None:
    query, key, value = states(2, 37, 3, 8, dtype), states(2, 41, 3, 8, dtype, 1), states(2, 41, 3, 8, dtype, 2)
    plans = plan_list(37, 41, 2, 3, 8)
    if dtype != torch.float32:
        plans.pop()  # extra keys are of the query's type, and those are fp32
    result = output_errors(query, key, value, ROWS, plans, scale=0.4)
    assert result.error.shape == (len(plans), 2, 3)
    for at, plan in enumerate(plans):
        error, norm = by_hand(query, key, value, ROWS, plan)
        close(result.error[at], error, 1e-5)
        close(result.norm, norm, 1e-5)
    close(result.relative, result.error / result.norm, 1e-6)


def test_dense_candidate_has_no_error_and_empty_one_all_of_it() -> None:
    query, key, value = states(1, 20, 2, 8), states(1, 20, 2, 8, seed=1), states(1, 20, 2, 8, seed=2)
    nothing = BlockMask.from_blocks(torch.zeros(1, 2, 2, dtype=torch.bool), 16, 16, 20, 20)
    result = output_errors(query, key, value, torch.tensor([3, 19]), [BlockMask.full(20, 20), nothing], scale=0.4)
    assert result.relative[0].max() < 1e-10
    close(result.relative[1], torch.ones(1, 2), 1e-6)


def test_padding_may_be_nan() -> None:
    lengths = torch.tensor([30, 41])
    query, value = states(2, 37, 3, 8), poisoned(states(2, 41, 3, 8, seed=2), lengths)
    key = poisoned(states(2, 41, 3, 8, seed=1), lengths)
    plans = plan_list(37, 41, 2, 3, 8, last=30)
    result = output_errors(query, key, value, ROWS, plans, scale=0.4, key_lengths=lengths)
    for at, plan in enumerate(plans):
        error, norm = by_hand(query, key, value, ROWS, plan, lengths)
        close(result.error[at], error, 1e-5)
        close(result.norm, norm, 1e-5)


def test_errors_of_prompts_add_up() -> None:
    query, key, value = states(2, 37, 3, 8), states(2, 41, 3, 8, seed=1), states(2, 41, 3, 8, seed=2)
    plans = [random_mask(1, 37, 41), random_mask(3, 37, 41)]
    both = output_errors(query, key, value, ROWS, plans, scale=0.4)
    first, second = (
        output_errors(query[i : i + 1], key[i : i + 1], value[i : i + 1], ROWS, plans, scale=0.4) for i in (0, 1)
    )
    total = first + second
    close(total.error, both.error.sum(1, keepdim=True), 1e-5)
    close(total.norm, both.norm.sum(0, keepdim=True), 1e-5)


def test_what_does_not_fit_is_refused() -> None:
    query = states(1, 20, 2, 8)
    mask, rows = BlockMask.full(20, 20), torch.tensor([0, 3])
    for changed, message in (
        ({"plans": []}, "no candidate plans"),
        ({"plans": [AttentionPlan()]}, "dense plan .* nothing to measure"),
        ({"plans": [BlockMask.full(20, 21)]}, "a candidate is for 20 x 21 tokens, the call has 20 x 20"),
        ({"plans": [random_mask(3, 20, 20)]}, "3 patterns do not fit 1 batch rows of 2 heads"),
        ({"plans": [AttentionPlan(mask, orders(5, 20))]}, "query_order has 5 rows"),
        ({"rows": rows.int()}, r"rows are int64 \[rows\], at least one, got torch.int32"),
        ({"rows": rows[:0]}, "at least one"),
        ({"rows": torch.tensor([3, 20])}, "rows are 0 to 19, got 3 to 20"),
        ({"value": query[:, :19]}, "value is .* the key"),
    ):
        given = {"query": query, "key": query, "value": query, "rows": rows, "plans": [mask], **changed}
        with pytest.raises(ValueError, match=message):
            output_errors(**given, scale=1.0)
