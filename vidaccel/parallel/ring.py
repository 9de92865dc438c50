"""Attention by a plan where keys and values go round a ring of processes: Liu, Zaharia and Abbeel, arXiv 2310.01889.

Each rank has the queries, keys and values of its own stretch of the video, and all text. Its video queries meet one
stretch of keys after the other, each by the part of the plan that is about both, and the results are merged by their
log-sum-exp. Text queries stay with the keys at hand: their parts are gathered and merged in the order of the ranks, so
that every rank has the very same text, as in decoding over split keys (Tree Attention, arXiv 2408.04093).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vidaccel import kernels
from vidaccel.kernels import merge
from vidaccel.layout import TokenLayout
from vidaccel.parallel.course import Course, Part, course_of
from vidaccel.parallel.rows import Span
from vidaccel.parallel.split import Split
from vidaccel.plan import AttentionPlan

Partial = tuple[Tensor, Tensor]
"""Output ``[batch, rows, heads, head_dim]`` and log-sum-exp ``[batch, heads, rows]`` over some keys, both fp32."""
INSTEAD = "use ulysses_degree in place of ring_degree"


class Attention(Protocol):
    """What computes a part: `vidaccel.kernels.attention`, with its backend chosen."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, *, key_lengths: Tensor | None,
        return_lse: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Output like `query`, and fp32 log-sum-exp ``[batch, heads, queries]``."""


def ring_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, split: Split, layout: TokenLayout,
    key_lengths: Tensor | None, attention: Attention,
) -> Tensor:  # fmt: skip
    """This rank's rows of attention by `plan` over the keys of all ranks of a ring.

    Args:
        query, key, value: ``[batch, text before + own video + text after, heads, head_dim]``, after the Ulysses
            exchange: the video tokens of this rank's stretch, and the heads that its Ulysses rank has.
        plan: of these heads and the whole sequence; without a mask, dense attention.
        split: how the video is split.
        layout: the whole sequence.
        key_lengths: int ``[batch]``, valid keys of each row in the whole sequence; None where all are.
        attention: computes a part. What it is told of `key_lengths` is about that part.

    Returns:
        Output like `query`; the text in it is equal on all ranks of the ring.

    Raises:
        ValueError: a plan with orders or extra keys, or tensors that are no stretch of the sequence.
        RuntimeError: another process has gone.
    """
    if (reason := why_not(plan)) is not None:
        raise ValueError(f"a ring cannot compute this plan: {reason}")
    course = course_of(plan, split, layout, query.device)
    if query.shape[1] != course.tokens:
        raise ValueError(f"rank {split.ring.rank} of the ring has {course.tokens} tokens of {layout}, the call has "
                         f"{query.shape[1]}")  # fmt: skip
    video = slice(layout.text_before, course.tokens - layout.text_after)
    states = torch.stack([key[:, video], value[:, video]])
    run = functools.partial(_run, query=query, key_lengths=key_lengths, attention=attention)
    text = [run(part, keys=(key, value) if part.own else states) for part in course.text]
    out = functools.reduce(_merged, _round(course, split, (key, value), states, run))[0]
    return _joined([each.to(query.dtype) for each in (out, *_agreed(text, split))], layout)


def attention(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, *, split: Split, layout: TokenLayout,
    key_lengths: Tensor | None = None, return_lse: bool = False, precision: str | None = None,
    backend_name: str = "auto",
) -> tuple[Tensor, None]:  # fmt: skip
    """`ring_attention` in place of `vidaccel.kernels.attention`, whose other arguments these are.

    Raises:
        ValueError: also where the log-sum-exp is asked for.
    """
    if return_lse:
        raise ValueError("attention in a ring gives no log-sum-exp")
    part = functools.partial(kernels.attention, precision=precision, backend_name=backend_name)
    return ring_attention(query, key, value, plan, split, layout, key_lengths, part), None


def check_setting(method: str, static: bool, compensates: bool) -> None:
    """Refuse a setting that a ring cannot compute.

    Args:
        method: its name.
        static: whether its plans depend on the site alone.
        compensates: whether there is a compensation.

    Raises:
        ValueError: why not, and what to do instead.
    """
    if not static:
        raise ValueError(f"{method} plans from queries and keys, of which no process of a ring has all: {INSTEAD}, or "
                         "a static method, such as radial")  # fmt: skip
    if compensates:
        raise ValueError(f"a compensation needs the keys of the whole sequence, which no process of a ring has: "
                         f"{INSTEAD}, or leave compensation out")  # fmt: skip


def why_not(plan: AttentionPlan) -> str | None:
    """Why a plan cannot be computed in a ring, None where it can."""
    if plan.query_order is not None or plan.key_order is not None:
        return "it permutes the tokens, so that a process's stretch of the video is nowhere together in it"
    return None if plan.extra is None else "it has keys that stand for groups of others all over the sequence"


def check_plan(plan: AttentionPlan, where: str) -> None:
    """Refuse a plan that a ring cannot compute.

    Args:
        plan: of all heads or some.
        where: whose it is, in words.

    Raises:
        ValueError: why not, and what to do instead.
    """
    if (reason := why_not(plan)) is not None:
        raise ValueError(f"a ring of processes cannot compute {where}: {reason}. {INSTEAD.capitalize()}, or patterns "
                         "in the natural order of the tokens")  # fmt: skip


class Run(Protocol):
    """`_run` with the queries at hand."""

    def __call__(self, part: Part, *, keys: Sequence[Tensor] | Tensor) -> Partial:
        """A part's result over keys and values."""


