"""What every cache policy has in common."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Protocol

from torch import Tensor

from vidaccel.architecture import Facts
from vidaccel.caching.calibration import CacheCalibration


class Place(Enum):
    """What is kept of a computed step."""

    STACK = "stack"
    """The residual of the block stack: what leaves it minus what enters it. Final norm and projection run again."""
    OUTPUT = "output"
    """The residual of the whole model: its output minus its latents. Far smaller."""
    PREDICTION = "prediction"
    """The model's output itself: the velocity or noise that it predicts."""


@dataclass(frozen=True)
class Turn:
    """One transformer call of a run, as a policy sees it.

    Args:
        step, steps: of the run, counted over all experts; `steps` is None where only a bare transformer is known.
        branch, expert: the guidance pass and the transformer.
        expert_step: the run's step at which this transformer took over; 0 for the first.
        timestep: of this step, as the model gets it.
        timesteps: of all steps of the run; None where unknown.
        since: steps since this branch was last computed, 0 where what it gave was dropped since, or never was.
        must_compute: the plan computes this step whatever the policy says.
        allowance: share of its threshold that a policy may spend, in (0, 1]: less where attention is sparse.
    """

    step: int
    steps: int | None
    branch: str
    expert: str
    expert_step: int
    timestep: float
    timesteps: tuple[float, ...] | None
    since: int
    must_compute: bool
    allowance: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """What a policy proposes for a call, and the number it went by; None where it went by none."""

    reuse: bool
    indicator: float | None = None


class Signals(Protocol):
    """What a policy may look at before a call's blocks run; each is computed when it is asked for.

    All are of the batch rows that decide: the conditional half where both guidance passes share one call. Where one
    clip is split over processes, each sees its own tokens of what the blocks give, and must come to the same verdict:
    what a verdict goes by is a `mean`, or made of what was `agreed`.
    """

    def mean(self, values: Tensor) -> Tensor:
        """Mean over all elements, of a tensor of whole latents or tokens or of those that this process has: one number
        of its type, on all processes the same."""

    def agreed(self, values: Tensor) -> Tensor:
        """A few numbers that each process has computed by itself, from the same: on all processes the same."""

    def latents(self) -> Tensor:
        """The model's input, the channels that its output has, too: ``[batch, ...]``."""

    def time_embedding(self, timesteps: tuple[float, ...]) -> Tensor:
        """The model's embedding of each of these: ``[timesteps, dim]``.

        Raises:
            ValueError: the family has no signal of the timestep alone.
        """

    def modulated(self) -> Tensor:
        """The video tokens as the first block's attention reads them, modulated: ``[batch, tokens, dim]``."""

    def first_residual(self) -> Tensor:
        """What the first block adds to the video tokens ``[batch, tokens, dim]``; only where `CachePolicy.segments`
        begin after it."""


class Forecast(Protocol):
    """What a policy may know of the predictor, which is `vidaccel.caching.predictors.Predictor`."""

    @property
    def tensors(self) -> int:
        """How many computed steps it looks back at, at most."""

    def weights(self, past: Sequence[int], step: int) -> tuple[float, ...]:
        """Of what each of the last computed steps gave, rising and up to `tensors`, for a later step."""


class CachePolicy(ABC):
    """A way to decide which steps are computed. Subclasses are frozen dataclasses: the fields are the options.

    A policy holds no state of a run: what it must remember lives in the `state` dictionary that it is passed, one per
    expert and guidance branch, emptied for each generation and wherever the plan forbids to look back: at a change
    between dense and sparse attention or of its density, of the expert or of a LoRA scale.
    """

    name: ClassVar[str]
    """In `enable(..., cache=...)`, in the CLI and in records."""
    paper: ClassVar[str] = ""
    """Source paper."""
    place: ClassVar[Place] = Place.STACK
    """What it goes by, and unless `gives` or the user says otherwise (`Cache.reuse`) what is reused."""
    gives: ClassVar[Place | None] = None
    """What is reused instead."""
    leads: ClassVar[bool] = True
    """Whether the first guidance pass of a step decides for all; else each decides for itself."""
    first_steps: ClassVar[float] = 1
    """Steps at the start of a run that are always computed, as in `Schedule`: the paper's."""
    last_steps: ClassVar[float] = 1
    """The same at its end."""
    any_steps: ClassVar[bool] = False
    """Whether it can run with another number of steps than its calibration's."""
    corrects: ClassVar[bool] = False
    """Whether it has a `correction`, for the predictor "affine"."""

    @property
    def calibration(self) -> CacheCalibration | None:
        """The file that it goes by."""
        return None

    def check_models(self, models: Mapping[str, Facts]) -> None:
        """Refuse denoisers, by their attribute of the pipeline, that numbers of its own are not for.

        Its `calibration` is checked beside it.

        Raises:
            ValueError: what differs.
        """
        return

    @property
    def whole(self) -> bool:
        """Whether it passes by all blocks or none."""
        return type(self).segments is CachePolicy.segments

    def suited(self, predictor: Forecast) -> CachePolicy:
        """This policy, for what a reused step is given by this predictor."""
        return self

    def segments(self, blocks: int) -> tuple[tuple[int, int], ...]:
        """Ranges ``[start, end)`` of blocks whose residuals are kept and reused; all others run in every step."""
        return ((0, blocks),)

    @abstractmethod
    def decide(self, turn: Turn, signals: Signals, state: dict[str, Any]) -> Verdict:
        """Whether to reuse what the last computed step of this branch gave.

        Called before every call that could be reused or that later ones could be compared with, forced ones
        (`turn.must_compute`) included: the verdict then does not count, but what is remembered does.
        """

    def observe(self, turn: Turn, signals: Signals, residual: Tensor, state: dict[str, Any]) -> None:
        """Learn from a computed call.

        Args:
            residual: of the deciding rows: of the first segment's video tokens ``[batch, tokens, dim]`` where `place`
                is STACK, else of the model, as latents.
        """
        return

    def correction(self, turn: Turn, kept_step: int) -> tuple[float, float] | None:
        """Measured (a, b) by which the output v of a call that reuses `kept_step` is ``a v + b`` off; None without."""
        return None

    @property
    def adjusts(self) -> bool:
        """Whether reused steps take less of the run's time, see `stride`; needs a scheduler that allows it."""
        return False

    def stride(self, turn: Turn, kept_step: int) -> tuple[float, int]:
        """Where it adjusts: the share of its time that a step takes which reuses `kept_step`, in [0, 1], and the step,
        or the end of the run, up to which the steps between take the rest."""
        return 1.0, turn.step + 1

    def to_dict(self) -> dict[str, Any]:
        """Name and options, JSON-ready."""
        return {"name": self.name, "options": dataclasses.asdict(self)}  # type: ignore[call-overload]


def check_share(name: str, value: Any, most: float = float("inf")) -> None:
    """Refuse what is no finite number above 0, up to `most`.

    Raises:
        ValueError: what was given.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    if not good or value > most:
        raise ValueError(f"{name} {value!r} is not a number above 0" + (f" and up to {most:g}" if most < 1e9 else ""))
