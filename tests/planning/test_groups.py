"""Means of groups of a key order, and how much of each a mask leaves out, against loops over dense masks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.planning.no_sync import NoSync, on_meta
from vidaccel.mask import BlockMask
from vidaccel.planning import groups
from vidaccel.planning.groups import group_mean, group_moments, left_out
from vidaccel.planning.order import order_by
from vidaccel.planning.pool import block_mean

BATCH, TOKENS, HEADS, HEAD_DIM = 2, 45, 3, 8
LENGTHS = torch.tensor([45, 31])


def random_states(seed: int = 0) -> Tensor:
    return torch.randn(BATCH, TOKENS, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed))


def random_groups(rows: int, clusters: int = 7) -> tuple[Tensor, Tensor]:
    """Orders and starts of clusters, of which the last but one is empty."""
    generator = torch.Generator().manual_seed(rows)
    labels = torch.randint(0, clusters - 1, (rows, TOKENS), generator=generator)
    labels[labels == clusters - 2] = clusters - 1
    order = order_by(labels.int(), clusters)
    return order.order, order.starts


def tokens_of_groups(order: Tensor, starts: Tensor, lengths: Tensor | None) -> Iterator[tuple[int, int, int, Tensor]]:
    """Batch row, head, group and its valid tokens, one after the other."""
    for lane in range(BATCH * HEADS):
        batch, head = divmod(lane, HEADS)
        row, length = lane % len(order), TOKENS if lengths is None else int(lengths[batch])
        for group in range(starts.shape[1] - 1):
            first, last = (min(int(each), length) for each in starts[row, group : group + 2])
            yield batch, head, group, order[row, first:last].long()


def random_mask(patterns: int, seed: int = 0, slack: int = 0) -> BlockMask:
    """Token-exact ranges of tiles of 8 queries, some without any."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(patterns, -(-TOKENS // 8), TOKENS, generator=generator) < 0.4
    kept[:, 1] = False
    kept[-1, 2] = True
    mask = BlockMask.from_blocks(kept, 8, 1, TOKENS, TOKENS)
    return BlockMask(mask.offsets, torch.nn.functional.pad(mask.ranges, (0, 0, 0, slack)), 8, 8, TOKENS, TOKENS)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("rows", [1, HEADS, BATCH * HEADS])
def test_means_are_those_of_loops(rows: int, lengths: Tensor | None) -> None:
    states, (order, starts) = random_states(), random_groups(rows)
    if lengths is not None:
        states[1, order[-1, 31:].long(), -1] = float("nan")
    means = group_mean(states, starts, order=order, lengths=lengths)
    assert means.shape == (BATCH, 7, HEADS, HEAD_DIM) and means.dtype == torch.float32
    for batch, head, group, tokens in tokens_of_groups(order, starts, lengths):
        mean = states[batch, tokens, head].sum(0) / max(1, len(tokens))
        torch.testing.assert_close(means[batch, group, head], mean)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("rows", [1, HEADS, BATCH * HEADS])
def test_moments_are_those_of_loops(rows: int, lengths: Tensor | None) -> None:
    states, (order, starts) = random_states(), random_groups(rows)
    if lengths is not None:
        states[1, order[-1, 31:].long(), -1] = float("nan")
    means, variances = group_moments(states, starts, order=order, lengths=lengths)
    assert torch.equal(means, group_mean(states, starts, order=order, lengths=lengths))
    assert variances.shape == means.shape and variances.dtype == torch.float32
    for batch, head, group, tokens in tokens_of_groups(order, starts, lengths):
        expected = states[batch, tokens, head].double().var(0, correction=0) if len(tokens) else torch.zeros(8)
        torch.testing.assert_close(variances[batch, group, head], expected.float())


def test_variances_of_groups_far_from_zero() -> None:
    """A mean of squares less the square of the mean would be all rounding error."""
    starts = torch.tensor([[3, 20, 40]], dtype=torch.int32)
    near, far = (group_moments(random_states() / 64 + away, starts)[1] for away in (0, 1000))
    torch.testing.assert_close(far, near, rtol=0.05, atol=0)


def test_equal_groups_are_blocks() -> None:
    states, starts = random_states(), torch.tensor([[0, 16, 32, TOKENS]], dtype=torch.int32)
    for order in (None, random_groups(HEADS)[0]):
        expected = block_mean(states, 16, order=order, lengths=LENGTHS)
        torch.testing.assert_close(group_mean(states, starts, order=order, lengths=LENGTHS), expected)


@pytest.mark.parametrize("slack", [0, 50])
@pytest.mark.parametrize("lengths", [None, LENGTHS, LENGTHS[1:]])
@pytest.mark.parametrize("rows", [1, HEADS, BATCH * HEADS])
@pytest.mark.parametrize("patterns", [1, HEADS, BATCH * HEADS])
def test_what_a_mask_leaves_out(
    patterns: int, rows: int, lengths: Tensor | None, slack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One pattern at a time, so that pieces are put together rightly.
    monkeypatch.setattr(groups, "CHUNK", 1)
    mask, starts = random_mask(patterns, slack=slack), random_groups(rows)[1]
    left = left_out(mask, starts, lengths=lengths, heads=HEADS)
    lanes = BATCH * HEADS if lengths is not None and len(lengths) > 1 else max(patterns, rows)
    assert left.shape == (lanes, mask.tiles, 7)
    skipped = ~mask.to_dense()[:, ::8]
    for lane in range(lanes):
        valid = torch.arange(TOKENS) < (TOKENS if lengths is None else lengths[lane // HEADS % len(lengths)])
        for group in range(7):
            first, last = starts[lane % rows, group : group + 2].tolist()
            expected = (skipped[lane % patterns] & valid)[:, first:last].sum(1)
            assert torch.equal(left[lane, :, group].long(), expected)


def test_nothing_waits() -> None:
    mask, (order, starts) = random_mask(BATCH * HEADS).to("meta"), random_groups(BATCH * HEADS)

    def run(states: Tensor, order: Tensor, starts: Tensor, lengths: Tensor) -> None:
        with NoSync():
            group_moments(states, starts, order=order, lengths=lengths)
            left_out(mask, starts, lengths=lengths, heads=HEADS)

    on_meta(run, random_states(), order, starts, LENGTHS)


def test_refuses_what_does_not_fit() -> None:
    states, starts = random_states(), random_groups(2)[1]
    for bad in (starts, starts[:1].long(), starts[:1, :1]):
        with pytest.raises(ValueError, match=r"starts of groups are int32 \[1, 3 or 6, groups \+ 1\]"):
            group_mean(states, bad)
