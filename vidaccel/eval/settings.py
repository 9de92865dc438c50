"""What an eval is asked to do: its axes and the setting that all its cells share, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vidaccel import kernels
from vidaccel.compensation import compensation as read_compensation
from vidaccel.eval.caches import NONE, CacheValues, read_cache
from vidaccel.eval.checks import as_list, check_names, check_type
from vidaccel.methods import METHODS
from vidaccel.schedule import Schedule

DENSE, FEWER_STEPS, RANDOM = "dense", "fewer-steps", "random"
SAME_COMPUTE, OWN_TIMESTEPS = "same-compute", "own-timesteps"
BASELINES = (DENSE, FEWER_STEPS, RANDOM, SAME_COMPUTE, OWN_TIMESTEPS)
"""Dense itself again, dense with fewer steps at equal time, random blocks at equal density; for cells with a cache,
dense with as many steps as they computed, and dense at those very steps."""
STEPS_ALONE = (FEWER_STEPS, SAME_COMPUTE, OWN_TIMESTEPS)
"""Baselines that are dense with fewer steps, so that a density or cache of theirs has no meaning."""
CALL = {"steps": "num_inference_steps", "height": "height", "width": "width", "frames": "num_frames",
        "guidance": "guidance_scale", "negative_prompt": "negative_prompt"}  # fmt: skip
"""Settings that go to the pipeline's call, under its names."""
QUICK_PROMPTS = 4


@dataclass(frozen=True)
class Choice:
    """One entry of the method axis.

    Args:
        name: a method, or "dense".
        options: of the method, as given.
        schedule: fields of a `Schedule`; None for the eval's or the family's.
        compensation: of what is skipped, its name and all its options; None for the eval's.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] | None = None
    compensation: dict[str, Any] | None = None

    @classmethod
    def of(cls, given: Any) -> Choice:
        """A choice from a name or a mapping: ``name``, ``schedule``, ``compensation``, and options of the method.

        Raises:
            ValueError: no such method, option, schedule or compensation.
        """
        values = {"name": given} if isinstance(given, str) else given
        if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
            raise ValueError(f"method {given!r} is neither a name nor a mapping with a name")
        name, schedule, made_up = values["name"], values.get("schedule"), values.get("compensation")
        options = {key: item for key, item in values.items() if key not in ("name", "schedule", "compensation")}
        if name == DENSE:
            refused = [*options, *(key for key in ("schedule", "compensation") if values.get(key) is not None)]
            if refused:
                raise ValueError(f"method 'dense' takes no {refused[0]}")
        elif name in STEPS_ALONE:
            of = "sparse or cached" if name == FEWER_STEPS else "cached"
            raise ValueError(f"{name!r} is a baseline: it follows each {of} cell where baselines are on")
        elif name not in METHODS:
            raise ValueError(f"unknown method {name!r}; choose {', '.join((DENSE, *METHODS))}")
        else:
            _check_options(name, options)
        return cls(name, options, None if schedule is None else _schedule(schedule), _compensation(made_up))

    def crosses(self) -> bool:
        """Whether the density axis counts for it: not for dense, and not where its options set the density."""
        if self.name == DENSE or "density" not in _fields(self.name):
            return False
        return not {"density", *METHODS[self.name].alternatives} & set(self.options)


@dataclass(frozen=True)
class Settings:
    """The axes of an eval, and what its cells share. Make one with `Settings.of`; the names are those of a settings
    file and, with dashes, of the flags.

    Args:
        method: entries of the method axis, each a name or a mapping of ``name``, options and ``schedule``.
        density: video densities; each sparse method runs at each. Without one, at its own.
        cache: entries of the cache axis, each crossed with each method: "none", or what `read_cache` makes of a
            policy's name or a mapping of ``name``, options, limits and ``predictor``. With "dense" it is all there is.
        prompt: of the cells; in quick mode the first four.
        seed: of the noise.
        negative_prompt, steps, height, width, frames, guidance: of all runs; None for the model's own.
        schedule: fields of a `Schedule` for methods that have none of their own.
        repeats: timed runs of each cell.
        quick: only latents, nothing is decoded, and only four prompts.
        image: path of the first frame, for image-to-video pipelines; of all runs.
        breakdown: also where the time goes, in runs of their own: one dense and one for each row.
        lossless: also a video file of each clip without loss.
        baselines: of `BASELINES`, those that run beside the methods; True for all, False for none.
        backend: of the sparse attention.
        precision: of the sparse attention, "int8" or "fp8"; None for the model's own type.
        compensation: of what is skipped, for methods that name none of their own: its name and all its options.
    """

    method: tuple[Choice, ...] = (Choice("radial"),)
    density: tuple[float, ...] = ()
    cache: tuple[CacheValues, ...] = (NONE,)
    prompt: tuple[str, ...] = ()
    seed: tuple[int, ...] = (0,)
    negative_prompt: str | None = None
    steps: int | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    guidance: float | None = None
    schedule: dict[str, Any] | None = None
    repeats: int = 1
    quick: bool = False
    image: str | None = None
    breakdown: bool = False
    lossless: bool = False
    baselines: tuple[str, ...] = BASELINES
    backend: str = "auto"
    precision: str | None = None
    compensation: dict[str, Any] | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from plain values, such as those of a YAML file; an axis takes one value or a list.

        Raises:
            ValueError: an unknown name, a value of the wrong type or outside its range, an empty list, an entry twice.
        """
        check_names(values, [item.name for item in dataclasses.fields(cls)])
        read: dict[str, Any] = {}
        for name, item in values.items():
            if name in ("method", "density", "cache", "prompt", "seed"):
                read[name] = _axis(name, item)
            elif name == "baselines":
                read[name] = _baselines(item)
            elif name == "schedule":
                read[name] = None if item is None else _schedule(item)
            elif name == "compensation":
                read[name] = _compensation(item)
            else:
                read[name] = check_type(name, item, typing.get_type_hints(cls)[name])
        made = cls(**read)
        made._check()
        return made

    def call(self) -> dict[str, Any]:
        """Arguments of the pipeline's call that were given, under its names."""
        given = {argument: getattr(self, name) for name, argument in CALL.items()}
        return {argument: item for argument, item in given.items() if item is not None}

    def _check(self) -> None:
        for name in ("steps", "height", "width", "frames", "repeats"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} {number} is not a whole number of at least 1")
        if self.backend != "auto":
            kernels.backend(self.backend)
        kernels.check_precision(self.precision)
        if self.lossless and self.quick:
            raise ValueError("quick decodes nothing, so that there is no lossless video to keep: leave out one of them")
        if self.density and not any(choice.crosses() for choice in self.method):
            raise ValueError(f"none of the methods {', '.join(choice.name for choice in self.method)} takes a density "
                             "from the density axis")  # fmt: skip