def _run(
    part: Part, *, keys: Sequence[Tensor] | Tensor, query: Tensor, key_lengths: Tensor | None, attention: Attention
) -> Partial:
    """A part's result; zeros and ``-inf`` where it has no pair."""
    batch, _, heads, head_dim = query.shape
    rows = query[:, slice(*part.rows)]
    if part.plan is None:
        zeros = torch.zeros((batch, heads, rows.shape[1], head_dim + 1), dtype=torch.float32, device=query.device)
        return zeros[..., :-1].transpose(1, 2), zeros[..., -1] - torch.inf
    padded = torch.nn.functional.pad(rows, (0, 0, 0, 0, part.front, 0)) if part.front else rows
    lengths = None if key_lengths is None else _lengths(key_lengths, part.columns)
    out, found = attention(padded, keys[0], keys[1], part.plan, key_lengths=lengths, return_lse=True)
    assert found is not None
    return out[:, part.front :].float(), found[..., part.front :]


def _lengths(whole: Tensor, columns: Sequence[Span]) -> Tensor:
    """How many of some keys are valid, where the first so many of the whole sequence are."""
    return torch.stack([(whole - start).clamp(0, end - start) for start, end in columns]).sum(0, dtype=torch.int32)


def _round(course: Course, split: Split, own: tuple[Tensor, Tensor], states: Tensor, run: Run) -> Iterator[Partial]:
    """The results of this rank's video rows over the keys of each rank, while the next ones are on their way.

    Args:
        own: this rank's keys and values, text too.
        states: its video keys and values, ``[2, batch, tokens, heads, head_dim]``, which go round.
    """
    ring = split.ring
    for turn in range(ring.size):
        owner = (ring.rank - turn) % ring.size
        shape = (*states.shape[:2], course.sizes[owner - 1], *states.shape[3:])
        arriving = ring.pass_on(states, shape) if turn + 1 < ring.size else None
        part = course.video[owner]
        if part.plan is not None or turn == 0:
            yield run(part, keys=own if part.own else states)
        if arriving is not None:
            states = arriving()


def _merged(one: Partial, other: Partial) -> Partial:
    return merge(*one, *other)


def _agreed(text: Sequence[Partial], split: Split) -> list[Tensor]:
    """The outputs of text rows over the keys of all ranks, with the same bits on each."""
    if not text:
        return []
    packed = torch.cat([torch.cat([out, lse.transpose(1, 2)[..., None]], dim=3) for out, lse in text], dim=1)
    parts = split.ring.gather(packed[None], 0)
    found = [(part[..., :-1], part[..., -1].transpose(1, 2)) for part in parts]
    return list(functools.reduce(_merged, found)[0].split([out.shape[1] for out, _ in text], dim=1))


def _joined(outputs: Sequence[Tensor], layout: TokenLayout) -> Tensor:
    """Video, then text as it stands before and after it, as one sequence."""
    video, *text = outputs
    before = text[:1] if layout.text_before else []
    return torch.cat([*before, video, *text[len(before) :]], dim=1)
