"""Enable and disable: the session owns the clock, the patch and all state of one pipeline; nothing is global."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidaccel import watch
from vidaccel.caching import time_scale
from vidaccel.caching.base import Verdict
from vidaccel.caching.passes import Arrival
from vidaccel.caching.runtime import Runtime
from vidaccel.caching.signals import twice
from vidaccel.calls import LAYOUTS_KEPT, Calls, Spot
from vidaccel.clock import Clock
from vidaccel.kernels import op
from vidaccel.parallel import plans
from vidaccel.parallel.exchange import Exchange
from vidaccel.parallel.sharing import Sharing
from vidaccel.parallel.split import Split
from vidaccel.patched import Expert, Layer
from vidaccel.pipelines.adapters import adapters
from vidaccel.pipelines.base import Call, Family
from vidaccel.pipelines.processor import Mode
from vidaccel.setting import Moment, Setting
from vidaccel.site import Observer, Site
from vidaccel.statics import StaticPlans, expected_density
from vidaccel.summary import Summary, Tally

ATTRIBUTE = "_vidaccel_session"
"""Where a patched transformer keeps its session."""


class Session:
    """Sparse attention on one pipeline or transformer, from `attach` to `detach`; also a context manager.

    Made by `vidaccel.enable`. Static plans are made once; what a method remembers is kept per expert, guidance branch
    and layer, and is dropped when a new generation begins.
    """

    def __init__(self, owner: Any, experts: dict[str, nn.Module], setting: Setting) -> None:
        self.calls = Calls(setting)
        self.runs = 0
        self._owner = weakref.ref(owner)
        self._modules = experts
        self._clock = Clock(setting.steps, self.family.timesteps_rise)
        self._moment: Moment | None = None
        self._experts: list[Expert] = []
        self._halves = False
        self._sharing = Sharing()
        self._split: Split | None = None
        """Of the transformer that is called."""
        self._runtime = None if setting.cache is None else Runtime(setting.cache)
        # Per instance, so that the cache dies with the session.
        self._like = functools.lru_cache(LAYOUTS_KEPT)(self._probe)
        if not hasattr(owner, "scheduler"):
            setting.method.check_steps(setting.steps)
        if setting.cache is not None and setting.cache.policy.adjusts:
            time_scale.check(getattr(owner, "scheduler", None))

    @property
    def setting(self) -> Setting:
        """What the user chose."""
        return self.calls.setting

    @setting.setter
    def setting(self, setting: Setting) -> None:
        self.calls.setting = setting

    @property
    def observer(self) -> Observer | None:
        """Told of every attention call from the next transformer call on; None, as at first, for nobody."""
        return self.calls.observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self.calls.observer = observer

    @property
    def _tally(self) -> Tally:
        return self.calls.tally

    @property
    def family(self) -> Family:
        """The family of the patched model."""
        return self.setting.family_of(next(iter(self._modules.values())))

    def attach(self) -> None:
        """Patch every expert; on an error nothing stays patched.

        Raises:
            ValueError: an attention layer has a processor that is not the family's own.
        """
        try:
            for name, transformer in self._modules.items():
                family = self.setting.family_of(transformer)
                self._attach(Expert(self, name, transformer, family, self.setting.sparse))
            owner = self._owner()
            watch.attach(owner, ATTRIBUTE, functools.partial(watch.check, patched=self._experts))
            owner.__dict__[ATTRIBUTE] = self
        except BaseException:
            self.detach()
            raise

    def _attach(self, expert: Expert) -> None:
        self._experts.append(expert)
        for layer in expert.layers:
            layer.patch()
        expert.hook()
        if self._runtime is not None:
            self._runtime.attach(expert.transformer, expert.family)
        setattr(expert.transformer, ATTRIBUTE, self)
        plans.unguard(expert.transformer)
        plans.offer(expert.transformer, expert.family)

    def detach(self) -> None:
        """Undo everything that `attach` did; harmless when there is nothing to undo."""
        for expert in self._experts:
            expert.unhook()
        if self._runtime is not None:
            self._runtime.detach()
        for layer in (layer for expert in self._experts for layer in expert.patched):
            layer.restore()
        for expert in self._experts:
            plans.withdraw(expert.transformer)
            if plans.configured(expert.transformer) is not None:
                plans.guard(expert.transformer, expert.family)
        for holder in (*self._modules.values(), self._owner()):
            if getattr(holder, "__dict__", {}).get(ATTRIBUTE) is self:
                delattr(holder, ATTRIBUTE)
        watch.detach(self._owner(), ATTRIBUTE)
        self._experts.clear()
        self.calls.state.clear()
        self._moment = None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a pipeline or a transformer is not enabled."""

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
        self._tick(expert.family, timestep)
        self.setting.method.check_steps(self._clock.steps)
        plan = self.setting.schedule.resolve(self._clock.steps, len(expert.layers), self.setting.computed)
        branches, branch = expert.family.branches, self._clock.calls
        name = branches[branch] if branch < len(branches) else f"pass{branch}"
        self._moment = Moment(expert.name, name, self._clock.step, layout, plan)
        self._tally.layout, self._tally.steps = layout, self._clock.steps
        self._share(expert, call)
        # Without layers of ours there is a cache, whose blocks they would be.
        depth = len(expert.layers) or len(expert.family.blocks(expert.transformer))
        self._tally.course.begin(self._now.call, depth)
        if expert.layers:
            queries = functools.partial(expert.family.queries, expert.transformer, call, layout)
            # With gradients a layer may leave its calls to the stock processor.
            spot = self._spot(expert.layers[-1], timestep.device)
            self.calls.check_ahead(spot, None if torch.is_grad_enabled() else queries)
        if self._runtime is None or not self._caches(self._runtime.cache.min_steps):
            self._prepare(expert, timestep.device, range(depth))
        else:
            arrival = self._arrival(expert, call, float(timestep.max()), timestep.device)
            self._runtime.begin(arrival, expert.transformer, expert.family)

    def _tick(self, family: Family, timestep: Tensor) -> None:
        """Count a transformer call."""
        scheduler = getattr(self._owner(), "scheduler", None)
        if self._clock.read(timestep, scheduler, family.scheduled(scheduler)):
            self._begin_run()

    def agree(self, agree: Callable[[Verdict | None], Verdict] | None) -> None:
        """Share what a cache decides for the first guidance pass of a step with who computes the others; see
        `Runtime.agree`."""
        if self._runtime is not None:
            self._runtime.agree = agree

    def pass_by(self, transformer: nn.Module, call: Call, agree: Callable[[Verdict | None], Verdict]) -> None:
        """Take note of a guidance pass that other processes compute: it counts as one of its step."""
        family, clock = self.setting.family_of(transformer), self._clock
        self._tick(family, family.timestep(call))
        self._tally.note("other processes computed the other guidance pass of each step")
        if self._runtime is not None and self._caches(self._runtime.cache.min_steps):
            name = next(name for name, module in self._modules.items() if module is transformer)
            self._runtime.pass_by(name, clock.step, clock.calls, agree)

    def _prepare(self, expert: Expert, device: torch.device, blocks: Sequence[int]) -> None:
        """Tell the layers of some blocks, which are about to run, how to attend."""
        self._tally.course.run(self._now.call, blocks)
        for index in blocks if expert.patched else ():
            expert.patched[index].processor.exchange = self._exchange(expert.patched[index])
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
        weights = adapters(expert.transformer, call)
        if sparse:
            site = self._site(expert.layers[-1])
            level, allowance = self.setting.method.level(site), self.setting.cache.allowance(self._expected(site))
        if now.step == clock.calls == 0 and expert.family.batched_guidance:
            # Known by what the call is, not by the pipeline's guidance scale, which may change over the run.
            self._halves = twice(call.get("hidden_states", 0))
        return Arrival(
            now.expert, now.branch, clock.calls, now.step, clock.steps, timestep, clock.timesteps,
            now.plan.may_reuse(now.step), (sparse, level, weights, now.layout), sparse, allowance,
            0.5 if self._halves else 0.0, call, functools.partial(self._prepare, expert, device),
            None if self._split is None else self._split.every,
        )  # fmt: skip

    def _expected(self, site: Site) -> float:
        """The density that sparse calls at a site are expected to have."""
        method = self.setting.method
        return self._statics.density(site) if method.static else expected_density(method, site)

    def _share(self, expert: Expert, call: Call) -> None:
        """Find out how the transformer that is called is split over processes, and what that asks for.

        Raises:
            ValueError: in a way that cannot be computed here.
        """
        split = self._split = self._sharing.split(expert.name, expert.transformer, expert.family)
        if split is None:
            return
        self._sharing.meet(split, self._clock, self.setting.shared, call)
        expert.family.check_split(self._now.layout)
        split.sizes(self._now.layout.video_tokens)
        if split.ring.size > 1:
            self._check_ring()
        if self.observer is not None:
            raise ValueError(f"a clip that is split ({split}) cannot be observed: no process sees all heads; observe "
                             "it in one process")  # fmt: skip
        here = "" if self.setting.method.static else "; densities are of this process's heads"
        self._tally.note(f"one clip is computed by {split.every.size} processes: {split}{here}")
        if not expert.family.stock_splits:
            expert.carry()
        for layer in expert.carriers:
            layer.processor.mode = Mode.DENSE if split.ring.size == 1 else Mode.BY_HANDLE
        for layer in expert.patched:
            layer.processor.stock_splits = expert.family.stock_splits

    def _check_ring(self) -> None:
        """Refuse what a ring cannot compute: at the start of a run, of all its steps and experts."""
        now, steps = self._now, self._clock.steps
        run = (now.step,) if steps is None or now.step > 0 else range(steps)
        layers = (layer for expert in self._experts for layer in expert.layers)
        self.calls.check_ring(
            dataclasses.replace(self._site_of(layer), expert=layer.expert, step=step)
            for layer in layers for step in run if now.plan.is_sparse(step, layer.index)
        )  # fmt: skip

    def _exchange(self, layer: Layer) -> Exchange | None:
        """What a layer exchanges with other processes; None where there are none."""
        if self._split is None:
            return None
        now, heads, steps = self._now, self._heads(layer), self._clock.steps
        run = (now.step,) if steps is None else range(steps)
        loads = functools.partial(self.calls.loads, self._site_of(layer), now.plan, heads, run)
        return self._sharing.exchange(self._split, (layer.expert, layer.index, now.layout), heads, loads)

    def _heads(self, layer: Layer) -> int:
        return self.family.heads(self._modules[layer.expert])[0]

    def _begin_run(self) -> None:
        self.calls.forget()
        self._sharing.forget()
        if (note := self.setting.elsewhere(self._owner(), self._clock.steps)) is not None:
            self._tally.note(note)
        if self._runtime is not None:
            self.setting.check_calibration(self._owner(), self._clock.steps)
            self._halves = False
            self._runtime.begin_run(getattr(self._owner(), "scheduler", None), self._clock.steps)
        self.runs += 1

    def _mode(self, layer: Layer, device: torch.device) -> Mode:
        """How a layer attends in this transformer call, as far as that is known before it."""
        # With gradients a processor may leave the call to the stock one: only what then arrives is counted.
        if self.setting.check_finite or self.observer is not None or torch.is_grad_enabled():
            return Mode.BY_HANDLE
        spot = self._spot(layer, device)
        if spot.split is not None:
            return Mode.BY_HANDLE
        reason = self.calls.why_dense(spot)
        if reason is None:
            setting = self.setting
            if not setting.method.static or setting.precision is not None or setting.compensation is not None:
                return Mode.BY_HANDLE
            plan = self._statics.on(spot.site, device)
            if plan.extra is not None:
                return Mode.BY_HANDLE
            if plan.mask is not None:
                layer.processor.plan, layer.processor.backend = op.arguments(plan), self.setting.backend
                self.calls.count_sparse(self._statics.made(spot.site), spot)
                return Mode.STATIC
        if self.calls.observes(reason, spot):
            return Mode.BY_HANDLE
        self.calls.count_dense(reason, spot)
        return Mode.DENSE

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None) -> Tensor:
        """One attention call of a layer in `Mode.BY_HANDLE`, ``[batch, tokens, heads, head_dim]``.

        Raises:
            RuntimeError: the layer runs outside its transformer's forward.
            FloatingPointError: the output is not finite, and the user asked to look.
        """
        self._check_place(layer, query)
        spot = self._spot(layer, query.device)
        dense = self.calls.dense(spot, layer.processor.dense)
        if not self.setting.sparse:
            return dense(query, key, value, key_lengths)
        out, how = self.calls.attend(spot, query, key, value, key_lengths, dense)
        self.calls.check_finite(out, query, key, value, spot.site, how)
        return out

    def _check_place(self, layer: Layer, query: Tensor) -> None:
        moment = self._moment
        if moment is None or moment.expert != layer.expert:
            raise RuntimeError(
                "a patched attention layer ran outside its transformer's forward, so that its step and "
                "token grid are unknown: call the transformer itself, or disable sparse attention"
            )
        exchange = self._exchange(layer)
        if query.shape[1] != (moment.layout.tokens if exchange is None else exchange.inside):
            raise RuntimeError(f"an attention call of {query.shape[1]} tokens does not fit the grid {moment.layout}")

    def _spot(self, layer: Layer, device: torch.device) -> Spot:
        ring = self._split if self._split is not None and self._split.ring.size > 1 else None
        return Spot(self._site(layer), self._now.plan, self._like(layer.expert, device), ring)

    def _site(self, layer: Layer) -> Site:
        exchange = self._exchange(layer)
        return dataclasses.replace(self._site_of(layer), heads=None if exchange is None else exchange.dealt)

    def _site_of(self, layer: Layer) -> Site:
        """Where a layer's call happens, whatever process has which of its heads."""
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
        return self.calls.statics_of(self._now.layout, self._clock.steps)

    def _probe(self, expert: str, device: torch.device) -> Tensor:
        return self.family.probe(self._modules[expert], device)
