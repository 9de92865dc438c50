"""What a plan skips enters the softmax through the means of groups of keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.compensation.base import Attention, Compensation, check_number
from vidaccel.plan import AttentionPlan, ExtraKeys
from vidaccel.planning.groups import group_mean, left_out
from vidaccel.planning.pool import block_mean
from vidaccel.site import Site

PLAN, BIAS = "plan", "bias"


@dataclass(frozen=True)
class Centroid(Compensation):
    """One more key and value for each group of keys, their means, with the bias ``log(n)``.

    n is the number of the group's tokens that a tile of queries does not attend to, padding never counted; a tile that
    attends to the whole group does not see its mean. Were a group's keys equal, and its values, the output would be
    dense attention's. Groups are those of the plan (`AttentionPlan.key_groups`, such as clusters), else every
    `key_block` keys of its key order. SVG-EAR does so with the clusters of Sparse VideoGen2.

    Means are made of each call's keys and values. The bias depends on the plan alone: fp32 ``[patterns, tiles,
    groups]``, 56 MB for 40 heads with masks of their own at 75,600 tokens and blocks of 128.

    Args:
        kept_mb: up to so many megabytes a bias is kept at a layer and branch, from the second call with one plan on;
            a larger one is made in each call. Padding may differ between calls: with it, nothing is kept.

    Raises:
        ValueError: `kept_mb` under 0.
    """

    name: ClassVar[str] = "centroid"

    kept_mb: float = 16.0

    def __post_init__(self) -> None:
        check_number("kept_mb", self.kept_mb)

    def attend(
        self, plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None, site: Site,
        state: dict[str, Any], attention: Attention,
    ) -> tuple[Tensor, AttentionPlan]:  # fmt: skip
        if plan.extra is not None:
            raise ValueError(f"compensation {self.name!r} is for plans without extra keys, and this one has some")
        keys, values = (group_means(plan, states, key_lengths).to(query.dtype) for states in (key, value))
        run = replace(plan, extra=ExtraKeys(keys, values, self._bias(plan, query, key_lengths, state)))
        return attention(run)[0], run

    def _bias(self, plan: AttentionPlan, query: Tensor, key_lengths: Tensor | None, state: dict[str, Any]) -> Tensor:
        """The bias of a plan; what serves one call only, as of a method that plans in each, is not kept."""
        again = state.get(PLAN) is plan
        if again and BIAS in state and key_lengths is None:
            kept: Tensor = state[BIAS]
            return kept
        state.clear()
        bias, state[PLAN] = bias_of(plan, key_lengths, query.shape[2]), plan
        if again and key_lengths is None and bias.nbytes <= self.kept_mb * 1e6:
            state[BIAS] = bias
        return bias


def group_means(plan: AttentionPlan, states: Tensor, lengths: Tensor | None) -> Tensor:
    """The mean of each group of a plan: fp32 ``[batch, groups, heads, head_dim]``."""
    assert plan.mask is not None
    if plan.key_groups is None:
        return block_mean(states, plan.mask.key_block, order=plan.key_order, lengths=lengths)
    return group_mean(states, plan.key_groups, order=plan.key_order, lengths=lengths)


def bias_of(plan: AttentionPlan, lengths: Tensor | None, heads: int) -> Tensor:
    """The logarithm of how many tokens of each group of a plan each tile skips: fp32 ``[patterns, tiles, groups]``."""
    mask, starts = plan.mask, plan.key_groups
    assert mask is not None
    if starts is None:
        device = mask.ranges.device
        starts = torch.arange(0, mask.keys + mask.key_block, mask.key_block, dtype=torch.int32, device=device)
        starts = starts.clamp_(max=mask.keys)[None]
    return left_out(mask, starts, lengths=lengths, heads=heads).log_()
