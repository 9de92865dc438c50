"""Enable and disable: the session owns the clock, the patch and all state of one pipeline; nothing is global."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from vidaccel import kernels
from vidaccel.clock import Clock
from vidaccel.kernels.op import handle
from vidaccel.layout import TokenLayout
from vidaccel.methods.base import Method
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call, Family, Processor
from vidaccel.plan import AttentionPlan, Density
from vidaccel.schedule import Schedule, StepPlan
from vidaccel.site import Site
from vidaccel.summary import Summary, Tally

ATTRIBUTE = "_vidaccel_session"
"""Where a patched transformer keeps its session."""
LAYOUTS_KEPT = 8


class Layer:
    """One patched attention layer: what the op's handle stands for."""

    def __init__(self, session: Session, expert: str, index: int, family: Family, module: Any) -> None:
        self.session = session
        self.expert = expert
        self.index = index
        self.module = module
        self.stock = module.processor
        self.processor: Processor = family.processor(self.stock, handle(self))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Dense or sparse attention, as the session decides for this moment of the run."""
        return self.session.attend(self, query, key, value)

    def patch(self) -> None:
        """Put our processor in place."""
        self.module.processor = self.processor

    def restore(self) -> None:
        """Put the very same stock processor back, unless someone else has replaced ours."""
        if self.module.processor is self.processor:
            self.module.processor = self.stock


@dataclasses.dataclass(frozen=True)
class Moment:
    """What the layers of one transformer call have in common."""

    expert: str
    branch: str
    step: int
    layout: TokenLayout
    plan: StepPlan


class Session:
    """Sparse attention on one pipeline or transformer, from `attach` to `detach`; also a context manager.

    Made by `vidaccel.enable`. Static plans are made once per layout; what a method remembers is kept per expert,
    guidance branch and layer, and is dropped when a new generation begins.
    """

    def __init__(
        self,
        owner: Any,
        experts: dict[str, nn.Module],
        method: Method,
        schedule: Schedule,
        backend: str,
        min_tokens: int,
        steps: int | None,
    ) -> None:
        self.method, self.schedule, self.backend, self.min_tokens = method, schedule, backend, min_tokens
        self.runs = 0
        self._owner = weakref.ref(owner)
        self._experts = experts
        self._clock = Clock(steps)
        self._moment: Moment | None = None
        self._tally = Tally()
        self._state: dict[tuple[str, str, int], dict[str, Any]] = {}
        self._layers: dict[str, list[Layer]] = {}
        self._hooks: list[Any] = []
        # Per instance, so that the cache dies with the session.
        self._static = functools.lru_cache(LAYOUTS_KEPT)(self._make_static)

    @property
    def family(self) -> Family:
        """The family of the patched model."""
        return family_of(next(iter(self._experts.values())))

    def attach(self) -> None:
        """Patch every expert; on an error nothing stays patched.

        Raises:
            ValueError: an attention layer has a processor that is not the family's own.
        """
        try:
            for expert, transformer in self._experts.items():
                self._attach(expert, transformer)
        except BaseException:
            self.detach()
            raise

    def _attach(self, expert: str, transformer: nn.Module) -> None:
        family = family_of(transformer)
        modules: list[Any] = family.sites(transformer)
        foreign = [type(module.processor).__name__ for module in modules if not family.stock(module.processor)]
        if foreign:
            raise ValueError(
                f"{type(transformer).__name__} has the attention processor {foreign[0]}, which is not "
                "diffusers' own: remove what set it before enabling sparse attention"
            )
        self._layers[expert] = [Layer(self, expert, i, family, module) for i, module in enumerate(modules)]
        for layer in self._layers[expert]:
            layer.patch()
        hook = functools.partial(self._before_forward, expert, family)
        self._hooks.append(transformer.register_forward_pre_hook(torch.compiler.disable(hook), with_kwargs=True))
        setattr(transformer, ATTRIBUTE, self)

    def detach(self) -> None:
        """Undo everything that `attach` did; harmless when there is nothing to undo."""
        for hook in self._hooks:
            hook.remove()
        for layer in (layer for layers in self._layers.values() for layer in layers):
            layer.restore()
        for transformer in self._experts.values():
            if transformer.__dict__.get(ATTRIBUTE) is self:
                delattr(transformer, ATTRIBUTE)
        self._hooks, self._layers, self._state, self._moment = [], {}, {}, None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def summary(self) -> Summary:
        """The setting and what the last run did."""
        return Summary(
            self.family.name,
            self.method.name,
            dataclasses.asdict(self.method),  # type: ignore[call-overload]
            dataclasses.asdict(self.schedule),
            self.min_tokens,
            self.backend,
            self.runs,
            self._tally,
        )

    def _before_forward(self, expert: str, family: Family, transformer: nn.Module, args: Any, kwargs: Any) -> None:
        call = Call(args, kwargs)
        layout = family.layout(transformer, call)
        timestep = float(family.timestep(call).max())
        if self._clock.tick(timestep, self._timesteps()):
            self._begin_run()
        plan = self.schedule.resolve(self._clock.steps, len(self._layers[expert]))
        branch = self._clock.calls
        name = family.branches[branch] if branch < len(family.branches) else f"pass{branch}"
        self._moment = Moment(expert, name, self._clock.step, layout, plan)
        self._tally.layout, self._tally.steps = layout, self._clock.steps
        if self.method.static and layout.tokens >= self.min_tokens:
            # A plan that cannot be made should fail before the first step, not after the dense ones.
            self._static(layout)

    def _timesteps(self) -> Tensor | None:
        timesteps = getattr(getattr(self._owner(), "scheduler", None), "timesteps", None)
        return timesteps if isinstance(timesteps, Tensor) else None

    def _begin_run(self) -> None:
        self._state.clear()
        self._tally = Tally()
        self.runs += 1

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One attention call of a patched layer, ``[batch, tokens, heads, head_dim]``."""
        reason = self._why_dense(layer, query)
        if reason is None:
            plan, density = self._plan(layer, query, key, value)
            if plan.mask is not None:
                return self._sparse(plan, density, query, key, value)
            reason = f"as {self.method.name} planned"
        self._tally.count_dense(reason)
        return layer.processor.dense(query, key, value)

    def _why_dense(self, layer: Layer, query: Tensor) -> str | None:
        moment = self._moment
        if moment is None or moment.expert != layer.expert:
            raise RuntimeError(
                "a patched attention layer ran outside its transformer's forward, so that its step and "
                "token grid are unknown: call the transformer itself, or disable sparse attention"
            )
        if query.shape[1] != moment.layout.tokens:
            raise RuntimeError(f"an attention call of {query.shape[1]} tokens does not fit the grid {moment.layout}")
        if moment.layout.tokens < self.min_tokens:
            few = f"calls of {moment.layout.tokens} tokens stay dense: fewer than min_tokens={self.min_tokens}"
            self._tally.note(few)
            return "under min_tokens"
        if layer.index < moment.plan.first_layer:
            return "in first layers"
        if moment.step < moment.plan.first_step:
            return "in first steps"
        return None if moment.plan.is_sparse(moment.step, layer.index) else "in last steps"

    def _plan(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> tuple[AttentionPlan, Density]:
        moment = self._moment
        assert moment is not None
        if self.method.static:
            return self._static(moment.layout)
        site = Site(
            layer.index,
            len(self._layers[layer.expert]),
            moment.step,
            self._clock.steps,
            moment.branch,
            moment.expert,
            moment.layout,
        )
        state = self._state.setdefault((moment.expert, moment.branch, layer.index), {})
        plan = self.method.plan(query, key, value, site, state)
        return plan, plan.density(moment.layout)

    def _make_static(self, layout: TokenLayout) -> tuple[AttentionPlan, Density]:
        site = Site(0, 1, 0, self._clock.steps, self.family.branches[0], next(iter(self._experts)), layout)
        plan = self.method.plan(None, None, None, site, {})
        return plan, plan.density(layout)

    def _sparse(self, plan: AttentionPlan, density: Density, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert plan.mask is not None
        tally = self._tally
        backend = kernels.choose(self.backend, query)
        out, _ = kernels.attention(query, key, value, plan.mask, backend_name=backend)
        tally.sparse += 1
        tally.attended += density.density
        tally.density, tally.mask, tally.backend = density, plan.mask, backend
        for note in plan.notes:
            tally.note(note)
        return out
