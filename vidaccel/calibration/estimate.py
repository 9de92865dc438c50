"""How long calibrating a real model would take, from counted work and assumed rates: an estimate, not a measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vidaccel.calibration.grid import MOST_CELLS
from vidaccel.calibration.recorder import ROWS_PER_CELL
from vidaccel.layout import TokenLayout

ORDERS, AXIS_ORDERS = 9, 6
"""Token orders in which the library "all" measures, and in which it maps."""
LAUNCHES = 200
"""Kernels that measuring one head of one call launches."""


@dataclass(frozen=True)
class Model:
    """A denoiser and its run.

    Args:
        weights: of all its linear layers that every token passes through.
        passes: through it in each step.
        steps: of a run.
    """

    layout: TokenLayout
    layers: int
    heads: int
    head_dim: int
    weights: float
    passes: int
    steps: int


@dataclass(frozen=True)
class Rates:
    """Assumed speeds; the defaults are for one H200.

    Args:
        model: operations per second of the model's own bf16 work, attention and linear layers together.
        fp32: of the measuring, which is in fp32.
        memory: bytes per second.
        launch: seconds to launch a kernel.
        pattern, costed: seconds of the host to make a pattern's blocks, and to price it.
    """

    model: float = 450e12
    fp32: float = 30e12
    memory: float = 4e12
    launch: float = 8e-6
    pattern: float = 2e-3
    costed: float = 6e-3


@dataclass(frozen=True)
class Estimate:
    """Counted operations and the seconds that they come to.

    Args:
        generating: seconds of all dense generations.
        measuring: of what is measured and mapped in them.
        choosing: of the host, making the heads' patterns and pricing them.
        model_pflop, measured_pflop: the operations behind the first two.
    """

    generating: float
    measuring: float
    choosing: float
    model_pflop: float
    measured_pflop: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.generating + self.measuring + self.choosing


def estimate(
    model: Model, *, prompts: int = 4, rows: int = 64, sampled_steps: int = 4, block: int = 128, shared: int = 210,
    own: int = 32, rates: Rates | None = None,
) -> Estimate:  # fmt: skip
    """What `calibrate` would take.

    Args:
        sampled_steps: of each run, all bands together.
        shared, own: candidates of all heads and of each single one.
    """
    rates = rates or Rates()
    tokens, dim = model.layout.tokens, model.head_dim
    attention = 4 * tokens**2 * dim * model.heads * model.layers
    of_run = model.passes * model.steps * (attention + 2 * model.weights * tokens)
    tiles = math.ceil(tokens / block)
    errors = 2 * tokens * dim * (rows + dim) + 2 * rows * (dim + 1) * (ORDERS * tokens + tiles * (shared + own))
    error_bytes = 12 * ORDERS * tokens * (rows + dim + 1)
    mapped = ROWS_PER_CELL * MOST_CELLS
    maps = 2 * mapped * tokens * (dim + AXIS_ORDERS * MOST_CELLS)
    map_bytes = 4 * AXIS_ORDERS * tokens * (mapped + MOST_CELLS)
    calls = sampled_steps * model.passes * model.layers * model.heads
    mapping = prompts // 2
    of_errors = errors / rates.fp32 + error_bytes / rates.memory + LAUNCHES * rates.launch
    of_maps = maps / rates.fp32 + map_bytes / rates.memory + LAUNCHES * rates.launch
    patterns = model.layers * model.heads * own + shared
    return Estimate(
        generating=prompts * of_run / rates.model,
        measuring=calls * ((prompts - mapping) * of_errors + mapping * of_maps),
        choosing=patterns * (rates.pattern + rates.costed),
        model_pflop=prompts * of_run / 1e15,
        measured_pflop=calls * ((prompts - mapping) * errors + mapping * maps) / 1e15,
    )
