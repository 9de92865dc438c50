"""What dense attention had beyond sparse attention is carried from one step to the next."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.compensation.base import Attention, Compensation, check_number
from vidaccel.mask import BlockMask
from vidaccel.plan import AttentionPlan
from vidaccel.site import Site

WHAT, STEP, RATIO, RESIDUAL = "what", "step", "ratio", "residual"
KEPT = 8


@dataclass(frozen=True)
class Residual(Compensation):
    """Re-ttention: the softmax's denominator and a residual are kept between steps that compute everything.

    At a refresh step a call is dense, and the same call by the plan tells the share of each row's denominator that the
    plan keeps, ``rho = exp(LSE of the plan - LSE of all)``, and the residual ``R = dense - rho * sparse``. Until the
    next, the output is ``min(1, rho + growth * steps since) * sparse + R``.

    R is as large as the output and has its type. Made for masks that stay the same between refresh steps: of a method
    that plans anew in between, `rho` and R belong to an older plan.

    Args:
        refresh: steps from one refresh to the next, at least 1; the first sparse step is one.
        growth: of `rho` per step, from 0 to 1.
        max_state_mb: megabytes that all layers of a denoiser may keep for one guidance branch; None is no limit.

    Raises:
        ValueError: a value out of range.
    """

    name: ClassVar[str] = "residual"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.22918"

    refresh: int = 5
    growth: float = 0.04
    max_state_mb: float | None = 8000.0

    def __post_init__(self) -> None:
        if isinstance(self.refresh, bool) or not isinstance(self.refresh, int) or self.refresh < 1:
            raise ValueError(f"refresh {self.refresh!r} is not a whole number of at least 1")
        check_number("growth", self.growth, most=1)
        if self.max_state_mb is not None:
            check_number("max_state_mb", self.max_state_mb)

    def attend(
        self, plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None, site: Site,
        state: dict[str, Any], attention: Attention,
    ) -> tuple[Tensor, AttentionPlan]:  # fmt: skip
        what = (query.shape, query.dtype, query.device)
        if state.get(WHAT) != what or site.step - state[STEP] >= self.refresh:
            # Let go before the new one is made.
            state.clear()
            # Again: by hand, or with gradients, none came before.
            self.check(query, site)
            state[WHAT], state[STEP] = what, site.step
            return self._refreshed(plan, state, attention)
        sparse = attention(plan)[0]
        ratio = (state[RATIO] + self.growth * (site.step - state[STEP])).clamp_(max=1)
        return torch.addcmul(state[RESIDUAL], sparse, _of_rows(ratio, sparse)), plan

    def _refreshed(
        self, plan: AttentionPlan, state: dict[str, Any], attention: Attention
    ) -> tuple[Tensor, AttentionPlan]:  # fmt: skip
        """The dense output, with what is to be kept of it."""
        full = _full_like(plan)
        out, all_keys = attention(full, return_lse=True)
        sparse, kept_keys = attention(plan, return_lse=True)
        assert all_keys is not None and kept_keys is not None
        # A row without any keys has no ratio, and nothing to make up for.
        state[RATIO] = (kept_keys - all_keys).exp_().nan_to_num_(0.0).clamp_(max=1)
        state[RESIDUAL] = torch.addcmul(out, sparse, _of_rows(state[RATIO], sparse), value=-1)
        return out, full

    def check(self, query: Tensor, site: Site) -> None:
        """Refuse what takes more memory than `max_state_mb`."""
        needed = state_bytes(query) * site.layers / 1e6
        if self.max_state_mb is not None and needed > self.max_state_mb:
            raise ValueError(
                f"compensation {self.name!r} would keep {needed:,.0f} MB in {site.layers} layers of "
                f"{site.expert or 'the model'} for each guidance branch, more than "
                f"max_state_mb={self.max_state_mb:g}: allow as much, or take 'centroid', which keeps next to nothing"
            )


def state_bytes(query: Tensor) -> int:
    """What `Residual` keeps of a call with such a query ``[batch, tokens, heads, head_dim]``: its output, and an fp32
    for each row of each head."""
    batch, tokens, heads, head_dim = query.shape
    return batch * tokens * heads * (head_dim * query.element_size() + 4)


def _of_rows(ratio: Tensor, states: Tensor) -> Tensor:
    """fp32 ``[batch, heads, tokens]`` to go with states, in their type: wider products would take twice the memory."""
    return ratio.transpose(1, 2)[..., None].to(states.dtype)


def _full_like(plan: AttentionPlan) -> AttentionPlan:
    mask = plan.mask
    assert mask is not None
    return _full(mask.queries, mask.keys, mask.query_block, mask.key_block, mask.ranges.device)


@functools.lru_cache(KEPT)
def _full(queries: int, keys: int, query_block: int, key_block: int, device: torch.device) -> AttentionPlan:
    """A plan that keeps everything, made once, as copying it to a GPU in each call would wait for it."""
    return AttentionPlan(BlockMask.full(queries, keys, query_block, key_block).to(device))
