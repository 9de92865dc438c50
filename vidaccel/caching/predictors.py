"""What a reused step is given: the last computed residual as it is, or continued from the last ones.

A predictor keeps tensors of one stream of one segment of one guidance branch; `Kept` is all that it remembers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """What is remembered of computed steps.

    Args:
        step: the last computed one.
        parts: tensors of one shape, the last computed residual first.
    """

    step: int
    parts: tuple[Tensor, ...]


class Predictor(ABC):
    """A way to give a residual for a step that is not computed. Subclasses are frozen dataclasses."""

    name: ClassVar[str]
    paper: ClassVar[str] = ""

    @property
    def tensors(self) -> int:
        """How many it keeps at most, each as large as the residual."""
        return 1

    def keep(self, kept: Kept | None, step: int, residual: Tensor) -> Kept:
        """What to remember once `step` is computed; `kept` is None at first, and after what forbids to look back."""
        return Kept(step, (residual,))

    @abstractmethod
    def predict(self, kept: Kept, step: int) -> Tensor:
        """The residual of a later step, of the same shape; never a tensor of `kept` that would be written to."""


@dataclass(frozen=True)
class Hold(Predictor):
    """The last computed residual as it is."""

    name: ClassVar[str] = "hold"

    def predict(self, kept: Kept, step: int) -> Tensor:
        return kept.parts[0]


@dataclass(frozen=True)
class Taylor(Predictor):
    """A Taylor series in steps, with differences between computed steps for derivatives (TaylorSeer).

    With ``f_0`` the last residual and ``d`` the steps between the last two computed ones,
    ``f_{j+1} = (f_j - f_j of then) / d``, and k steps later the residual is the sum of ``f_j k^j / j!``. Orders become
    available one by one, each with one more computed step.

    Args:
        order: 1 or 2; each order keeps one more tensor.
        start: differences are between steps from this one on: where a run begins, residuals turn too sharply.

    Raises:
        ValueError: another order, or a start that is no step.
    """

    name: ClassVar[str] = "taylor"
    paper: ClassVar[str] = "TaylorSeer, Liu et al. 2025 (arXiv 2503.06923)"

    order: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.start, int) or isinstance(self.start, bool) or self.start < 0:
            raise ValueError(f"start {self.start!r} of the Taylor predictor is not a step, counted from 0")
        if self.order not in (1, 2) or isinstance(self.order, bool):
            raise ValueError(f"order {self.order!r} of the Taylor predictor is neither 1 nor 2")

    @property
    def tensors(self) -> int:
        return self.order + 1

    def keep(self, kept: Kept | None, step: int, residual: Tensor) -> Kept:
        parts = [residual]
        if kept is not None and step > kept.step >= self.start:
            for former in kept.parts[: self.order]:
                parts.append((parts[-1] - former) / (step - kept.step))
        return Kept(step, tuple(parts))

    def predict(self, kept: Kept, step: int) -> Tensor:
        ahead, out = step - kept.step, kept.parts[0]
        for order, part in enumerate(kept.parts[1:], 1):
            out = out + part * (ahead**order / math.factorial(order))
        return out


@dataclass(frozen=True)
class Affine(Hold):
    """The last residual, and the policy's calibrated correction of the model's output: ``v - (a v + b)``.

    For policies that have measured one, at the model's output; see `CachePolicy.correction`.
    """

    name: ClassVar[str] = "affine"
    paper: ClassVar[str] = "ERTACache, Peng et al. 2025 (arXiv 2508.21091)"


PREDICTORS: dict[str, type[Predictor]] = {cls.name: cls for cls in (Hold, Taylor, Affine)}
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
