"""Guidance passes on two groups of processes at once, for pipelines that compute them one after the other.

Each process runs the whole pipeline on the same inputs. Of the passes of a step it computes those of its group; for
the others its transformer returns tensors that are there once somebody uses them (`vidaccel.parallel.pending`).
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from vidaccel import watch
from vidaccel.caching.base import Verdict
from vidaccel.caching.cache import Cache
from vidaccel.clock import Clock
from vidaccel.guidance.door import Door
from vidaccel.parallel import alive
from vidaccel.parallel.alike import check_alike
from vidaccel.parallel.groups import MESH_DIM, check_split
from vidaccel.parallel.pending import Predictions
from vidaccel.parallel.split import Group
from vidaccel.pipelines import compiled, experts, forms
from vidaccel.pipelines.base import Call

HANDLE = "_vidaccel_guidance"
"""Where a pipeline keeps its `GuidanceParallel`."""


class GuidanceParallel:
    """Guidance passes of a pipeline on two groups of processes, from `attach` to `detach`; also a context manager.

    Made by `vidaccel.guidance_parallel`.

    Args:
        pipe: a pipeline whose passes are separate calls.
        group: this process and its counterpart of the other group, by the group's number.
    """

    def __init__(self, pipe: Any, group: Group) -> None:
        self.group = group
        self._pipe = weakref.ref(pipe)
        self._predictions = Predictions(group, type(pipe).__name__)
        self._doors = [Door(self.called, module) for module in experts(pipe).values()]
        self._clock = Clock(rising=self._doors[0].family.timesteps_rise)
        self._device = torch.device("cpu")

    def __repr__(self) -> str:
        made = self._predictions
        return (f"guidance pass {self.group.rank + 1} of {self.group.size} here; exchanges of the last run: "
                f"{made.together} of several passes, {made.alone} of one")  # fmt: skip

    @property
    def together(self) -> int:
        """Steps of the last run whose passes were computed at the same time."""
        return self._predictions.together

    @property
    def alone(self) -> int:
        """Passes of it that one group computed while the other waited."""
        return self._predictions.alone

    def attach(self) -> None:
        """Stand before the pipeline's transformers; what stood there before is undone."""
        pipe = self._pipe()
        previous = getattr(pipe, "__dict__", {}).get(HANDLE)
        if previous is not None:
            previous.detach()
        for door in self._doors:
            door.attach()
        watch.attach(pipe, MESH_DIM, self.check)
        pipe.__dict__[HANDLE] = self

    def detach(self) -> None:
        """Undo `attach` exactly; harmless where there is nothing to undo."""
        for door in self._doors:
            door.detach()
            if door.session is not None:
                door.session.agree(None)
        pipe = self._pipe()
        if getattr(pipe, "__dict__", {}).get(HANDLE) is self:
            watch.detach(pipe, MESH_DIM)
            del pipe.__dict__[HANDLE]
        self._predictions.drop()

    def __enter__(self) -> GuidanceParallel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a pipeline computes every pass."""

    def check(self, pipe: Any) -> None:
        """Look, before the first step of a run, whether its calls will come by here and may be left out.

        Raises:
            RuntimeError: a transformer was replaced, or compiled as a whole.
            ValueError: a cache or a split that does not go with it.
        """
        if (name := compiled(pipe)) is not None:
            raise RuntimeError(wrapped(name))
        if [door.transformer for door in self._doors] != list(experts(pipe).values()):
            raise RuntimeError(f"a transformer of {type(pipe).__name__} was replaced after guidance_parallel(): call "
                               "it again")  # fmt: skip
        for door in self._doors:
            door.check()
        self.fits()

    def fits(self) -> None:
        """Refuse a cache or a split that does not go with guidance passes on two groups.

        Raises:
            ValueError: why not.
        """
        for door in self._doors:
            check_split(door.transformer, self.group)
            if door.session is not None and door.session.setting.cache is not None:
                check_cache(door.session.setting.cache)

    def called(self, door: Door, call: Call) -> Any:
        """What a transformer returns: its output, to be shared once it is used, or what stands for another group's."""
        if torch.is_grad_enabled():
            return door.compute(call)
        owner = self._owner(door, call)
        session = door.session
        if owner == self.group.rank:
            if session is not None:
                session.agree(self._agree)
            return forms.replaced(door.compute(call), lambda tensor: self._promise(owner, tensor))
        if session is not None:
            session.pass_by(door.transformer, call, self._agree)
        return forms.asked(door.transformer, call, self._promise(owner, None))

    def _promise(self, owner: int, computed: Tensor | None) -> Tensor:
        return self._predictions.promise(owner, computed, self._device)

    def _owner(self, door: Door, call: Call) -> int:
        """The number of the group that computes this call."""
        scheduler = getattr(self._pipe(), "scheduler", None)
        if self._clock.read(door.family.timestep(call), scheduler, door.family.scheduled(scheduler)):
            self._predictions.begin_run()
        if self._clock.calls == 0:
            self._predictions.drop()
            self._device = call.get("hidden_states", 0).device
        self._meet(door, call)
        return self._clock.calls % self.group.size

    def _meet(self, door: Door, call: Call) -> None:
        """Make sure that all processes compute the same clip, and that none waits for one that has gone.

        Raises:
            ValueError: what differs, on all processes.
        """
        clock, session = self._clock, door.session
        alive.watch(clock.steps is not None and clock.step + 1 < clock.steps)
        # The second step has what a scheduler drew in the first.
        if clock.step < 2:
            facts = {"steps": clock.steps, "timesteps": clock.timesteps, "pass": clock.calls,
                     "settings": None if session is None else session.setting.shared}  # fmt: skip
            check_alike(self.group, facts, call.tensors)

    def _agree(self, verdict: Verdict | None) -> Verdict:
        """What a cache decided for the first pass of a step, told to the groups that compute the others."""
        told = [0.0] * 3
        if verdict is not None:
            told = [float(verdict.reuse), float(verdict.indicator is not None), verdict.indicator or 0.0]
        tensor = torch.tensor(told, dtype=torch.float64, device=self._device)
        reuse, known, indicator = self._predictions.broadcast(tensor, 0).tolist()
        return Verdict(bool(reuse), indicator if known else None)


def check_cache(cache: Cache) -> None:
    """Refuse a cache that makes one pass of a step wait for what became of the other.

    Raises:
        ValueError: why.
    """
    if cache.guided_steps:
        raise ValueError(f"{cache.guidance} leaves out unconditional calls, which guidance_parallel() computes at the "
                         "same time as the conditional ones: leave out one of both")  # fmt: skip
    if cache.policy.adjusts:
        raise ValueError(f"{cache.policy.name!r} with adjust_time changes the steps by what the conditional pass "
                         "decides, which one group alone knows: leave out that or guidance_parallel()")  # fmt: skip


def wrapped(name: str) -> str:
    """Why a model inside torch.compile's wrapper is refused."""
    return (f"{name} is inside torch.compile's wrapper, past which guidance_parallel() cannot leave passes out: "
            "compile by transformer.compile() or transformer.compile_repeated_blocks()")  # fmt: skip
