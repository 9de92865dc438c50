"""The attention calls of a run: each decided, computed and counted. What sessions and `sparse_attention` share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vidaccel import debug, kernels
from vidaccel.costs import default_for
from vidaccel.layout import TokenLayout
from vidaccel.methods.base import COMMON
from vidaccel.parallel import ring
from vidaccel.parallel.split import Split
from vidaccel.plan import AttentionPlan
from vidaccel.schedule import StepPlan
from vidaccel.setting import Setting
from vidaccel.site import Observed, Observer, Site
from vidaccel.statics import StaticPlans, expected
from vidaccel.summary import Tally

LAYOUTS_KEPT = 8
FIRST_STEPS = "in first steps"
Dense = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Dense attention: of query, key, value and key lengths."""


@dataclass(frozen=True)
class Spot:
    """What is known of an attention call before its tensors are there.

    Args:
        site: where it happens.
        plan: which steps and layers of its run are dense.
        like: an empty query of one token, ``[1, 1, heads, head_dim]``, of the call's type and on its device; of all
            heads, those included that are with other processes.
        split: of a clip whose keys and values go round a ring of processes; None where all are here.
    """

    site: Site
    plan: StepPlan
    like: Tensor
    split: Split | None = None

    @property
    def device(self) -> torch.device:
        """Where the call is computed."""
        return self.like.device

    @property
    def shape(self) -> tuple[int, int]:
        """Heads and head dim."""
        return self.like.shape[2], self.like.shape[3]


