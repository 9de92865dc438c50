"""Partial results over disjoint keys, merged, are the result over all of them."""

import pytest
import torch

from tests.kernels.cases import relative_error, scattered
from vidaccel.kernels import attention, merge
from vidaccel.plan import BlockMask

TOKENS = 150


def halves(mask):
    """A mask cut at a key in the middle of a block: no key in both."""
    cut = 77
    start, end = mask.ranges.unbind(1)
    return [from_spans(mask, start.clamp(low, high), end.clamp(low, high)) for low, high in ((0, cut), (cut, TOKENS))]


def from_spans(mask, start, end):
    keep = start < end
    counts = torch.zeros(mask.patterns * mask.tiles, dtype=torch.int32).index_add_(0, mask.row_of_range(), keep.int())
    ends = counts.cumsum(0).int().view(mask.patterns, -1)
    first = torch.cat([ends.new_zeros(1), ends[:-1, -1]])[:, None]
    ranges = torch.stack([start, end], 1)[keep]
    return BlockMask(torch.cat([first, ends], 1), ranges, mask.query_block, 1, TOKENS, TOKENS)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_two_parts_are_the_whole(dtype, tolerance):
    mask = scattered(TOKENS, 16, 16, 0.3, 2)
    query, key, value = (5 * torch.randn(3, 2, TOKENS, 2, 32)).to(dtype).unbind(0)
    whole, whole_lse = attention(query, key, value, mask, return_lse=True)
    parts = [attention(query, key, value, part, return_lse=True) for part in halves(mask)]
    out, lse = merge(*parts[0], *parts[1])
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert relative_error(out, whole) < tolerance
    torch.testing.assert_close(lse, whole_lse, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-2)


def test_merging_is_a_fold_in_any_order():
    outs, lses = torch.randn(3, 1, 20, 2, 8), torch.randn(3, 1, 2, 20)
    first = merge(*merge(outs[0], lses[0], outs[1], lses[1]), outs[2], lses[2])
    second = merge(outs[0], lses[0], *merge(outs[2], lses[2], outs[1], lses[1]))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


def test_a_part_without_keys_counts_for_nothing():
    """Whatever its output holds: rings leave it unwritten."""
    out, lse = torch.randn(1, 4, 2, 8), torch.randn(1, 2, 4)
    nothing = torch.full_like(out, float("nan")), torch.full_like(lse, -torch.inf)
    for merged, merged_lse in (merge(out, lse, *nothing), merge(*nothing, out, lse)):
        assert torch.equal(merged, out) and torch.equal(merged_lse, lse)
    both, both_lse = merge(*nothing, *nothing)
    assert (both == 0).all() and (both_lse == -torch.inf).all()


def test_far_apart_scores_do_not_overflow():
    out, lse = torch.randn(2, 1, 4, 2, 8), torch.tensor([-3e4, 3e4]).view(2, 1, 1, 1).expand(2, 1, 2, 4)
    merged, merged_lse = merge(out[0], lse[0], out[1], lse[1])
    assert torch.equal(merged, out[1]) and torch.equal(merged_lse, lse[1])


def test_parts_of_different_shapes():
    out, lse = torch.zeros(1, 4, 2, 8), torch.zeros(1, 2, 4)
    with pytest.raises(ValueError, match=r"log-sum-exps \[1, 2, 4\]"):
        merge(out, lse, out, lse.transpose(1, 2))
