"""Patterns among which each head takes its own while the model runs: measured on sampled queries, picked on the device.

What the methods `svg` and `neighborhood` have in common.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import Pattern, plan_of
from vidaccel.plan import AttentionPlan
from vidaccel.planning.sampled import output_errors
from vidaccel.site import Site

KEPT = 16
LAYERS = 1 << 16
"""More than any model has."""
KEPT_CHOICE = "choice_kept"
"""Where a state says whether the last choice had been made for an earlier call; nothing where there is one plan."""
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class Candidates:
    """The plans of some patterns on one grid and device.

    Args:
        plans: one for each pattern, of a single mask each.
        every: their masks and orders one after the other, as if each were that of a head.
    """

    plans: tuple[AttentionPlan, ...]
    every: AttentionPlan

    def picked(self, index: Tensor | None, notes: tuple[str, ...] = ()) -> AttentionPlan:
        """The plan whose pattern ``i`` is candidate ``index[i]``, or the first for all where there is no index.

        Args:
            index: int64 ``[batch * heads]`` on the plans' device; nothing waits for it.
            notes: of the plan.
        """
        mask, order = self.every.mask, self.every.query_order
        assert mask is not None
        if index is None:
            return AttentionPlan(self.plans[0].mask, self.plans[0].query_order, self.plans[0].key_order, notes=notes)
        order = order if order is None or len(order) == 1 else order[index]
        return AttentionPlan(mask.pick(index), order, order, notes=notes)


@functools.lru_cache(KEPT)
def candidates(patterns: tuple[Pattern, ...], layout: TokenLayout, block: int, device: torch.device) -> Candidates:
    """The candidates of a grid on a device; made once, as copying them to a GPU in each call would wait for it.

    Args:
        patterns: all different, none of them `Dense`.
    """
    plans = tuple(plan_of([each], layout, block).to(device) for each in patterns)
    return Candidates(plans, plan_of(patterns, layout, block).to(device))


@dataclass(frozen=True)
class Sample:
    """Which queries are looked at, and how often.

    Args:
        rows: their number.
        limit: they are among the first so many video tokens; None is the whole clip.
        refresh: steps that a choice is kept for; None is the whole run.
    """

    rows: int
    limit: int | None = None
    refresh: int | None = 1

    def draw(self, site: Site, device: torch.device) -> Tensor:
        """The places of the queries in the sequence: int64 ``[rows]``, one from each of equal stretches of the video.

        Drawn anew for each layer and step; heads and guidance branches share them.
        """
        layout = site.layout
        tokens = min(self.limit or layout.video_tokens, layout.video_tokens)
        # Multiples of an irrational number, from a drawn start: made of numbers alone where the queries are, as a copy
        # from the CPU would wait for a GPU.
        start = random.Random(site.step * LAYERS + site.layer).random()
        stretch = torch.arange(self.rows, device=device)
        inside = (stretch * GOLDEN + start).frac()
        return layout.video_start + ((stretch + inside) * (tokens / self.rows)).long().clamp(max=tokens - 1)

    def chosen(
        self, plans: Sequence[AttentionPlan], query: Tensor, key: Tensor, value: Tensor, site: Site,
        state: dict[str, Any],
    ) -> Tensor | None:  # fmt: skip
        """For each head of each batch row the plan whose output is nearest to dense attention, measured or remembered.

        Returns:
            int64 ``[batch * heads]`` on the query's device; None where there is one plan to choose from.
        """
        if len(plans) < 2:
            return None
        what = (site.layout, query.shape, query.device)
        due = self.refresh is not None and site.step - state.get("step", site.step) >= self.refresh
        state[KEPT_CHOICE] = not due and state.get("what") == what
        if not state[KEPT_CHOICE]:
            state["index"] = least_error(plans, query, key, value, self.draw(site, query.device), site.layout)
            state["step"], state["what"] = site.step, what
        index: Tensor = state["index"]
        return index


def picked_by_head(
    patterns: Sequence[Pattern], state: dict[str, Any]
) -> tuple[dict[str, Any], ...] | None:  # fmt: skip
    """What each head of each batch row took among `patterns` in the last call, see `Method.heads_have`."""
    if len(patterns) < 2:
        return None
    return tuple(patterns[place].to_dict() for place in state["index"].tolist())


@torch.no_grad()
def least_error(
    plans: Sequence[AttentionPlan], query: Tensor, key: Tensor, value: Tensor, rows: Tensor, layout: TokenLayout
) -> Tensor:
    """The plan of least output error on some queries: int64 ``[batch * heads]``; nothing waits.

    Text after the video is left out: a part of it may be padding, and all plans keep the rest of it whole.
    """
    lengths = None
    if layout.text_after:
        lengths = torch.full((len(query),), layout.video_end, dtype=torch.int32, device=query.device)
    errors = output_errors(query, key, value, rows, plans, scale=query.shape[-1] ** -0.5, key_lengths=lengths)
    return errors.error.argmin(0).flatten()