class Calls:
    """Decides, computes and counts the attention calls of one setting; holds all that a run leaves behind.

    Static plans are made once. What a method or a compensation remembers is kept per expert, guidance branch and layer,
    until `forget`.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.tally = Tally()
        self.state: dict[tuple[str, str, str, int], dict[str, Any]] = {}
        self.observer: Observer | None = None
        """Told of every call, if there is one."""
        # Per instance, so that the caches die with it.
        self.statics_of = functools.lru_cache(LAYOUTS_KEPT)(self._new_statics)
        self._backend_for = functools.lru_cache(LAYOUTS_KEPT)(self._choose_backend)

    def forget(self) -> None:
        """Begin a run: nothing is remembered of the last but static plans, and nothing counted."""
        self.state.clear()
        self.tally = Tally()

    def attend(
        self, spot: Spot, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None,
        dense: Dense,
    ) -> tuple[Tensor, str]:  # fmt: skip
        """One call.

        Args:
            spot: where it happens.
            query, key, value: ``[batch, tokens, heads, head_dim]``.
            key_lengths: int ``[batch]``, valid keys of each row; None where all are.
            dense: computes it in full, given these tensors; see `dense`.

        Returns:
            The output, and how it came about in words.
        """
        reason, site, method = self.why_dense(spot), spot.site, self.setting.method
        if reason is None:
            plan = self._plan(site, query, key, value)
            if plan.mask is not None:
                out, ran = self._sparse(spot, plan, query, key, value, key_lengths)
                known = method.static and ran is plan
                self.count_sparse(self.statics(site).made(site) if known else ran, spot)
                how = f"sparse by {method.name}, precision {self.setting.precision or query.dtype}"
                self._tell(site, ran, query, key, value, key_lengths, how, planned=True)
                return out, how
        elif self.observes(reason, spot):
            method.observe(query, key, value, site, self.remembered(site))
        out, how = dense(query, key, value, key_lengths), f"dense {self.count_dense(reason, spot)}"
        self._tell(site, AttentionPlan(), query, key, value, key_lengths, how, planned=reason is None)
        return out, how

    def check_ahead(self, spot: Spot, queries: Callable[[], Tensor] | None) -> None:
        """Refuse what cannot be, before the dense steps at the start of a run are spent.

        Args:
            spot: of the last layer, in the step at hand.
            queries: makes an empty tensor like the queries of its calls; None does not ask the compensation.

        Raises:
            ValueError: a plan that cannot be made, a grid or calls that the setting cannot serve.
        """
        method, site, least = self.setting.method, spot.site, self.setting.min_tokens or 0
        if not method.static:
            method.check_site(site)
        elif site.layout.tokens >= least:
            self.statics(site).made(site)
        if self.setting.compensation is None or queries is None:
            return
        site = replace(site, step=max(site.step, spot.plan.first_step))
        whole = method.static and self.statics(site).made(site).mask is None
        if not whole and self.why_dense(replace(spot, site=site)) is None:
            self.setting.compensation.check(queries(), site)

    def check_ring(self, sites: Iterable[Site]) -> None:
        """Refuse what cannot be computed where keys and values go round a ring of processes.

        Args:
            sites: that the schedule leaves to the method.

        Raises:
            ValueError: what, why, and what to do instead.
        """
        setting = self.setting
        ring.check_setting(setting.method.name, setting.method.static, setting.compensation is not None)
        for site in sites:
            if site.layout.tokens >= (setting.min_tokens or 0):
                where = f"{setting.method.name} in layer {site.layer} of {site.expert} at step {site.step}"
                ring.check_plan(self.statics(site).made(site), where)

    def dense(self, spot: Spot, stock: Dense) -> Dense:
        """What computes a dense call: the stock function, unless only a part of the keys is here.

        Args:
            spot: where the call happens.
            stock: given query, key, value and key lengths.
        """
        if spot.split is None:
            return stock
        run = functools.partial(self._kernel(spot), backend_name=self.setting.backend)
        return lambda query, key, value, lengths: run(query, key, value, AttentionPlan(), key_lengths=lengths)[0]

    def _kernel(self, spot: Spot) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """`kernels.attention`, or what stands for it where only a part of the keys is here."""
        if spot.split is None:
            return kernels.attention
        return functools.partial(ring.attention, split=spot.split, layout=spot.site.layout)

    def check_finite(self, out: Tensor, query: Tensor, key: Tensor, value: Tensor, site: Site, how: str) -> None:
        """Refuse an output that is not finite, if the setting asks to look.

        Raises:
            FloatingPointError: where it came about.
        """
        if self.setting.check_finite:
            where = f"layer {site.layer} of {site.expert} at step {site.step} ({site.branch}, {how})"
            debug.check_finite(out, query, key, value, where)

    def why_dense(self, spot: Spot) -> str | None:
        """Why a call is dense whatever the method would plan; None where it is left to the method."""
        site, plan, least = spot.site, spot.plan, self.setting.min_tokens
        if least is not None and site.layout.tokens < least:
            self.tally.note(f"calls of {site.layout.tokens} tokens stay dense: fewer than min_tokens={least}")
            return "under min_tokens"
        if site.layer < plan.first_layer:
            return "in first layers"
        if site.step < plan.first_step:
            return FIRST_STEPS
        if not plan.is_sparse(site.step, site.layer):
            return "in last steps"
        return None if least == 0 else self._why_slower(spot)

    def _why_slower(self, spot: Spot) -> str | None:
        """Why a call would take longer sparse than dense; the plans of other than static methods are not known yet."""
        method, costs, site = self.setting.method, self.setting.costs or default_for(spot.device), spot.site
        heads, head_dim = spot.shape
        if not method.static:
            share = costs.share(expected(method, site), heads=heads, head_dim=head_dim)
        elif self.statics(site).made(site).mask is not None:
            share = self.statics(site).share(site, costs, heads, head_dim)
        else:
            return None
        if share < 1:
            return None
        self.tally.note_slower(share, costs.source)
        return "by the cost model"

    def observes(self, reason: str | None, spot: Spot) -> bool:
        """Whether the method learns from a call that is dense for `reason`: later ones of the layer will be sparse."""
        method = self.setting.method
        if reason != FIRST_STEPS or not spot.plan.any_sparse or method.static or not method.observes:
            return False
        return self.setting.min_tokens == 0 or self._why_slower(spot) is None

    def _tell(
        self, site: Site, plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None,
        how: str, planned: bool,
    ) -> None:  # fmt: skip
        """Tell the observer of a call; `planned` where the method, and not the schedule, decided it."""
        if self.observer is not None:
            heads = self.setting.method.heads_have(site, self.remembered(site)) if planned else None
            self.observer(Observed(site, plan, query, key, value, key_lengths, how, heads))

    def remembered(self, site: Site, whose: str = "method") -> dict[str, Any]:
        """What the method, or the compensation, remembers at a site; in it what all branches have in common."""
        state = self.state.setdefault((whose, site.expert, site.branch, site.layer), {})
        state[COMMON] = self.state.setdefault((whose, site.expert, COMMON, site.layer), {})
        return state

    def statics(self, site: Site) -> StaticPlans:
        """The static plans of a site's layout and number of steps."""
        return self.statics_of(site.layout, site.steps)

    def loads(self, site: Site, plan: StepPlan, heads: int, run: Iterable[int]) -> list[float] | None:
        """What each head of a layer costs over a run, where that is known before it; see `StaticPlans.loads`.

        Args:
            site: in some step.
            plan: which steps are sparse.
            heads: of all processes.
            run: its steps.
        """
        method = self.setting.method
        if site.layout.tokens < (self.setting.min_tokens or 0):
            return None
        sites = [replace(site, step=step) for step in run if plan.is_sparse(step, site.layer)]
        every = [self.statics(each).loads(each, heads) if method.static else method.head_costs(each) for each in sites]
        known = [costs for costs in every if costs is not None]
        return [sum(costs) for costs in zip(*known, strict=True)] if known else None

    def count_sparse(self, plan: AttentionPlan, spot: Spot) -> None:
        """Count a sparse call; the plan may be on another device."""
        backend = self._backend_for(spot.like.shape, spot.like.dtype, spot.device)
        self.tally.count_sparse(plan, plan.densities(spot.site.layout), backend)
        self._record(plan, spot)

    def count_dense(self, reason: str | None, spot: Spot) -> str:
        """Count a dense call, None being the method's own plan; the reason in words."""
        words = reason or f"as {self.setting.method.name} planned"
        self.tally.count_dense(words, planned=reason is None)
        if reason is None:
            self._record(AttentionPlan(), spot, whole=True)
        return words

    def _record(self, plan: AttentionPlan, spot: Spot, whole: bool = False) -> None:
        # Static plans are known of all heads, others of those that are here.
        here = spot.shape[0] if self.setting.method.static or spot.site.heads is None else len(spot.site.heads.own)
        self.tally.record(spot.site, plan.video_densities(spot.site.layout), here, whole)

    def _plan(self, site: Site, query: Tensor, key: Tensor, value: Tensor) -> AttentionPlan:
        method = self.setting.method
        if method.static:
            return self.statics(site).on(site, query.device)
        plan = method.plan(query, key, value, site, self.remembered(site))
        self.tally.count_plan(method.reused(self.remembered(site)))
        return plan

    def _sparse(
        self, spot: Spot, plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None
    ) -> tuple[Tensor, AttentionPlan]:
        """The output of a sparse call, and the plan that ran."""
        setting, site = self.setting, spot.site
        run = functools.partial(self._kernel(spot), query, key, value, key_lengths=key_lengths,
                                backend_name=setting.backend)  # fmt: skip

        def attention(plan: AttentionPlan, return_lse: bool = False) -> tuple[Tensor, Tensor | None]:
            return run(plan, return_lse=return_lse, precision=setting.precision)

        if setting.compensation is None:
            out = attention(plan)[0]
        else:
            state = self.remembered(site, "compensation")
            out, plan = setting.compensation.attend(plan, query, key, value, key_lengths, site, state, attention)
        if setting.precision is not None and (site.expert, site.layer) not in self.tally.errors:
            # Once per layer and run: the same call in the inputs' own type.
            self.tally.errors[site.expert, site.layer] = debug.relative_error(out, run(plan)[0])
        return out, plan

    def _new_statics(self, layout: TokenLayout, steps: int | None) -> StaticPlans:
        # The number of steps is part of a site: as part of the key, plans of old ones are dropped too.
        return StaticPlans(self.setting.method, layout)

    def _choose_backend(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> str:
        like = torch.empty(shape, dtype=dtype, device=device)
        return kernels.choose(self.setting.backend, like, self.setting.precision)
