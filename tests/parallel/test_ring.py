"""Attention in a ring is attention: on plain tensors, with the ranks as threads of this process."""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.cases import Case, band, relative_error, scattered
from vidaccel import kernels
from vidaccel.kernels import quantise
from vidaccel.layout import TokenLayout
from vidaccel.parallel import course, ring
from vidaccel.parallel.split import Group, Split
from vidaccel.plan import AttentionPlan, BlockMask

SECONDS = 60
GRID = 5, 4, 7
"""140 video tokens, which neither 3 ranks nor a block of 16 divide."""


class Thread(Group):
    """A rank of a ring that is a thread: what it sends goes into the queue of another."""

    lines: list[queue.Queue[Tensor]]

    def pass_on(self, tensor: Tensor, shape: Sequence[int]) -> Callable[[], Tensor]:
        self.lines[(self.rank + 1) % self.size].put(tensor)

        def arrived() -> Tensor:
            came = self.lines[self.rank].get(timeout=SECONDS)
            assert came.shape == tuple(shape)
            return came

        return arrived

    def gather(self, tensor: Tensor, dim: int, sizes: Sequence[int] | None = None) -> Tensor:
        parts = [tensor]
        for _ in range(self.size - 1):
            parts.append(self.pass_on(parts[-1], tensor.shape)())
        return torch.cat([parts[(self.rank - each) % self.size] for each in range(self.size)], dim)


def _splits(ranks: int) -> list[Split]:
    lines: list[queue.Queue[Tensor]] = [queue.Queue() for _ in range(ranks)]
    groups = [Thread(rank, ranks) for rank in range(ranks)]
    for group in groups:
        object.__setattr__(group, "lines", lines)
    return [Split(Group(0, 1), group, group, anything=True) for group in groups]


def _bounds(split: Split, layout: TokenLayout) -> tuple[int, int]:
    sizes = course.stretches(split, layout)
    start = layout.video_start + sum(sizes[: split.ring.rank])
    return start, start + sizes[split.ring.rank]


def _local(states: Tensor, layout: TokenLayout, start: int, end: int) -> Tensor:
    return torch.cat([states[:, : layout.video_start], states[:, start:end], states[:, layout.video_end :]], dim=1)


def _ringed(
    inputs: Sequence[Tensor], plan: AttentionPlan, layout: TokenLayout, ranks: int,
    key_lengths: Tensor | None = None, attention: Any = None,
) -> Tensor:  # fmt: skip
    """The output of all ranks together; their text has the same bits."""
    attention = attention or functools.partial(kernels.attention, backend_name="cpu")

    def rank(split: Split) -> tuple[Tensor, Tensor, Tensor]:
        local = [_local(each, layout, *_bounds(split, layout)) for each in inputs]
        out = ring.ring_attention(*local, plan, split, layout, key_lengths, attention)
        assert out.shape == local[0].shape and out.dtype == local[0].dtype
        before, after = layout.text_before, out.shape[1] - layout.text_after
        return out[:, :before], out[:, before:after], out[:, after:]

    with ThreadPoolExecutor(ranks) as pool:
        before, video, after = zip(*pool.map(rank, _splits(ranks)), strict=True)
    assert all(torch.equal(each, before[0]) for each in before) and all(torch.equal(each, after[0]) for each in after)
    return torch.cat([before[0], *video, after[0]], dim=1)


def _inputs(layout: TokenLayout, batch: int = 2, heads: int = 2, head_dim: int = 16) -> Sequence[Tensor]:
    return torch.randn(3, batch, layout.tokens, heads, head_dim).unbind(0)


