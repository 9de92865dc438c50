"""When a run is dense and when it is sparse: the user's setting and its resolution for one run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """Which steps and layers stay dense.

    Each value is a whole number (a count) or a float in [0, 1] (a fraction of the run's steps or of the model's layers,
    rounded down): fractions by default, so that runs of 4 to 8 steps stay sparse too.

    Args:
        dense_first_steps: steps at the start of a run; early steps fix the layout of the clip.
        dense_last_steps: steps at its end; dense last steps sharpen detail.
        dense_first_layers: layers at the start of the model.

    Raises:
        ValueError: a negative value, or a fraction above 1.
    """

    dense_first_steps: float = 0.25
    dense_last_steps: float = 0
    dense_first_layers: float = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf or (isinstance(value, float) and value > 1):
                raise ValueError(f"{name}={value!r} is neither a count of at least 0 nor a fraction from 0.0 to 1.0")

    @classmethod
    def of(cls, values: Schedule | Mapping[str, Any]) -> Schedule:
        """A schedule from one, or from a mapping of its fields.

        Raises:
            ValueError: an unknown field or a bad value.
        """
        if isinstance(values, Schedule):
            return values
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"a schedule has no {unknown[0]!r}; it has {', '.join(known)}")
        return cls(**values)

    @property
    def needs_steps(self) -> bool:
        """Whether it can only be resolved for a known number of steps."""
        return (isinstance(self.dense_first_steps, float) and self.dense_first_steps > 0) or self.dense_last_steps > 0

    def resolve(self, steps: int | None, layers: int, computed: tuple[float, float] | None = None) -> StepPlan:
        """The plan of a run of `steps` steps on a model of `layers` attention layers.

        Args:
            computed: steps at the start and at the end of the run that a cache never reuses, each a count or a
                fraction; None without a cache.

        Raises:
            ValueError: `steps` is None and this schedule, or `computed`, needs it.
        """
        if steps is None and computed is not None and (isinstance(computed[0], float) or computed[1]):
            raise ValueError("which steps a cache may reuse depends on the number of steps, which a bare transformer "
                             "does not know: pass num_inference_steps, or a count of first_steps and last_steps=0")
        if steps is None and self.needs_steps:
            raise ValueError(
                f"{self} is relative to the number of steps, which a bare transformer does not know: pass "
                "num_inference_steps, or give dense_first_steps as a count and no dense_last_steps"
            )
        end = math.inf if steps is None else steps - _count(self.dense_last_steps, steps)
        first, last = computed if computed is not None else (0, 0)
        reuse_end = math.inf if steps is None else steps - _count(last, steps)
        # Nothing stands before the first step that could be reused.
        reuse = (max(1, _count(first, steps or 0)), reuse_end) if computed is not None else (0, 0)
        return StepPlan(_count(self.dense_first_steps, steps or 0), end, _count(self.dense_first_layers, layers), reuse)


def _count(value: float, total: int) -> int:
    """A count as it is, a fraction of `total` rounded down."""
    # The margin keeps 0.3 * 10 at 3, whatever its last bit.
    return int(value * total + 1e-9) if isinstance(value, float) else value


@dataclass(frozen=True)
class StepPlan:
    """A `Schedule` resolved for one run: sparse are the steps ``[first_step, end_step)`` from `first_layer` on.

    Args:
        reusable: steps ``[start, end)`` that a cache may reuse or predict; all others are computed.
    """

    first_step: int
    end_step: float
    first_layer: int
    reusable: tuple[int, float] = (0, 0)

    @property
    def any_sparse(self) -> bool:
        """Whether any step is."""
        return self.first_step < self.end_step

    def is_sparse(self, step: int, layer: int) -> bool:
        """Whether this layer of this step is sparse."""
        return self.sparse_step(step) and layer >= self.first_layer

    def sparse_step(self, step: int) -> bool:
        """Whether some layer of this step may be sparse. Where two computed steps differ in this, or in the density
        level, nothing of the one stands for the other."""
        return self.first_step <= step < self.end_step

    def may_reuse(self, step: int) -> bool:
        """Whether a cache may reuse or predict this step."""
        return self.reusable[0] <= step < self.reusable[1]
