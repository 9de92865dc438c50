"""A calibration at further sizes: what the first one learned is measured there, too, and no more is learned."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidaccel.calibration import learned
from vidaccel.calibration.generation import OURS, Generations, Progress
from vidaccel.calibration.grid import Grid
from vidaccel.calibration.made import Own
from vidaccel.heads import MAX_SIZES

Size = Mapping[str, int]
"""Arguments of the pipeline's call that replace those of the first size."""
STEPS = "num_inference_steps"
EXAMPLE = {"height": 480, "width": 832}


class Further(Generations):
    """The measuring prompts of a calibration at another size.

    Args:
        before: the calibration at its other sizes, as far as they run before this one; the first one first.
        size: what is other here.
        progress: told of every step.

    Raises:
        ValueError: an argument that the pipeline does not take, or a size that runs already.
    """

    def __init__(self, before: Sequence[Generations], size: Size, progress: Progress | None) -> None:
        first = before[0]
        folder = None if first.folder is None else Path(first.folder).expanduser() / name_of(size)
        super().__init__(first.pipe, first.settings, {**first.kwargs, **size}, folder, progress)
        self.first, self.before, self.size = first, list(before), dict(size)
        self.prompts = range(self.settings.mapping, len(self.settings.prompts))
        self._factors = first._factors
        for each in self.before:
            names = {*self.size, *(each.size if isinstance(each, Further) else ())}
            if _call(each, names) == _call(self, names):
                raise ValueError(f"the size {words_of(size)} is calibrated twice")

    def digest(self) -> str:
        """Of all that the measurements depend on, what the first size learned among it."""
        hashed = hashlib.sha256(json.dumps([self.first.work.digest, sorted(self.size.items())]).encode())
        if self.settings.library.learned:
            for place, patterns in sorted(self.first.own(self.first.grid).items()):
                hashed.update(repr((place, patterns)).encode())
        return hashed.hexdigest()

    def own(self, grid: Grid) -> Own:
        """What the first size learned of single heads, for this one."""
        if self._own is None:
            made = self.first.own(self.first.grid)
            self._own = {place: learned.elsewhere(patterns, grid) for place, patterns in made.items()}
        return self._own

    def check(self, grid: Grid) -> None:
        """Refuse a grid that was measured at another size.

        Raises:
            ValueError: it was.
        """
        if any(each.grid.layout == grid.layout for each in self.before):
            raise ValueError(f"the size {words_of(self.size)} has the token grid {grid.layout}, as another one has")

    def _maps(self, prompt: int) -> bool:
        return False


def checked(also: Any) -> tuple[Size, ...]:
    """Further sizes, as far as they can be known to be good without a model.

    Raises:
        ValueError: one that is not.
    """
    if isinstance(also, (str, Mapping)) or not isinstance(also, Sequence) or len(also) > MAX_SIZES:
        raise ValueError(f"also={also!r} is not a list of at most {MAX_SIZES} sizes such as {EXAMPLE}")
    for at, size in enumerate(also):
        if not isinstance(size, Mapping) or not size:
            raise ValueError(f"also: {size!r} is not a size such as {EXAMPLE}")
        for name, value in size.items():
            if name in (*OURS, STEPS):
                raise ValueError(f"also: {name} is the same at all sizes")
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"also: {name}={value!r} is not a whole number of at least 1")
        if size in also[:at]:
            raise ValueError(f"the size {words_of(size)} is calibrated twice")
    return tuple(dict(size) for size in also)


def all_sizes(first: Generations, also: Sequence[Size], progress: Progress | None) -> list[Generations]:
    """A calibration at its first size and at further ones, all of which tell one progress.

    Raises:
        ValueError: a size that the pipeline does not take, or that comes twice.
    """
    every = [first]
    for size in also:
        every.append(Further(every, size, None))
    total = sum(each.steps * len(each.prompts) for each in every)
    before = 0
    for each in every:
        where = f" at {words_of(each.size)}" if isinstance(each, Further) else ""
        each.progress = _told(progress, before, total, where)
        before += each.steps * len(each.prompts)
    return every


def _told(progress: Progress | None, before: int, total: int, where: str) -> Progress | None:
    """A size's progress as a part of all."""
    return progress and (lambda what, done, _: progress(what + where, before + done, total))


def words_of(size: Size) -> str:
    """A size in messages."""
    return ", ".join(f"{name}={value}" for name, value in sorted(size.items()))


def name_of(size: Size) -> str:
    """Of a size's folder."""
    return "-".join(f"{name}-{value}" for name, value in sorted(size.items()))


def _call(run: Generations, names: Collection[str]) -> dict[str, Any]:
    """Some arguments of the pipeline's call, or its defaults."""
    parameters = inspect.signature(run.pipe.__call__).parameters
    return {name: run.kwargs.get(name, parameters[name].default) for name in names}
