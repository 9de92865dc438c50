"""What one process of a ring computes by a plan: for its own query rows, what is kept of each stretch of keys."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from weakref import WeakKeyDictionary

import torch

from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.parallel.rows import Span, cut_columns, cut_rows, front_of
from vidaccel.parallel.split import Split
from vidaccel.plan import AttentionPlan

WHOLE_KEPT = 8
"""Lengths of sequences whose dense plans are kept."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some of a rank's query rows and some keys.

    Args:
        rows: of the rank's own tokens.
        front: rows of padding before them that whole tiles need.
        columns: the keys, of the whole sequence.
        own: whether they are all that the rank has, text too.
        plan: what is computed; None where the plan keeps no pair of these.
    """

    rows: Span
    front: int
    columns: tuple[Span, ...]
    own: bool
    plan: AttentionPlan | None


@dataclass(frozen=True, eq=False)
class Course:
    """What a rank computes in one call.

    Args:
        tokens: that it has.
        sizes: video tokens of each rank of the ring.
        video: the parts of its video rows, by the rank whose video keys they are over.
        text: the parts of the text rows, over its own video keys; over those of all text, too, at rank 0.
    """

    tokens: int
    sizes: tuple[int, ...]
    video: tuple[Part, ...]
    text: tuple[Part, ...]


# Weak, so that it keeps no plan alive.
_COURSES: WeakKeyDictionary[AttentionPlan, dict[tuple[object, ...], Course]] = WeakKeyDictionary()


def stretches(split: Split, layout: TokenLayout) -> tuple[int, ...]:
    """Video tokens that each rank of the ring has after the Ulysses exchange.

    Raises:
        ValueError: as `Split.sizes`.
    """
    sizes, wide = split.sizes(layout.video_tokens), split.ulysses.size
    return tuple(sum(sizes[first : first + wide]) for first in range(0, len(sizes), wide))


def course_of(plan: AttentionPlan, split: Split, layout: TokenLayout, device: torch.device) -> Course:
    """What this rank computes by a plan of one mask alone, or none: cut once, and kept as long as the plan lives.

    Raises:
        ValueError: as `Split.sizes`.
    """
    plan = _whole(layout.tokens) if plan.mask is None else plan
    sizes = stretches(split, layout)
    known, key = _COURSES.setdefault(plan, {}), (layout, sizes, split.ring.rank, device)
    if key not in known:
        assert plan.mask is not None
        known[key] = _cut(plan.mask, layout, sizes, split.ring.rank, device)
    return known[key]


@functools.lru_cache(WHOLE_KEPT)
def _whole(tokens: int) -> AttentionPlan:
    """Dense attention as a plan with a mask: of a dense call, too, the log-sum-exp is needed."""
    return AttentionPlan(BlockMask.full(tokens, tokens))


def _cut(mask: BlockMask, layout: TokenLayout, sizes: Sequence[int], rank: int, device: torch.device) -> Course:
    ends = list(accumulate(sizes, initial=layout.video_start))
    video, text = list(pairwise(ends)), _text(layout)
    own = tuple(sorted([video[rank], *text]))
    at, tokens = 0, dict[Span, Span]()
    for start, end in own:
        tokens[start, end] = at, at + end - start
        at += end - start

    def parts(rows: Span, *columns: tuple[Span, ...]) -> Iterator[Part]:
        cut = cut_rows(mask, rows)
        for each in columns:
            kept = cut_columns(cut, each)
            plan = AttentionPlan(kept.to(device)) if len(kept.ranges) else None
            yield Part(tokens[rows], front_of(mask, rows), each, each == own, plan)

    by_rank = [own if each == rank else (span,) for each, span in enumerate(video)]
    # Each key once: those of the text are the first rank's.
    of_text = [part for rows in text for part in parts(rows, own if rank == 0 else (video[rank],))]
    return Course(at, tuple(sizes), tuple(parts(video[rank], *by_rank)), tuple(of_text))


def _text(layout: TokenLayout) -> list[Span]:
    """Where text stands in the sequence."""
    spans = [(0, layout.video_start), (layout.video_end, layout.tokens)]
    return [span for span in spans if span[0] < span[1]]
