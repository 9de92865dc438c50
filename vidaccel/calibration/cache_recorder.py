"""Measures one generation for step caching, through ordinary forward hooks on the denoisers and their blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vidaccel.calibration import cache_measures as measures
from vidaccel.clock import Clock
from vidaccel.pipelines.base import Call, Family

Key = tuple[str, str]
"""Expert and branch."""
PAIRS = ("stack", "output", "affine")


@dataclass
class Before:
    """What is kept of the steps of one expert and branch; on the CPU, residuals of the stack in the model's type."""

    first_step: int
    stacks: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)
    output: Tensor | None = None
    signal: Tensor | None = None
    blocks: list[Tensor] = field(default_factory=list)
    rows: dict[str, list[Any]] = field(default_factory=dict)
    """What was measured: for each step a number, or numbers."""


class Recorder:
    """Watches one generation of a pipeline.

    Args:
        pipe: with its scheduler, whose timesteps count the steps.
        modules, families: the denoisers, by expert.
        clips: that one generation makes.
        samples: video tokens of which residuals of blocks are compared; all where there are fewer.
        seed: of which tokens.
    """

    def __init__(
        self, pipe: Any, modules: dict[str, nn.Module], families: dict[str, Family], clips: int, samples: int, seed: int
    ) -> None:
        self.pipe, self.modules, self.families = pipe, modules, families
        self.clips, self.samples, self.seed = clips, samples, seed
        self.tracks: dict[Key, Before] = {}
        self.timesteps: list[float] = []
        self._clock = Clock(rising=any(family.timesteps_rise for family in families.values()))
        self._tokens: Tensor | None = None
        # Of the call on its way.
        self._call: Call | None = None
        self._entered: Tensor | None = None
        self._left: Tensor | None = None
        self._signal: Tensor | None = None
        self._blocks: list[Tensor] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """A block in which the pipeline's calls are measured.

        Raises:
            ValueError: calls that are not one for each step and guidance branch.
        """
        hooks = [hook for name in self.modules for hook in self._attach(name)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def result(self) -> dict[str, Tensor]:
        """What was measured, by ``EXPERT.BRANCH.NAME``: of a pair of steps at ``[later, earlier]``, and 0 elsewhere.

        Raises:
            ValueError: nothing was.
        """
        if not self.tracks:
            raise ValueError("the generation did not call the model that is calibrated")
        found: dict[str, Tensor] = {"timesteps": torch.tensor(self.timesteps, dtype=torch.float64)}
        for (expert, branch), track in self.tracks.items():
            where = f"{expert}.{branch}"
            found[f"{where}.first_step"] = torch.tensor(track.first_step)
            for name, rows in track.rows.items():
                found[f"{where}.{name}"] = _square(name, rows) if name in PAIRS else _tensor(rows)
        return found

    def _attach(self, expert: str) -> list[Any]:
        module, family = self.modules[expert], self.families[expert]
        blocks = family.blocks(module)

        def first(block: nn.Module, args: Any, kwargs: Any) -> None:
            self._first(expert, block, Call(args, kwargs))

        def after(block: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            self._block(expert, Call(args, kwargs), out)

        def end(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            self._end(expert, Call(args, kwargs), out)

        hooks = [module.register_forward_pre_hook(self._begin, with_kwargs=True)]
        hooks += [blocks[0].register_forward_pre_hook(first, with_kwargs=True)]
        hooks += [block.register_forward_hook(after, with_kwargs=True) for block in blocks]
        return [*hooks, module.register_forward_hook(end, with_kwargs=True)]

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._entered = self._left = self._signal = None
        self._blocks = []

    def _first(self, expert: str, block: nn.Module, call: Call) -> None:
        """Note the signal of modulated inputs, where the family has one, and none of the timestep alone."""
        family = self.families[expert]
        if not _offers(family, "time_embedding") and _offers(family, "modulated"):
            self._signal = self._sample(expert, family.modulated(block, call)).float().cpu()

    def _block(self, expert: str, call: Call, out: Any) -> None:
        entered = self._sample(expert, call.get(*self.families[expert].streams[0]))
        self._left = self._sample(expert, out if isinstance(out, Tensor) else out[0])
        self._entered = entered if self._entered is None else self._entered
        self._blocks.append(_difference(self._left, entered))

    def _sample(self, expert: str, states: Tensor) -> Tensor:
        """The sampled tokens of the rows that count: ``[rows, samples, dim]``."""
        states = self._rows(expert, states)
        if self._tokens is None:
            shuffled = torch.randperm(states.shape[1], generator=torch.Generator().manual_seed(self.seed))
            self._tokens = shuffled[: self.samples].sort().values
        return states[:, self._tokens.to(states.device)]

    def _rows(self, expert: str, states: Tensor) -> Tensor:
        """The conditional half, where both guidance passes share a call."""
        # CogVideoX's pipeline does not say whether it guides, but a guided call has two rows for each clip.
        both = self.families[expert].batched_guidance and len(states) == 2 * self.clips
        return states[self.clips :] if both else states

    def _end(self, expert: str, call: Call, out: Any) -> None:
        """Measure a call that has run."""
        family = self.families[expert]
        if self._entered is None or self._left is None:
            raise ValueError(f"{type(self.modules[expert]).__name__} ran without its blocks, so that they cannot be "
                             "measured")  # fmt: skip
        track = self._track(expert, family.timestep(call))
        output = out if isinstance(out, Tensor) else out[0]
        if _offers(family, "time_embedding"):
            at = torch.tensor([self.timesteps[-1]], device=output.device)
            self._signal = family.time_embedding(self.modules[expert], at).float().cpu()
        latents = _copy(self._rows(expert, family.latents(self.modules[expert], call)))
        self._add(track, _difference(self._left, self._entered).cpu(), latents, _copy(self._rows(expert, output)))

    def _track(self, expert: str, timestep: Tensor) -> Before:
        """What there is of this call's expert and branch.

        Raises:
            ValueError: a second run, or more calls of a step than there are guidance branches.
        """
        new = self._clock.read(timestep, self.pipe.scheduler, self.families[expert].scheduled(self.pipe.scheduler))
        if new and self.timesteps:
            raise ValueError("the pipeline ran twice in one generation, which cannot be calibrated")
        branches = self.families[expert].branches
        if self._clock.calls >= len(branches):
            raise ValueError(f"the pipeline called the model {self._clock.calls + 1} times in a step; a calibration "
                             f"knows {' and '.join(branches)}")  # fmt: skip
        if self._clock.calls == 0:
            # The call's may be rounded, and alike for steps in a row.
            known = self._clock.timesteps
            self.timesteps.append(float(timestep.max()) if known is None else known[self._clock.step])
        return self.tracks.setdefault((expert, branches[self._clock.calls]), Before(self._clock.step))

    def _add(self, track: Before, stack: Tensor, latents: Tensor, output: Tensor) -> None:
        """Compare a step with those before it, and keep it."""
        residual = output - latents
        held = [latents + each for each in track.residuals]
        found: dict[str, Any] = {
            "ratio": measures.norm_ratio(stack, track.stacks[-1]) if track.stacks else 1.0,
            "stack": [measures.relative(stack, each, stack) for each in track.stacks],
            "output": [measures.relative(residual, each, residual) for each in track.residuals],
            "affine": [measures.moments(each, each - output) for each in held],
            "change": 0.0 if track.output is None else measures.relative(output, track.output, track.output),
            "blocks": [measures.relative(each, before, each) for each, before in
                       zip(self._blocks, track.blocks, strict=True)] if track.blocks else [0.0] * len(self._blocks),
            "output_size": measures.size(output), "residual_size": measures.size(residual),
        }  # fmt: skip
        if self._signal is not None:
            former = track.signal
            found["time_distance"] = 0.0 if former is None else measures.relative(self._signal, former, former)
        for name, row in found.items():
            track.rows.setdefault(name, []).append(row)
        track.stacks.append(stack)
        track.residuals.append(residual)
        track.output, track.signal, track.blocks = output, self._signal, self._blocks


def _offers(family: Family, signal: str) -> bool:
    """Whether a family has one of the signals that not all have."""
    return getattr(type(family), signal) is not getattr(Family, signal)


def _copy(states: Tensor) -> Tensor:
    """In fp32 on the CPU: what comes after the model may write to its output."""
    return states.detach().to("cpu", torch.float32, copy=True)


def _difference(later: Tensor, earlier: Tensor) -> Tensor:
    """In fp32, as half precision would lose what little a block adds, and then in their type."""
    return (later.float() - earlier.float()).to(later.dtype)


def _tensor(rows: list[Any]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _square(name: str, rows: list[list[Any]]) -> Tensor:
    """``[steps, steps]``, or with `cache_measures.MOMENTS` at each."""
    steps = len(rows)
    found = torch.zeros(steps, steps, *([measures.MOMENTS] if name == "affine" else []), dtype=torch.float64)
    for step, row in enumerate(rows):
        if row:
            found[step, :step] = _tensor(row)
    return found
