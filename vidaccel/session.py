"""Enable and disable: the session owns the clock, the patch and all state of one pipeline; nothing is global."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidaccel import debug, kernels
from vidaccel.caching import time_scale
from vidaccel.caching.passes import Arrival
from vidaccel.caching.runtime import Runtime
from vidaccel.caching.signals import twice
from vidaccel.clock import Clock
from vidaccel.costs import default_for
from vidaccel.kernels import op
from vidaccel.layout import TokenLayout
from vidaccel.methods.base import COMMON
from vidaccel.patched import Expert, Layer
from vidaccel.pipelines import family_of
from vidaccel.pipelines.adapters import adapters
from vidaccel.pipelines.base import Call, Family, Mode
from vidaccel.plan import AttentionPlan
from vidaccel.setting import Moment, Setting
from vidaccel.site import Site
from vidaccel.statics import StaticPlans, expected, expected_density
from vidaccel.summary import Summary, Tally

ATTRIBUTE = "_vidaccel_session"
"""Where a patched transformer keeps its session."""
LAYOUTS_KEPT = 8
FIRST_STEPS = "in first steps"


class Session:
    """Sparse attention on one pipeline or transformer, from `attach` to `detach`; also a context manager.

    Made by `vidaccel.enable`. Static plans are made once; what a method remembers is kept per expert, guidance branch
    and layer, and is dropped when a new generation begins.
    """

    def __init__(self, owner: Any, experts: dict[str, nn.Module], setting: Setting) -> None:
        self.setting = setting
        self.runs = 0
        self._owner = weakref.ref(owner)
        self._modules = experts
        self._clock = Clock(setting.steps)
        self._moment: Moment | None = None
        self._tally = Tally()
        self._state: dict[tuple[str, str, str, int], dict[str, Any]] = {}
        self._experts: list[Expert] = []
        self._hooks: list[Any] = []
        self._halves = False
        self._runtime = None if setting.cache is None else Runtime(setting.cache)
        # Per instance, so that the caches die with the session.
        self._statics_of = functools.lru_cache(LAYOUTS_KEPT)(self._new_statics)
        self._backend_on = functools.lru_cache(LAYOUTS_KEPT)(self._choose_backend)
        if not hasattr(owner, "scheduler"):
            setting.method.check_steps(setting.steps)
        if setting.cache is not None and setting.cache.policy.adjusts:
            time_scale.check(getattr(owner, "scheduler", None))

    @property
    def family(self) -> Family:
        """The family of the patched model."""
        return family_of(next(iter(self._modules.values())))

    def attach(self) -> None:
        """Patch every expert; on an error nothing stays patched.

        Raises:
            ValueError: an attention layer has a processor that is not the family's own.
        """
        try:
            for name, transformer in self._modules.items():
                self._attach(Expert(self, name, transformer, self.setting.sparse))
        except BaseException:
            self.detach()
            raise

    def _attach(self, expert: Expert) -> None:
        self._experts.append(expert)
        for layer in expert.layers:
            layer.patch()
        # Never compiled: a compiler then guards on the modes that the hook sets, one graph for each.
        hook = torch.compiler.disable(expert.before_forward)
        self._hooks.append(expert.transformer.register_forward_pre_hook(hook, with_kwargs=True))
        if self._runtime is not None:
            self._runtime.attach(expert.transformer, expert.family)
        setattr(expert.transformer, ATTRIBUTE, self)

    def detach(self) -> None:
        """Undo everything that `attach` did; harmless when there is nothing to undo."""
        for hook in self._hooks:
            hook.remove()
        if self._runtime is not None:
            self._runtime.detach()
        for layer in (layer for expert in self._experts for layer in expert.layers):
            layer.restore()
        for transformer in self._modules.values():
            if transformer.__dict__.get(ATTRIBUTE) is self:
                delattr(transformer, ATTRIBUTE)
        self._hooks, self._experts, self._state, self._moment = [], [], {}, None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def summary(self) -> Summary:
        """The setting and what the last run did."""
        setting, runtime = self.setting, self._runtime
        cache = None if setting.cache is None else setting.cache.to_dict()
        if runtime is not None:
            self._tally.spared = runtime.log.spared
        return Summary(
            self.family.name, setting.method.name, dataclasses.asdict(setting.method),  # type: ignore[call-overload]
            dataclasses.asdict(setting.schedule), setting.min_tokens, setting.backend, setting.precision, self.runs,
            self._tally, setting.compensation.to_dict() if setting.compensation is not None else None, cache,
            None if runtime is None else runtime.log,
        )  # fmt: skip

    def begin(self, expert: Expert, call: Call) -> None:
        """Take note of a transformer call: its run, step and guidance branch, and how each layer attends in it."""
        layout, timestep = expert.family.layout(expert.transformer, call), expert.family.timestep(call)
        if self._clock.read(timestep, getattr(self._owner(), "scheduler", None)):
            self._begin_run()
        self.setting.method.check_steps(self._clock.steps)
        plan = self.setting.schedule.resolve(self._clock.steps, len(expert.layers), self.setting.computed)
        branches, branch = expert.family.branches, self._clock.calls
        name = branches[branch] if branch < len(branches) else f"pass{branch}"
        self._moment = Moment(expert.name, name, self._clock.step, layout, plan)
        self._tally.layout, self._tally.steps = layout, self._clock.steps
        if expert.layers:
            self._check_plans(expert, call, layout, timestep.device)
        if self._runtime is None or not self._caches(self._runtime.cache.min_steps):
            self._prepare(expert, timestep.device, range(len(expert.layers)))
        else:
            arrival = self._arrival(expert, call, float(timestep.max()), timestep.device)
            self._runtime.begin(arrival, expert.transformer, expert.family)

    def _check_plans(self, expert: Expert, call: Call, layout: TokenLayout, device: torch.device) -> None:
        """Refuse what cannot be, before the dense steps at the start are spent."""
        if self.setting.method.static and layout.tokens >= (self.setting.min_tokens or 0):
            # A plan that cannot be made should fail before the first step, not after the dense ones.
            self._statics.made(self._site(expert.layers[-1]))
        elif not self.setting.method.static:
            self.setting.method.check_site(self._site(expert.layers[-1]))
        self._check(expert, call, device)

    def _prepare(self, expert: Expert, device: torch.device, blocks: Sequence[int]) -> None:
        """Tell the layers of some blocks, which are about to run, how to attend."""
        for index in blocks if expert.layers else ():
            expert.layers[index].processor.mode = self._mode(expert.layers[index], device)

    def _caches(self, least: int) -> bool:
        """Whether this call is the cache's affair."""
        steps = self._clock.steps
        if steps is not None and steps < least:
            self._tally.note(f"{steps} steps leave little to cache, so that all are computed: fewer than "
                             f"min_steps={least}")  # fmt: skip
            return False
        return not torch.is_grad_enabled()

    def _arrival(self, expert: Expert, call: Call, timestep: float, device: torch.device) -> Arrival:
        """This transformer call as the cache sees it."""
        assert self.setting.cache is not None
        now, clock = self._now, self._clock
        sparse = bool(expert.layers) and now.plan.sparse_step(now.step)
        level, allowance = None, 1.0
        if sparse:
            site = self._site(expert.layers[-1])
            level, allowance = self.setting.method.level(site), self.setting.cache.allowance(self._expected(site))
        if now.step == 0 and expert.family.batched_guidance:
            # Known by what the call is, not by the pipeline's guidance scale, which may change over the run.
            self._halves = twice(call.get("hidden_states", 0))
        return Arrival(
            now.expert, now.branch, clock.calls, now.step, clock.steps, timestep, clock.timesteps,
            now.plan.may_reuse(now.step), (sparse, level, adapters(expert.transformer, call)), sparse, allowance,
            0.5 if self._halves else 0.0, call, functools.partial(self._prepare, expert, device),
        )  # fmt: skip

    def _expected(self, site: Site) -> float:
        """The density that sparse calls at a site are expected to have."""
        method = self.setting.method
        return self._statics.density(site) if method.static else expected_density(method, site)

    def _begin_run(self) -> None:
        self._state.clear()
        self._tally = Tally()
        if self._runtime is not None:
            self.setting.check_calibration(self._owner(), self._clock.steps)
            self._halves = False
            self._runtime.begin_run(getattr(self._owner(), "scheduler", None), self._clock.steps)
        self.runs += 1

    def _check(self, expert: Expert, call: Call, device: torch.device) -> None:
        """Let the compensation refuse sparse calls to come, before the dense steps at the start are spent."""
        compensation, site = self.setting.compensation, self._site(expert.layers[-1])
        # With gradients a layer may leave its calls to the stock processor.
        if compensation is None or torch.is_grad_enabled():
            return
        site = dataclasses.replace(site, step=max(site.step, self._now.plan.first_step))
        whole = self.setting.method.static and self._statics.made(site).mask is None
        if not whole and self._why_dense(site, device) is None:
            compensation.check(expert.family.queries(expert.transformer, call, site.layout), site)

    def _mode(self, layer: Layer, device: torch.device) -> Mode:
        """How a layer attends in this transformer call, as far as that is known before it."""
        # With gradients a processor may leave the call to the stock one: only what then arrives is counted.
        if self.setting.check_finite or torch.is_grad_enabled():
            return Mode.BY_HANDLE
        site = self._site(layer)
        reason = self._why_dense(site, device)
        if reason is None:
            setting = self.setting
            if not setting.method.static or setting.precision is not None or setting.compensation is not None:
                return Mode.BY_HANDLE
            plan = self._statics.on(site, device)
            if plan.extra is not None:
                return Mode.BY_HANDLE
            if plan.mask is not None:
                layer.processor.plan, layer.processor.backend = op.arguments(plan), self.setting.backend
                self._count_sparse(self._statics.made(site), site, device)
                return Mode.STATIC
        if self._observes(reason, site, device):
            return Mode.BY_HANDLE
        self._count_dense(reason, site)
        return Mode.DENSE

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None) -> Tensor:
        """One attention call of a layer in `Mode.BY_HANDLE`, ``[batch, tokens, heads, head_dim]``.

        Raises:
            RuntimeError: the layer runs outside its transformer's forward.
            FloatingPointError: the output is not finite, and the user asked to look.
        """
        self._check_place(layer, query)
        out, how = self._attend(layer, query, key, value, key_lengths)
        if self.setting.check_finite:
            moment = self._now
            where = f"layer {layer.index} of {moment.expert} at step {moment.step} ({moment.branch}, {how})"
            debug.check_finite(out, query, key, value, where)
        return out

    def _attend(
        self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None
    ) -> tuple[Tensor, str]:
        site = self._site(layer)
        reason = self._why_dense(site, query.device)
        if reason is None:
            plan = self._plan(site, query, key, value)
            if plan.mask is not None:
                out, ran = self._sparse(site, plan, query, key, value, key_lengths)
                known = self.setting.method.static and ran is plan
                self._count_sparse(self._statics.made(site) if known else ran, site, query.device)
                return out, f"sparse by {self.setting.method.name}, precision {self.setting.precision or query.dtype}"
        elif self._observes(reason, site, query.device):
            self.setting.method.observe(query, key, value, site, self._remembered(site))
        return layer.processor.dense(query, key, value, key_lengths), f"dense {self._count_dense(reason, site)}"

    def _count_sparse(self, plan: AttentionPlan, site: Site, device: torch.device) -> None:
        """Count a sparse call on a device; the plan may be elsewhere."""
        self._tally.count_sparse(plan, plan.densities(site.layout), self._backend_on(site.expert, device))
        self._record(plan, site)

    def _count_dense(self, reason: str | None, site: Site) -> str:
        """Count a dense call, None being the method's own plan; the reason in words."""
        words = reason or f"as {self.setting.method.name} planned"
        self._tally.count_dense(words, planned=reason is None)
        if reason is None:
            self._record(AttentionPlan(), site)
        return words

    def _record(self, plan: AttentionPlan, site: Site) -> None:
        heads, _ = self.family.heads(self._modules[site.expert])
        self._tally.record(site, plan.video_densities(site.layout), heads)

    def _check_place(self, layer: Layer, query: Tensor) -> None:
        moment = self._moment
        if moment is None or moment.expert != layer.expert:
            raise RuntimeError(
                "a patched attention layer ran outside its transformer's forward, so that its step and "
                "token grid are unknown: call the transformer itself, or disable sparse attention"
            )
        if query.shape[1] != moment.layout.tokens:
            raise RuntimeError(f"an attention call of {query.shape[1]} tokens does not fit the grid {moment.layout}")

    def _why_dense(self, site: Site, device: torch.device) -> str | None:
        plan, least = self._now.plan, self.setting.min_tokens
        if least is not None and site.layout.tokens < least:
            self._tally.note(f"calls of {site.layout.tokens} tokens stay dense: fewer than min_tokens={least}")
            return "under min_tokens"
        if site.layer < plan.first_layer:
            return "in first layers"
        if site.step < plan.first_step:
            return FIRST_STEPS
        if not plan.is_sparse(site.step, site.layer):
            return "in last steps"
        return None if least == 0 else self._why_slower(site, device)

    def _why_slower(self, site: Site, device: torch.device) -> str | None:
        """Why a call would take longer sparse than dense; the plans of other than static methods are not known yet."""
        method, costs = self.setting.method, self.setting.costs or default_for(device)
        heads, head_dim = self.family.heads(self._modules[site.expert])
        if not method.static:
            share = costs.share(expected(method, site), heads=heads, head_dim=head_dim)
        elif self._statics.made(site).mask is not None:
            share = self._statics.share(site, costs, heads, head_dim)
        else:
            return None
        if share < 1:
            return None
        self._tally.note_slower(share, costs.source)
        return "by the cost model"

    def _plan(self, site: Site, query: Tensor, key: Tensor, value: Tensor) -> AttentionPlan:
        method = self.setting.method
        if method.static:
            return self._statics.on(site, query.device)
        plan = method.plan(query, key, value, site, self._remembered(site))
        self._tally.count_plan(method.reused(self._remembered(site)))
        return plan

    def _observes(self, reason: str | None, site: Site, device: torch.device) -> bool:
        """Whether the method learns from a call that is dense for `reason`: later ones of the layer will be sparse."""
        method = self.setting.method
        if reason != FIRST_STEPS or not self._now.plan.any_sparse or method.static or not method.observes:
            return False
        return self.setting.min_tokens == 0 or self._why_slower(site, device) is None

    def _remembered(self, site: Site, whose: str = "method") -> dict[str, Any]:
        """What the method, or the compensation, remembers at a site; in it what all branches have in common."""
        state = self._state.setdefault((whose, site.expert, site.branch, site.layer), {})
        state[COMMON] = self._state.setdefault((whose, site.expert, COMMON, site.layer), {})
        return state

    def _site(self, layer: Layer) -> Site:
        moment = self._now
        layers = next(len(expert.layers) for expert in self._experts if expert.name == layer.expert)
        return Site(layer.index, layers, moment.step, self._clock.steps, moment.branch, moment.expert, moment.layout)

    @property
    def _now(self) -> Moment:
        assert self._moment is not None
        return self._moment

    @property
    def _statics(self) -> StaticPlans:
        """The static plans of this moment's layout."""
        return self._statics_of(self._now.layout, self._clock.steps)

    def _new_statics(self, layout: TokenLayout, steps: int | None) -> StaticPlans:
        # The number of steps is part of a site: as part of the key, plans of old ones are dropped too.
        return StaticPlans(self.setting.method, layout)

    def _choose_backend(self, expert: str, device: torch.device) -> str:
        probe = self.family.probe(self._modules[expert], device)
        return kernels.choose(self.setting.backend, probe, self.setting.precision)

    def _sparse(
        self, site: Site, plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None
    ) -> tuple[Tensor, AttentionPlan]:
        """The output of a sparse call, and the plan that ran."""
        setting = self.setting
        run = functools.partial(kernels.attention, query, key, value, key_lengths=key_lengths,
                                backend_name=setting.backend)  # fmt: skip

        def attention(plan: AttentionPlan, return_lse: bool = False) -> tuple[Tensor, Tensor | None]:
            return run(plan, return_lse=return_lse, precision=setting.precision)

        if setting.compensation is None:
            out = attention(plan)[0]
        else:
            state = self._remembered(site, "compensation")
            out, plan = setting.compensation.attend(plan, query, key, value, key_lengths, site, state, attention)
        if setting.precision is not None and (site.expert, site.layer) not in self._tally.errors:
            # Once per layer and run: the same call in the inputs' own type.
            self._tally.errors[site.expert, site.layer] = debug.relative_error(out, run(plan)[0])
        return out, plan
