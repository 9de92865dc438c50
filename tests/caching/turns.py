"""A run without a model: signals that were drawn beforehand, driven as a runtime drives a policy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vidaccel.caching.base import CachePolicy, Turn, Verdict

STEPS = 14
TIMESTEPS = tuple(float(each) for each in torch.linspace(1000, 60, STEPS).round())


def drift(*shape: int, seed: int = 0, steps: int = STEPS) -> list[Tensor]:
    """A tensor for each step, near the one before by amounts that differ from step to step."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(steps, generator=generator) * 0.3
    values = [torch.randn(*shape, generator=generator)]
    for size in sizes[1:].tolist():
        values.append(values[-1] + size * torch.randn(*shape, generator=generator))
    return values


@dataclass
class Fake:
    """Signals of one step; what is not given, the family does not have. Asked-for names are noted."""

    given: Mapping[str, Tensor]
    embed: Any = None
    asked: list[str] = field(default_factory=list)

    def _give(self, name: str) -> Tensor:
        self.asked.append(name)
        if name not in self.given:
            raise ValueError(f"no {name}")
        return self.given[name]

    def mean(self, values: Tensor) -> Tensor:
        return values.mean()

    def agreed(self, values: Tensor) -> Tensor:
        return values

    def latents(self) -> Tensor:
        return self._give("latents")

    def modulated(self) -> Tensor:
        return self._give("modulated")

    def first_residual(self) -> Tensor:
        return self._give("first_residual")

    def time_embedding(self, timesteps: tuple[float, ...]) -> Tensor:
        self.asked.append("time_embedding")
        if self.embed is None:
            raise ValueError("no signal of the timestep alone")
        out: Tensor = self.embed(timesteps)
        return out


class Waits(TorchDispatchMode):
    """Counts how often the host reads a value from the device."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += func.overloadpacket.__name__ == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


def turn_of(step: int, since: int, must: bool = False, **given: Any) -> Turn:
    """A step of a run of `STEPS`."""
    values: dict[str, Any] = {"steps": STEPS, "branch": "cond", "expert": "transformer", "expert_step": 0,
                              "timestep": TIMESTEPS[step], "timesteps": TIMESTEPS}  # fmt: skip
    return Turn(step=step, since=since, must_compute=must, **(values | given))


@dataclass
class Ran:
    """What came of a run."""

    verdicts: list[Verdict]
    computed: list[int]
    waits: list[int]
    signals: list[Fake]
    state: dict[str, Any]


def drive(
    policy: CachePolicy, signals: Sequence[Mapping[str, Tensor]], residuals: Sequence[Tensor] | None = None, *,
    must: Collection[int] = (0,), allowances: Mapping[int, float] | None = None, cleared: Collection[int] = (),
    embed: Any = None, **given: Any,
) -> Ran:  # fmt: skip
    """One branch of a run.

    Args:
        signals: of each step, by name.
        residuals: of each step, if computed.
        must: steps that the plan computes.
        allowances: of steps whose share is not 1.
        cleared: steps before which the plan forbids to look back; they are computed, too.
    """
    state: dict[str, Any] = {}
    ran, last = Ran([], [], [], [], state), None
    before = torch.get_rng_state()
    for step, named in enumerate(signals):
        if step in cleared:
            state.clear()
            last = None
        fake = Fake(named, embed)
        turn = turn_of(step, 0 if last is None else step - last, step in must or last is None,
                       allowance=(allowances or {}).get(step, 1.0), **given)  # fmt: skip
        with Waits() as waits:
            verdict = policy.decide(turn, fake, state)
            if turn.must_compute or not verdict.reuse:
                residual = torch.zeros(1, 1, 1) if residuals is None else residuals[step]
                policy.observe(turn, fake, residual, state)
                ran.computed.append(step)
                last = step
        ran.verdicts.append(verdict)
        ran.waits.append(waits.count)
        ran.signals.append(fake)
    assert torch.equal(before, torch.get_rng_state())
    return ran


PLANS: list[dict[str, Any]] = [
    {"must": (0, STEPS - 1)},
    {"must": (0, 1, 2, 8)},
    {"must": (0,), "allowances": dict.fromkeys(range(5, STEPS), 0.4)},
    {"must": (0, 1), "cleared": (6,), "allowances": dict.fromkeys(range(6, STEPS), 0.7)},
]
"""Of the plan: what must be computed, where less may be spent, where nothing before counts."""


def plan_of(plan: Mapping[str, Any]) -> tuple[set[int], list[float]]:
    """Steps that a plan computes, and the allowance of each step."""
    allowances = plan.get("allowances", {})
    return {*plan["must"], *plan.get("cleared", ())}, [allowances.get(step, 1.0) for step in range(STEPS)]
