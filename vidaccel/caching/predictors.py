"""What a reused step is given: a weighted sum of what the last computed steps gave.

A predictor looks at tensors of one stream of one segment of one guidance branch; `Kept` is all that it remembers.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.caching.base import Place, check_share
from vidaccel.caching.calibration import CacheCalibration

KNOWN = "_known"


@dataclass(frozen=True)
class Kept:
    """What is remembered of computed steps.

    Args:
        steps: rising.
        parts: what each gave: tensors of one shape.
    """

    steps: tuple[int, ...]
    parts: tuple[Tensor, ...]

    @property
    def step(self) -> int:
        """The last one."""
        return self.steps[-1]

    @property
    def last(self) -> Tensor:
        """What that one gave."""
        return self.parts[-1]


class Predictor(ABC):
    """A way to give a residual or an output for a step that is not computed. Subclasses are frozen dataclasses."""

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    place: ClassVar[Place | None] = None
    """The one thing that it can be given; None for any."""

    @property
    def tensors(self) -> int:
        """How many steps it looks back at, at most."""
        return 1

    @property
    def calibration(self) -> CacheCalibration | None:
        """The file that it goes by."""
        return None

    def bound(self, calibration: CacheCalibration | None) -> Predictor:
        """This predictor, for a policy that goes by this calibration.

        Raises:
            ValueError: it needs one, and there is none.
        """
        return self

    @abstractmethod
    def weights(self, past: Sequence[int], step: int) -> tuple[float, ...]:
        """Of what each of the last computed steps gave, rising and up to `tensors`, for a later step."""

    def keep(self, kept: Kept | None, step: int, given: Tensor) -> Kept:
        """What to remember once `step` is computed; `kept` is None at first, and after what forbids to look back."""
        steps, parts = (kept.steps, kept.parts) if kept is not None else ((), ())
        return Kept((*steps, step)[-self.tensors :], (*parts, given)[-self.tensors :])

    def predict(self, kept: Kept, step: int) -> Tensor:
        """What stands for a later step, of the same shape; never a tensor of `kept` that would be written to."""
        *weights, _ = own = self.weights(kept.steps, step)
        # As differences from the last: half precision would lose them in a sum of large terms.
        out = kept.last if (total := sum(own)) == 1 else kept.last * total
        for weight, part in zip(weights, kept.parts, strict=False):
            out = out if weight == 0 else torch.add(out, part - kept.last, alpha=weight)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Name and options, JSON-ready."""
        return {"name": self.name, **dataclasses.asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Hold(Predictor):
    """What the last computed step gave, as it is."""

    name: ClassVar[str] = "hold"

    def weights(self, past: Sequence[int], step: int) -> tuple[float, ...]:
        return (1.0,)


@dataclass(frozen=True)
class Taylor(Predictor):
    """A damped Taylor series in steps, with differences between computed steps for derivatives (TaylorSeer).

    With ``f_0`` the last residual and ``d`` the steps between the last two computed ones,
    ``f_{j+1} = (f_j - f_j of then) / d``, and k steps later the residual is the sum of ``f_j k^j / j!``. Orders become
    available one by one, each with one more computed step. Of all but ``f_0`` only the share `trend` counts:
    differences point too far ahead as a rule, and damping them made clips of three trained miniatures up to 2.6 dB
    better than the whole series did, and none more than 0.2 dB worse (docs/caching.md).

    Args:
        order: 1 or 2; each order keeps one more tensor.
        trend: above 0 and up to 1; 1 is TaylorSeer's.
        start: differences are between steps from this one on: where a run begins, residuals turn too sharply.

    Raises:
        ValueError: another order, a trend out of range, or a start that is no step.
    """

    name: ClassVar[str] = "taylor"
    paper: ClassVar[str] = "TaylorSeer, Liu et al. 2025 (arXiv 2503.06923)"

    order: int = 1
    start: int = 2
    trend: float = 0.7

    def __post_init__(self) -> None:
        if not isinstance(self.start, int) or isinstance(self.start, bool) or self.start < 0:
            raise ValueError(f"start {self.start!r} of the Taylor predictor is not a step, counted from 0")
        _check_count("order", self.order, 2, "Taylor")
        check_share("trend of the Taylor predictor", self.trend, 1)

    @property
    def tensors(self) -> int:
        return self.order + 1

    def weights(self, past: Sequence[int], step: int) -> tuple[float, ...]:
        early = sum(each < self.start for each in past[:-1])
        used = past[early:]
        # Each f_j as its weights of the used steps' residuals, last first; `found` is their sum, up to the first one.
        level = [[float(i == j) for j in range(len(used))] for i in range(len(used))]
        found, factor = list(level[-1]), self.trend
        for order in range(1, len(used)):
            level = [_divided(level[i], level[i - 1], used[i + order - 1] - used[i + order - 2])
                     for i in range(1, len(level))]  # fmt: skip
            factor *= (step - used[-1]) / order
            found = [old + factor * new for old, new in zip(found, level[-1], strict=True)]
        return (0.0,) * early + tuple(found)


@dataclass(frozen=True)
class Fitted(Predictor):
    """The weighted sum of the last computed outputs that was nearest to the step's own when it was calibrated.

    A linear multistep method whose weights are not those of a polynomial through the last outputs but a least squares
    fit to the outputs of calibration runs, found from their inner products (`vidaccel.caching.guided.Guided`) for
    whatever steps were computed. Neighbouring outputs of one model differ alike for all prompts, so that a few runs
    tell the weights. Each guidance branch is given the same weights.

    Args:
        outputs: how many computed outputs are combined at most, 1 to 4; each is as large as the latents.
        file: a calibration, as for `vidaccel.caching.measured.Measured`; None for the policy's.

    Raises:
        ValueError: another number of outputs, or a calibration that cannot be read.
    """

    name: ClassVar[str] = "fitted"
    place: ClassVar[Place | None] = Place.PREDICTION

    outputs: int = 2
    file: str | CacheCalibration | None = None

    def __post_init__(self) -> None:
        _check_count("outputs", self.outputs, 4, "fitted")
        if self.file is not None:
            self._know(CacheCalibration.of(self.file))

    @property
    def tensors(self) -> int:
        return self.outputs

    @property
    def calibration(self) -> CacheCalibration | None:
        return self.__dict__.get(KNOWN)

    def bound(self, calibration: CacheCalibration | None) -> Fitted:
        if self.calibration is not None:
            return self
        if calibration is None:
            raise ValueError("predictor 'fitted' needs a calibration: give the path of one as its 'file', or take a "
                             "policy with one; vidaccel calibrate-cache makes one")  # fmt: skip
        made = dataclasses.replace(self)
        made._know(calibration)
        return made

    def weights(self, past: Sequence[int], step: int) -> tuple[float, ...]:
        assert self.calibration is not None and self.calibration.guided is not None
        return self.calibration.guided.fit(past, step)

    def to_dict(self) -> dict[str, Any]:
        made = self.calibration
        named = made.reference if made is not None and isinstance(self.file, CacheCalibration) else self.file
        return {"name": self.name, "outputs": self.outputs, "file": named and str(named)}

    def _know(self, calibration: CacheCalibration) -> None:
        if calibration.guided is None:
            raise ValueError("predictor 'fitted' needs the products of guided outputs, which this calibration has not: "
                             "its scheduler takes more than one output a step")  # fmt: skip
        object.__setattr__(self, KNOWN, calibration)


@dataclass(frozen=True)
class Affine(Hold):
    """The last residual, and the policy's calibrated correction of the model's output: ``v - (a v + b)``.

    For policies that have measured one, at the model's output; see `CachePolicy.correction`.
    """

    name: ClassVar[str] = "affine"
    paper: ClassVar[str] = "ERTACache, Peng et al. 2025 (arXiv 2508.21091)"


PREDICTORS: dict[str, type[Predictor]] = {cls.name: cls for cls in (Hold, Taylor, Fitted, Affine)}
"""Every predictor by its name."""


def predictor(given: str | Mapping[str, Any] | Predictor) -> Predictor:
    """What the user gave as such: a name, a mapping with ``name`` and options, or one as it is.

    Raises:
        ValueError: no such name or option, or a bad value.
    """
    if isinstance(given, Predictor):
        return given
    values = {"name": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    cls = PREDICTORS.get(values.pop("name", None))  # type: ignore[arg-type]
    if cls is None:
        raise ValueError(f"unknown predictor {given!r}; choose {', '.join(PREDICTORS)}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"options of predictor {cls.name!r}: {error}") from None


def _check_count(name: str, value: Any, most: int, whose: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"{name} {value!r} of the {whose} predictor is not a whole number from 1 to {most}")


def _divided(later: list[float], earlier: list[float], steps: int) -> list[float]:
    return [(a - b) / steps for a, b in zip(later, earlier, strict=True)]
