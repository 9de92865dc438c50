"""Dense runs on some of a schedule's own steps: each model call is where the full run has one, with longer strides.

Holding a velocity under Euler is just such a stride, so this is what a cache that holds the model's output does at
best: it keeps its calls where the full schedule has them, and a run of fewer steps spreads them anew.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor


@contextlib.contextmanager
def at_steps(pipe: Any, steps: Sequence[int]) -> Iterator[None]:
    """A pipeline whose runs take only some steps of the schedule that they ask for.

    Neither ``sigmas=`` nor ``timesteps=`` of a call would do: Wan's pipelines take none, flow matching shifts given
    sigmas once more, and CogVideoX's DDIM knows only even strides. So the scheduler is patched, for the block.

    Args:
        steps: of the full run, counted from 0, rising; the first is 0.

    Raises:
        ValueError: no such steps, or a scheduler whose strides are not known to be free.
    """
    chosen, scheduler = list(steps), pipe.scheduler
    if not chosen or chosen[0] != 0 or chosen != sorted(set(chosen)):
        raise ValueError(f"steps {chosen} of a schedule do not begin with 0 and rise")
    ddim = type(scheduler).__name__ == "CogVideoXDDIMScheduler"
    strides = getattr(scheduler, "order", None) == 1 and isinstance(getattr(scheduler, "sigmas", None), Tensor)
    if not ddim and not strides:
        raise ValueError(f"{type(scheduler).__name__} does not take any steps that it is given: own timesteps need a "
                         "scheduler of order 1 with sigmas, such as FlowMatchEulerDiscreteScheduler, or "
                         "CogVideoXDDIMScheduler")  # fmt: skip
    patches = _ddim(scheduler, chosen) if ddim else {"set_timesteps": _picked(scheduler, chosen)}
    scheduler.__dict__.update(patches)
    try:
        yield
    finally:
        for name in patches:
            del scheduler.__dict__[name]


def _pick(scheduler: Any, chosen: list[int]) -> Tensor:
    """Keep the chosen steps; the timesteps before that."""
    full: Tensor = scheduler.timesteps
    if chosen[-1] >= len(full):
        raise ValueError(f"step {chosen[-1]} is none of a schedule of {len(full)} steps, from 0")
    scheduler.timesteps = full[chosen]
    return full


def _picked(scheduler: Any, chosen: list[int]) -> Any:
    """`set_timesteps` of a scheduler that goes from one of its sigmas to the next."""
    original = scheduler.set_timesteps

    @functools.wraps(original)
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        full = _pick(scheduler, chosen)
        if len(scheduler.sigmas) != len(full) + 1:
            raise ValueError(f"{type(scheduler).__name__} has {len(scheduler.sigmas)} sigmas for {len(full)} steps, so "
                             "that its strides are not free")  # fmt: skip
        scheduler.sigmas = scheduler.sigmas[[*chosen, len(full)]]
        scheduler.num_inference_steps = len(chosen)

    return set_timesteps


def _ddim(scheduler: Any, chosen: list[int]) -> dict[str, Any]:
    """Patches of CogVideoX's DDIM, whose every stride is ``num_train_timesteps // num_inference_steps``."""
    strides: dict[int, int] = {}
    set_original, step_original = scheduler.set_timesteps, scheduler.step
    trained = scheduler.config.num_train_timesteps

    @functools.wraps(set_original)
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        set_original(*args, **kwargs)
        usual = trained // scheduler.num_inference_steps
        full = _pick(scheduler, chosen).tolist()
        ends = [*chosen[1:], len(full)]
        # To where the last of the full run's steps up to the next chosen one goes.
        strides.update({full[begin]: full[begin] - full[end - 1] + usual
                        for begin, end in zip(chosen, ends, strict=True)})  # fmt: skip

    @functools.wraps(step_original)
    def step(model_output: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        # It divides by this to find its stride, and a fraction divides without rest.
        scheduler.num_inference_steps = Fraction(trained, strides[int(timestep)])
        return step_original(model_output, timestep, *args, **kwargs)

    return {"set_timesteps": set_timesteps, "step": step}