def _axis(name: str, item: Any) -> tuple[Any, ...]:
    read = {"method": Choice.of, "density": _density, "cache": read_cache, "prompt": _prompt, "seed": _seed}[name]
    values = tuple(read(each) for each in as_list(name, item))
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{name} has {as_list(name, item)[index]!r} twice")
    return values


def _density(item: Any) -> float:
    value = float(check_type("density", item, float))
    if not 0 < value <= 1:
        raise ValueError(f"density {item} is outside (0, 1]")
    return value


def _prompt(item: Any) -> str:
    if not str(check_type("prompt", item, str)).strip():
        raise ValueError("a prompt is empty")
    return str(item)


def _seed(item: Any) -> int:
    value = int(check_type("seed", item, int))
    if not 0 <= value < 2**63:
        raise ValueError(f"seed {item} is not a whole number from 0 to 2**63 - 1")
    return value


def _baselines(item: Any) -> tuple[str, ...]:
    if isinstance(item, bool):
        return BASELINES if item else ()
    named = as_list("baselines", item)
    for name in named:
        if name not in BASELINES:
            raise ValueError(f"unknown baseline {name!r}; choose {', '.join(BASELINES)}, or true or false")
    return tuple(name for name in BASELINES if name in named)


def _schedule(item: Any) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise ValueError(f"schedule {item!r} is not a mapping of {', '.join(_fields(Schedule))}")
    return dataclasses.asdict(Schedule.of(item))


def _compensation(item: Any) -> dict[str, Any] | None:
    """A compensation as `Compensation.to_dict` has it, of what a user may write."""
    made = read_compensation(item)
    return None if made is None else made.to_dict()


def _check_options(method: str, options: Mapping[str, Any]) -> None:
    hints = typing.get_type_hints(METHODS[method])
    known = _fields(method)
    for name, item in options.items():
        if name not in known:
            raise ValueError(f"method {method!r} has no option {name!r}; it has {', '.join(known)}")
        check_type(f"option {name!r} of method {method!r}", item, hints[name])


def _fields(of: Any) -> list[str]:
    cls: Any = METHODS[of] if isinstance(of, str) else of
    return [item.name for item in dataclasses.fields(cls)]