def _gaps(tokens: int) -> BlockMask:
    """Tiles without any key, and keys that no tile sees."""
    blocks = torch.eye(-(-tokens // 16), dtype=torch.bool)
    blocks[2] = blocks[3] = blocks[-1] = False
    return BlockMask.from_blocks(blocks[None], 16, 16, tokens, tokens)


LAYOUTS = {
    "video": TokenLayout(*GRID),
    "text after": TokenLayout(*GRID, text_after=21),
    "text before": TokenLayout(*GRID, text_before=13),
    "both": TokenLayout(*GRID, text_before=13, text_after=21),
}
MASKS: dict[str, Callable[[int], BlockMask]] = {
    "shared": lambda tokens: scattered(tokens, 16, 16, 0.3),
    "of heads": lambda tokens: scattered(tokens, 32, 16, 0.2, 2),
    "of rows and heads": lambda tokens: scattered(tokens, 16, 24, 0.2, 4),
    "band": lambda tokens: band(tokens, 16, 1),
    "gaps": _gaps,
}


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_ring_computes_every_pair_of_the_plan_once(
    mask: Callable[[int], BlockMask], layout: TokenLayout, ranks: int
) -> None:
    plan = AttentionPlan(mask(layout.tokens))
    assert plan.mask is not None
    whole = torch.zeros(plan.mask.patterns, layout.tokens, layout.tokens, dtype=torch.int)
    token = torch.arange(layout.tokens)
    for split in _splits(ranks):
        found = course.course_of(plan, split, layout, torch.device("cpu"))
        own = _local(token[None], layout, *_bounds(split, layout))[0]
        for part in (*found.video, *found.text):
            rows, columns = own[slice(*part.rows)], torch.cat([token[slice(*each)] for each in part.columns])
            if part.plan is not None and part.plan.mask is not None:
                whole[:, rows[:, None], columns] += part.plan.mask.to_dense()[:, part.front :].int()
    assert torch.equal(whole, plan.mask.to_dense().int())


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_sparse_attention(mask: Callable[[int], BlockMask], layout: TokenLayout, ranks: int) -> None:
    inputs, plan = _inputs(layout), AttentionPlan(mask(layout.tokens))
    expected, _ = kernels.attention(*inputs, plan, backend_name="reference")
    found = _ringed(inputs, plan, layout, ranks)
    assert relative_error(found, expected) < 1e-6 and bool(found.isfinite().all())


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_dense_attention(layout: TokenLayout) -> None:
    inputs = _inputs(layout)
    heads_first = [each.transpose(1, 2) for each in inputs]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)
    assert relative_error(_ringed(inputs, AttentionPlan(), layout, 3), expected) < 1e-6


@pytest.mark.parametrize("plan", [AttentionPlan(BlockMask.full(161, 161)), AttentionPlan(scattered(161, 16, 16, 0.4))])
def test_padded_text_at_the_end_is_hidden(plan: AttentionPlan) -> None:
    layout, lengths = LAYOUTS["text after"], torch.tensor([143, 161])
    inputs = _inputs(layout)
    expected, _ = kernels.attention(*inputs, plan, key_lengths=lengths, backend_name="reference")
    for each in inputs[1:]:
        each[0, 143:] = torch.nan
    assert relative_error(_ringed(inputs, plan, layout, 3, lengths), expected) < 1e-6


def test_valid_keys_that_end_in_a_stretch_of_the_video() -> None:
    layout, lengths = LAYOUTS["video"], torch.tensor([31, 97])
    inputs, plan = _inputs(layout), AttentionPlan(scattered(140, 16, 16, 0.5))
    expected, _ = kernels.attention(*inputs, plan, key_lengths=lengths, backend_name="reference")
    assert relative_error(_ringed(inputs, plan, layout, 4, lengths), expected) < 1e-6


def test_the_same_plan_again_is_not_cut_again() -> None:
    layout, split = LAYOUTS["both"], _splits(3)[1]
    plan, device = AttentionPlan(scattered(layout.tokens, 16, 16, 0.3)), torch.device("cpu")
    assert course.course_of(plan, split, layout, device) is course.course_of(plan, split, layout, device)
    again = course.course_of(AttentionPlan(), split, layout, device)
    assert again is course.course_of(AttentionPlan(), split, layout, device)
    known = len(course._COURSES)
    del plan
    assert len(course._COURSES) == known - 1, "a plan that is gone leaves nothing behind"


def test_stretches_that_a_plan_leaves_out_are_not_computed() -> None:
    layout, calls = TokenLayout(8, 4, 8), []

    def counting(*args: Any, **options: Any) -> Any:
        calls.append(args[1].shape[1])
        return kernels.attention(*args, backend_name="cpu", **options)

    inputs, plan = _inputs(layout, 1), AttentionPlan(band(256, 16, 1))
    expected, _ = kernels.attention(*inputs, plan, backend_name="reference")
    assert relative_error(_ringed(inputs, plan, layout, 4, attention=counting), expected) < 1e-6
    # Each rank its own stretch and those beside it: 4 + 2 * 3 of 16.
    assert calls == [64] * 10


def test_short_types_are_merged_in_fp32() -> None:
    layout = LAYOUTS["both"]
    inputs = [each.bfloat16() for each in _inputs(layout)]
    plan = AttentionPlan(scattered(layout.tokens, 16, 16, 0.5))
    exact, _ = kernels.attention(*(each.float() for each in inputs), plan, backend_name="reference")
    one, _ = kernels.attention(*inputs, plan, backend_name="cpu")
    assert relative_error(_ringed(inputs, plan, layout, 4), exact) < 1.5 * relative_error(one, exact)


@pytest.mark.parametrize("precision", quantise.PRECISIONS)
def test_fewer_bits(precision: str) -> None:
    """Each stretch of keys has a mean of its own, which the log-sum-exp makes up for."""
    layout = LAYOUTS["text after"]
    query, key, value = _inputs(layout, head_dim=64)
    key[:, :70] += 3.0
    plan = AttentionPlan(scattered(layout.tokens, 16, 16, 0.5))
    exact, _ = kernels.attention(query, key, value, plan, backend_name="reference")
    coarse = functools.partial(kernels.attention, backend_name="reference", precision=precision)
    one, _ = coarse(query, key, value, plan)
    found = _ringed((query, key, value), plan, layout, 3, attention=coarse)
    assert 0 < relative_error(found, exact) < 1.5 * relative_error(one, exact)


def test_plans_that_a_ring_cannot_compute_say_why() -> None:
    layout, split = LAYOUTS["video"], _splits(2)[0]
    inputs = _inputs(layout)
    permuted = Case(scattered(140, 16, 16, 0.3), key_rows=1).plan()
    more = Case(scattered(140, 16, 16, 0.3), batch=2, groups=3).plan()
    for plan, reason in ((permuted, "permutes the tokens"), (more, "stand for groups")):
        assert ring.why_not(plan) is not None
        with pytest.raises(ValueError, match=reason):
            ring.ring_attention(*inputs, plan, split, layout, None, kernels.attention)
    assert ring.why_not(AttentionPlan()) is None and ring.why_not(AttentionPlan(band(140, 16, 1))) is None


def test_a_call_that_is_no_stretch_is_refused() -> None:
    layout, split = LAYOUTS["text after"], _splits(2)[0]
    with pytest.raises(ValueError, match="rank 0 of the ring has 91 tokens of .*, the call has 161"):
        ring.ring_attention(*_inputs(layout), AttentionPlan(), split, layout, None, kernels.attention)
