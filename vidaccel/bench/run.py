"""All of ``vidaccel bench kernels``: what is measured in which order, and every result written as it comes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vidaccel.bench import costs, models, planning, plans, shapes, steps, tuning
from vidaccel.bench.attention import Board
from vidaccel.bench.budget import Budget, Line, Task
from vidaccel.bench.shapes import Shape
from vidaccel.eval import env
from vidaccel.eval.record import append_line

PARTS = ("attention", "models", "planning", "costs")
"""What a run measures; "tuning" comes on request."""
FIRST_DENSITIES = (0.2, 0.1, 1.0)
"""Those that matter most; others wait until every shape has these."""
MODEL_SECONDS = {"wan-14b-720p": 70, "wan-1.3b-480p": 15, "hunyuanvideo-720p": 110}
"""About how long a model takes on an H200: one pass to warm up, two of each kind and one for attention's share."""
SMOKE_DENSITIES = (1.0, 0.3)
SMOKE_OPTIONS = {"density": 0.5, "block": 16}


@dataclass(frozen=True)
class Setting:
    """What a run is asked for.

    Args:
        device, dtype: of all inputs.
        parts: of `PARTS`, and "tuning".
        shape, model: names; None for all.
        kinds, densities: of plans.
        method, options: of the models' sparse passes.
        minutes: the run ends in this time; None for no limit.
        repeats: timed passes of models.
        seed: of inputs, plans and weights.
        smoke: tiny shapes and models instead of real ones.

    Raises:
        ValueError: an unknown name or a density outside (0, 1].
    """

    device: torch.device
    dtype: torch.dtype
    parts: tuple[str, ...] = PARTS
    shape: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    kinds: tuple[str, ...] = plans.KINDS
    densities: tuple[float, ...] = plans.DENSITIES
    method: str = "radial"
    options: dict[str, Any] = field(default_factory=lambda: {"density": 0.2})
    minutes: float | None = 8.0
    repeats: int = 2
    seed: int = 0
    smoke: bool = False

    def __post_init__(self) -> None:
        for what, given, known in (("part", self.parts, (*PARTS, "tuning")), ("kind of plan", self.kinds, plans.KINDS)):
            for name in given:
                if name not in known:
                    raise ValueError(f"unknown {what} {name!r}; choose {', '.join(known)}")
        for density in self.densities:
            if not 0 < density <= 1:
                raise ValueError(f"density {density} is outside (0, 1]")
        for name, number in (("minutes", self.minutes), ("repeats", self.repeats)):
            if number is not None and not number > 0:
                raise ValueError(f"{name} {number} is not positive")
        shapes.chosen(list(self.shape), self.smoke)
        models.chosen(list(self.model), self.smoke)


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Args:
        lines: every result, as written.
        left_out: names of what did not fit into the time.
    """

    lines: list[Line]
    left_out: list[str]

    @property
    def wrong(self) -> list[Line]:
        """Results that failed their check, and runs of ours that raised."""
        return [line for line in self.lines if "red" in line or (line.get("ours") and "failed" in line)]


def run(setting: Setting, out: Path | None, say: Callable[[str], None]) -> Outcome:
    """Measure, most important first.

    Args:
        out: file that gets one JSON line per result, at once, each with its provenance; None writes nothing.
        say: hears of each result in one line.
    """
    budget, left_out, lines = Budget(setting.minutes), [], []  # type: ignore[var-annotated]
    where = {"benchmark": "kernels", "smoke": setting.smoke, "seed": setting.seed, **env.provenance()}
    for line in budget.run(tasks(setting), left_out):
        lines.append({**where, **line})
        if out is not None:
            append_line(out, lines[-1])
        say(described(line))
    for name in left_out:
        say(f"left out for lack of time: {name}")
    return Outcome(lines, left_out)


def tasks(setting: Setting) -> list[Task]:
    """Everything that is asked for."""
    board = Board(setting.device, setting.dtype, setting.seed)
    found: list[Task] = []
    for place, shape in enumerate(shapes.chosen(list(setting.shape), setting.smoke)):
        if "attention" in setting.parts:
            found += _attention(board, shape, setting, place)
        if "planning" in setting.parts:
            lines = functools.partial(planning.lines, board, shape)
            found.append(Task(f"planning at {shape.name}", 10 * place + 3, lines))
        if "tuning" in setting.parts:
            lines = functools.partial(tuning.lines, board, shape)
            found.append(Task(f"tuning at {shape.name}", 5 + place, lines))
    if "costs" in setting.parts:
        # Seconds, and what decides which calls stay dense: right after the most important shape.
        found.append(Task("costs", 4, lambda: costs.lines(board, setting.smoke)))
    if "models" in setting.parts:
        found += [_model(model, setting) for model in models.chosen(list(setting.model), setting.smoke)]
    return found


def _attention(board: Board, shape: Shape, setting: Setting, place: int) -> Iterator[Task]:
    """Dense first, as the yardstick; then the densities that matter most, of all shapes before the others of any."""
    yield Task(f"{shape.name} dense", 10 * place, lambda: board.dense_lines(shape))
    for density in setting.densities:
        for kind in setting.kinds:
            rank = 10 * place + 1 if density in FIRST_DENSITIES else 60 + place
            lines = functools.partial(board.sparse_lines, shape, kind, density)
            yield Task(f"{shape.name} {kind} {density:g}", rank, lines)


def _model(model: models.Model, setting: Setting) -> Task:
    """After the attention of its shape."""

    def lines() -> Iterator[Line]:
        yield from steps.lines(model, setting.method, setting.options, setting.device, setting.dtype, setting.seed,
                               setting.repeats)  # fmt: skip
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()

    seconds = 0.0 if setting.smoke else MODEL_SECONDS.get(model.name, 10.0)
    place = next((place for place, shape in enumerate(shapes.SHAPES) if shape.name == model.name), 0)
    return Task(f"model {model.name}", 10 * place + 2, lines, seconds)


def described(line: Line) -> str:
    """One result in one short line."""
    what = {
        "attention": lambda: f"{line['shape']} {line['plan']} {line['density']:.3f} {line['implementation']}",
        "planning": lambda: f"{line['shape']} {line['operation']}",
        "tuning": lambda: f"{line['shape']} query block {line['query_block']} {line['row']}",
        "model": lambda: f"{line['model']} {line['method']}",
        "costs": lambda: f"costs {line['heads']} heads of {line['head_dim']}",
    }[line["case"]]()
    for problem in ("red", "failed", "skipped"):
        if problem in line:
            return f"{what}: {problem}: {line[problem]}"
    if line["case"] == "model":
        return (f"{what}: dense {line['dense_median_s']:.2f} s, sparse {line['sparse_median_s']:.2f} s, "
                f"{line['speedup']:.2f}x, limit {line['predicted_limit']:.2f}x")  # fmt: skip
    if line["case"] == "costs":
        return f"{what}: per pair {line['coefficients']['per_pair']:.3g}, misses by {line['median_error']:.1%}"
    parts = [f"{line['p50_ms']:.3g} ms"]
    parts += [f"{line['tflops']:.3g} TFLOP/s"] if "tflops" in line else []
    parts += [f"fastest of {line['fastest_of']}"] if "fastest_of" in line else []
    parts += [f"efficiency {line['efficiency']:.2f}"] if "efficiency" in line else []
    parts += [f"{line['share_of_dense']:.2%} of dense"] if line.get("share_of_dense") is not None else []
    return f"{what}: {', '.join(parts)}"
