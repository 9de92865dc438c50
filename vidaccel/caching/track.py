"""What was measured of one expert and guidance branch of a run, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from vidaccel import strict

MAX_STEPS = 250
"""Of a run: pairs of steps grow with its square."""
MAX_BLOCKS = 1024
MAX_ERROR = 1e12
DIGITS = 5
"""Significant digits of a number."""

Pairs = tuple[tuple[float, ...], ...]
"""A number for each step and each one before it: as many in row `i` as it has steps before it."""


@dataclass(frozen=True)
class Track:
    """Differences between the steps of one expert and branch, means over prompts.

    Steps count from this expert's first: row or entry `i` is of the run's step ``first_step + i``. "Relative L1" is
    the sum of absolute differences over the sum of the later one's absolute values.

    Args:
        first_step: of the run, at which this expert takes over.
        ratio: MagCache's gamma: mean over tokens of the norm of the stack's residual, over that of the step before;
            1 first.
        stack: of steps `i` and `j < i`, relative L1 between the residuals of the block stack: the error of holding
            the residual of `j` at `i`.
        output: the same of the whole model's residual, its output minus its latents.
        affine: ``(a, b)`` of the least squares fit ``a * held + b`` to ``held - output``, where ``held`` is the latents
            of step `i` plus the model's residual of step `j`.
        blocks: of each block, relative L1 between its own residual and that of the step before; zeros first.
        change: mean absolute difference between the model's output and that of the step before, relative to the
            latter; 0 first.
        output_size, residual_size: mean absolute value of the model's output, and of its residual.
        time_distance: as `change`, of the signal that TeaCache goes by. None where the family offers no such signal.
    """

    first_step: int
    ratio: tuple[float, ...]
    stack: Pairs
    output: Pairs
    affine: tuple[tuple[tuple[float, float], ...], ...]
    blocks: tuple[tuple[float, ...], ...]
    change: tuple[float, ...]
    output_size: tuple[float, ...]
    residual_size: tuple[float, ...]
    time_distance: tuple[float, ...] | None = None

    @property
    def steps(self) -> int:
        """Steps that this expert runs."""
        return len(self.ratio)

    @property
    def covered(self) -> range:
        """The run's steps that this expert runs."""
        return range(self.first_step, self.first_step + self.steps)

    def to_dict(self) -> dict[str, Any]:
        """As in a file, JSON-ready."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def read(cls, value: Any, steps: int, where: str) -> Track:
        """One from a file, of a run of `steps` steps.

        Raises:
            ValueError: it is not one.
        """
        known = tuple(item.name for item in fields(cls))
        strict.names(where, value, known, known)
        first = strict.whole(f"{where}: first_step", value["first_step"], 0, steps - 1)
        count = len(strict.listed(f"{where}: ratio", value["ratio"], steps - first))
        wide = len(strict.listed(f"{where}: blocks[0]", _first(value["blocks"]), MAX_BLOCKS))
        distance = value["time_distance"]
        sizes = {name: _numbers(f"{where}: {name}", value[name], count)
                 for name in ("ratio", "change", "output_size", "residual_size")}  # fmt: skip
        return cls(
            first_step=first,
            stack=_pairs(f"{where}: stack", value["stack"], count, _number),
            output=_pairs(f"{where}: output", value["output"], count, _number),
            affine=_pairs(f"{where}: affine", value["affine"], count, _line),
            blocks=tuple(_numbers(f"{where}: blocks[{row}]", each, wide)
                         for row, each in enumerate(strict.listed(f"{where}: blocks", value["blocks"], count, count))),
            time_distance=None if distance is None else _numbers(f"{where}: time_distance", distance, count),
            **sizes,
        )  # fmt: skip


def rounded(value: float) -> float:
    """To `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}")


def _first(rows: Any) -> Any:
    return rows[0] if isinstance(rows, list) and rows else None


def _number(where: str, value: Any) -> float:
    return strict.number(where, value, MAX_ERROR)


def _line(where: str, value: Any) -> tuple[float, float]:
    """Two numbers of either sign."""
    first, second = (strict.signed(where, each, MAX_ERROR) for each in strict.listed(where, value, 2, 2))
    return first, second


def _numbers(where: str, value: Any, count: int) -> tuple[float, ...]:
    return tuple(_number(where, each) for each in strict.listed(where, value, count, count))


def _pairs(where: str, value: Any, count: int, read: Callable[[str, Any], Any]) -> tuple[tuple[Any, ...], ...]:
    rows = strict.listed(where, value, count, count)
    return tuple(tuple(read(f"{where}[{i}]", each) for each in strict.listed(f"{where}[{i}]", row, i, i))
                 for i, row in enumerate(rows))  # fmt: skip


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
