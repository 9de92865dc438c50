"""Plans with orders and extra keys, by every backend that runs here, against brute force; and what does not fit."""

import pytest
import torch

from tests.kernels.cases import CASES, PLAN_CASES, brute_force, relative_error, scattered
from vidaccel.kernels import attention
from vidaccel.layout import TokenLayout
from vidaccel.plan import AttentionPlan, BlockMask, ExtraKeys

BACKENDS = ["reference", "cpu", "flex"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLAN_CASES)
def test_equals_brute_force(name, backend):
    case = PLAN_CASES[name]
    query, key, value = case.inputs()
    out, lse = attention(query, key, value, case.plan(), key_lengths=case.key_lengths, scale=0.3, return_lse=True,
                         backend_name=backend)
    expected, expected_lse = brute_force(case, query, key, value, 0.3)
    assert out.dtype == query.dtype and out.shape == query.shape and lse.shape == expected_lse.shape
    assert relative_error(out, expected) < 1e-6
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-6, atol=1e-5)
    alone, none = attention(query, key, value, case.plan(), key_lengths=case.key_lengths, scale=0.3,
                            backend_name=backend)
    assert none is None
    torch.testing.assert_close(alone, out)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_bf16(backend):
    case = PLAN_CASES["orders and extra keys"]
    query, key, value = case.inputs(torch.bfloat16)
    out, _ = attention(query, key, value, case.plan(torch.bfloat16), scale=0.3, backend_name=backend)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, brute_force(case, query, key, value, 0.3)[0]) < 1e-2


@pytest.mark.parametrize("backend", BACKENDS)
def test_slack_after_the_ranges_counts_for_nothing(backend):
    mask = CASES["pattern per head"].mask
    roomy = BlockMask(mask.offsets, torch.cat([mask.ranges, mask.ranges.new_zeros(7, 2)]), mask.query_block,
                      mask.key_block, mask.queries, mask.keys)
    query, key, value = CASES["pattern per head"].inputs()
    out, _ = attention(query, key, value, roomy, backend_name=backend)
    torch.testing.assert_close(out, attention(query, key, value, mask, backend_name=backend)[0])


def permutation(rows, tokens):
    return torch.rand(rows, tokens).argsort(dim=1).int()


@pytest.mark.parametrize("change, message", [
    ({"query_order": permutation(3, 96)}, "3 rows of query_order do not fit 2 batch rows of 2 heads"),
    ({"key_order": permutation(3, 96)}, "3 rows of key_order do not fit"),
    ({"extra": ExtraKeys(torch.zeros(2, 5, 2, 16), torch.zeros(2, 5, 2, 16), torch.zeros(3, 6, 5))},
     "3 patterns of the extra keys' bias do not fit"),
    ({"extra": ExtraKeys(torch.zeros(1, 5, 2, 16), torch.zeros(1, 5, 2, 16), torch.zeros(1, 6, 5))},
     r"extra keys are torch.float32 \[2, 5, 2, 16\], got torch.float32 \[1, 5, 2, 16\]"),
])
def test_plan_that_does_not_fit_the_call(change, message):
    query = torch.zeros(2, 96, 2, 16)
    plan = AttentionPlan(scattered(96, 16, 16, 0.5), **change)
    with pytest.raises(ValueError, match=message):
        attention(query, query, query, plan, backend_name="reference")


def test_inputs_that_do_not_fit_each_other():
    query, mask = torch.zeros(2, 96, 2, 16), scattered(96, 16, 16, 0.5)
    with pytest.raises(ValueError, match=r"key is \[2, 96, 1, 16\], the query needs \[2, 96, 2, 16\]"):
        attention(query, query[:, :, :1], query, mask)
    with pytest.raises(ValueError, match="value is torch.float64"):
        attention(query, query, query.double(), mask)
    with pytest.raises(ValueError, match=r"key_lengths is int \[2\], got torch.int64 \[3\]"):
        attention(query, query, query, mask, key_lengths=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="dense plan"):
        attention(query, query, query, AttentionPlan())
    with pytest.raises(ValueError, match="unknown precision 'int4'; choose int8, fp8"):
        attention(query, query, query, mask, precision="int4")
    with pytest.raises(ValueError, match="no backend can run this call: .*cpu: it computes in the inputs' own type"):
        attention(query, query, query, mask, precision="int8")


def test_parts_of_a_plan_that_do_not_fit_each_other():
    mask, key = scattered(96, 16, 16, 0.5), torch.zeros(1, 5, 2, 16)
    with pytest.raises(ValueError, match="dense plan .* has no orders"):
        AttentionPlan(None, query_order=permutation(1, 96))
    with pytest.raises(ValueError, match=r"key_order is int32 \[rows, 96\], got torch.int64 \[1, 96\]"):
        AttentionPlan(mask, key_order=permutation(1, 96).long())
    with pytest.raises(ValueError, match="bias for 5 tiles, the mask 6"):
        AttentionPlan(mask, extra=ExtraKeys(key, key, torch.zeros(1, 5, 5)))
    with pytest.raises(ValueError, match=r"bias of extra keys is float32 \[patterns, tiles, 5\]"):
        ExtraKeys(key, key, torch.zeros(1, 6, 4))
    with pytest.raises(ValueError, match="both"):
        ExtraKeys(key, key[:, :3], torch.zeros(1, 6, 5))


def test_moving_a_plan_keeps_what_is_there():
    plan = PLAN_CASES["orders and extra keys"].plan()
    assert plan.to("cpu") is plan
    moved = plan.to("meta")
    assert moved.mask.offsets.is_meta and moved.query_order.is_meta and moved.extra.bias.is_meta


@pytest.mark.parametrize("rows", [1, 2])
def test_density_counts_video_pairs_through_the_orders(rows):
    """Text at the end of the sequence is anywhere in the plan's; counted pair by pair."""
    layout, mask = TokenLayout(2, 4, 9, text_after=24), scattered(96, 16, 16, 0.4, rows)
    orders = permutation(2, 96), permutation(2, 96)
    plan, pairs = AttentionPlan(mask, *orders), 0
    for head in range(2):
        video = [(order[head] < layout.video_end) for order in orders]
        pairs += int((mask.to_dense()[head % rows] & video[0][:, None] & video[1][None]).sum())
    assert plan.density(layout).video_density == pytest.approx(pairs / (2 * layout.video_tokens**2))
    assert plan.density(layout).density == pytest.approx(float(mask.to_dense().float().mean()))
