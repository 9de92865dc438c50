"""Runs one pipeline again and again from given noise, timed, with sparse attention on and off."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vidaccel.eval.first_frame import IMAGE, first_of, prepared
from vidaccel.eval.own_steps import at_steps
from vidaccel.schedule import Schedule
from vidaccel.session import Session

WARMUP_STEPS = 2
LATENT = "latent"
"""The pipelines' `output_type` that leaves out decoding."""
OnSteps = Callable[[str, int], None]
"""Called with what runs and how many denoising steps have just ended."""


@dataclass(frozen=True)
class Run:
    """One generation and its time.

    `frames` are ``[frames, height, width, 3]`` in [0, 1], None where nothing was decoded. `latents` are those after
    the last step, as the pipeline holds them, None where it does not hand them out. `denoising` is the part of
    `seconds` up to the end of the last step, prompt encoding included; None where the pipeline reports no steps. The
    rest is decoding. `image` is the first frame that the run was given, as the pipeline prepared it, ``[height, width,
    3]`` in [0, 1]; None without one, where nothing was decoded, or where that was not seen.
    """

    frames: NDArray[Any] | None
    seconds: float
    denoising: float | None
    latents: NDArray[np.float32] | None = None
    image: NDArray[np.float32] | None = None

    @property
    def clip(self) -> NDArray[Any]:
        """The frames of a run that was decoded."""
        assert self.frames is not None
        return self.frames


class Runner:
    """Runs `pipe` from noise that is drawn on the CPU, so that it depends on the seed alone.

    Args:
        kwargs: for the pipeline's call, `num_inference_steps` among them.
        on_steps: hears of every step.
    """

    def __init__(self, pipe: Any, kwargs: dict[str, Any], on_steps: OnSteps | None = None) -> None:
        self.pipe, self.kwargs, self.on_steps = pipe, kwargs, on_steps
        parameters = inspect.signature(pipe.__call__).parameters
        self.reports_steps = "callback_on_step_end" in parameters
        self.steps = int(kwargs.get("num_inference_steps", parameters["num_inference_steps"].default))
        self.warm_steps = min(WARMUP_STEPS, self.steps)

    def warm_up(self, prompt: str, seed: int, session: Session | None) -> None:
        """A short run, of a `session` one with every step and layer sparse, so that all its code has run once."""
        if session is None:
            self.run("warm-up dense", prompt, seed, num_inference_steps=self.warm_steps)
            return
        setting, session.setting = session.setting, dataclasses.replace(session.setting, schedule=Schedule(0, 0, 0))
        try:
            with attached(session):
                self.run("warm-up fast", prompt, seed, num_inference_steps=self.warm_steps)
        finally:
            session.setting = setting

    def run(self, label: str, prompt: str, seed: int, only: Sequence[int] | None = None, **overrides: Any) -> Run:
        """One generation.

        Args:
            label: for `on_steps`.
            only: the steps of the schedule to take; see `at_steps`. None for all.
            overrides: replace arguments of the call.
        """
        kwargs = {"output_type": "np", **self.kwargs, **overrides}
        steps = int(kwargs.get("num_inference_steps", self.steps)) if only is None else len(only)
        ends: list[float] = []
        kept: list[Any] = []

        def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == steps - 1:
                synchronize()
                ends.append(time.perf_counter())
                kept.append(tensors.get("latents"))
            self._tell(label, 1)
            return tensors

        if self.reports_steps:
            kwargs["callback_on_step_end"] = on_step_end
        synchronize()
        start = time.perf_counter()
        with contextlib.ExitStack() as stack:
            seen = stack.enter_context(prepared(self.pipe)) if IMAGE in kwargs else []
            if only is not None:
                stack.enter_context(at_steps(self.pipe, only))
            result = self.pipe(prompt=prompt, generator=torch.Generator("cpu").manual_seed(seed), **kwargs)
        synchronize()
        seconds = time.perf_counter() - start
        if not self.reports_steps:
            self._tell(label, steps)
        undecoded = kwargs["output_type"] == LATENT
        latents = result.frames if undecoded else kept[-1] if kept else None
        frames = None if undecoded else np.asarray(result.frames[0])
        return Run(frames, seconds, ends[-1] - start if ends else None, _array(latents),
                   None if frames is None else first_of(seen, frames))  # fmt: skip

    def _tell(self, label: str, steps: int) -> None:
        if self.on_steps is not None:
            self.on_steps(label, steps)


@contextlib.contextmanager
def attached(session: Session) -> Iterator[None]:
    """A session that counts only in the block; one for all fast runs, as a user enables once, too."""
    session.attach()
    try:
        yield
    finally:
        session.detach()


def _array(latents: Any) -> NDArray[np.float32] | None:
    """Latents as fp32, which holds every value of the half-precision types."""
    if latents is None:
        return None
    return np.asarray(latents.detach().to("cpu", torch.float32).numpy())


def synchronize() -> None:
    """Wait for a GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
