"""Enable and disable: the session owns the clock, the patch and all state of one pipeline; nothing is global."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from vidaccel import debug, kernels
from vidaccel.clock import Clock
from vidaccel.compensation import Compensation
from vidaccel.costs import CostModel, default_for
from vidaccel.kernels import op
from vidaccel.layout import TokenLayout
from vidaccel.methods.base import COMMON, Method
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call, Family, Mode, Processor
from vidaccel.plan import AttentionPlan
from vidaccel.schedule import Schedule, StepPlan
from vidaccel.site import Site
from vidaccel.statics import StaticPlans, expected
from vidaccel.summary import Summary, Tally

ATTRIBUTE = "_vidaccel_session"
"""Where a patched transformer keeps its session."""
LAYOUTS_KEPT = 8
FIRST_STEPS = "in first steps"


class Layer:
    """One patched attention layer: what the op's handle stands for."""

    def __init__(self, session: Session, expert: str, index: int, family: Family, module: Any) -> None:
        self.session = session
        self.expert = expert
        self.index = index
        self.module = module
        self.stock = module.processor
        self.processor: Processor = family.processor(self.stock, op.handle(self))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None) -> Tensor:
        """Dense or sparse attention, as the session decides for this moment of the run."""
        return self.session.attend(self, query, key, value, key_lengths)

    def patch(self) -> None:
        """Put our processor in place."""
        self.module.processor = self.processor

    def restore(self) -> None:
        """Put the very same stock processor back, unless someone else has replaced ours."""
        if self.module.processor is self.processor:
            self.module.processor = self.stock


class Expert:
    """One patched transformer: its layers, and the hook before its forward."""

    def __init__(self, session: Session, name: str, transformer: nn.Module) -> None:
        self.session, self.name, self.transformer = session, name, transformer
        self.family = family_of(transformer)
        modules: list[Any] = self.family.sites(transformer)
        foreign = [type(module.processor).__name__ for module in modules if not self.family.stock(module.processor)]
        if foreign:
            raise ValueError(
                f"{type(transformer).__name__} has the attention processor {foreign[0]}, which is not "
                "diffusers' own: remove what set it before enabling sparse attention"
            )
        self.layers = [Layer(session, name, index, self.family, module) for index, module in enumerate(modules)]

    def before_forward(self, transformer: nn.Module, args: Any, kwargs: Any) -> None:
        """Tell the session of a transformer call, and the layers how to attend in it."""
        if any(layer.module.processor is not layer.processor for layer in self.layers):
            raise RuntimeError(
                f"attention processors of {type(transformer).__name__} were replaced after sparse attention was "
                "enabled, as fuse_qkv_projections() does: disable it, then enable it again"
            )
        self.session.begin(self, Call(args, kwargs))


@dataclasses.dataclass(frozen=True)
class Moment:
    """What the layers of one transformer call have in common."""

    expert: str
    branch: str
    step: int
    layout: TokenLayout
    plan: StepPlan


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the user chose; see `vidaccel.enable`."""

    method: Method
    schedule: Schedule
    backend: str
    min_tokens: int | None
    """None lets the cost model alone decide which calls are too short; 0 turns it off too."""
    steps: int | None
    precision: str | None = None
    check_finite: bool = False
    compensation: Compensation | None = None
    costs: CostModel | None = None
    """None for the coefficients that are shipped for the device."""


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
        # Per instance, so that the caches die with the session.
        self._statics_of = functools.lru_cache(LAYOUTS_KEPT)(self._new_statics)
        self._backend_on = functools.lru_cache(LAYOUTS_KEPT)(self._choose_backend)
        if not hasattr(owner, "scheduler"):
            setting.method.check_steps(setting.steps)

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
                self._attach(Expert(self, name, transformer))
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
        setattr(expert.transformer, ATTRIBUTE, self)

    def detach(self) -> None:
        """Undo everything that `attach` did; harmless when there is nothing to undo."""
        for hook in self._hooks:
            hook.remove()
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
        setting = self.setting
        return Summary(
            self.family.name, setting.method.name, dataclasses.asdict(setting.method),  # type: ignore[call-overload]
            dataclasses.asdict(setting.schedule), setting.min_tokens, setting.backend, setting.precision, self.runs,
            self._tally, setting.compensation.to_dict() if setting.compensation is not None else None,
        )  # fmt: skip

    def begin(self, expert: Expert, call: Call) -> None:
        """Take note of a transformer call: its run, step and guidance branch, and how each layer attends in it."""
        layout, timestep = expert.family.layout(expert.transformer, call), expert.family.timestep(call)
        if self._clock.tick(float(timestep.max()), self._timesteps()):
            self._begin_run()
        self.setting.method.check_steps(self._clock.steps)
        plan = self.setting.schedule.resolve(self._clock.steps, len(expert.layers))
        branches, branch = expert.family.branches, self._clock.calls
        name = branches[branch] if branch < len(branches) else f"pass{branch}"
        self._moment = Moment(expert.name, name, self._clock.step, layout, plan)
        self._tally.layout, self._tally.steps = layout, self._clock.steps
        if self.setting.method.static and layout.tokens >= (self.setting.min_tokens or 0):
            # A plan that cannot be made should fail before the first step, not after the dense ones.
            self._statics.made(self._site(expert.layers[-1]))
        self._check(expert, call, timestep.device)
        for layer in expert.layers:
            layer.processor.mode = self._mode(layer, timestep.device)

    def _timesteps(self) -> Tensor | None:
        timesteps = getattr(getattr(self._owner(), "scheduler", None), "timesteps", None)
        return timesteps if isinstance(timesteps, Tensor) else None

    def _begin_run(self) -> None:
        self._state.clear()
        self._tally = Tally()
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
