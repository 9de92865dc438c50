"""What a calibration of step caching measured: how far each step's features are from those of steps before it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vidaccel import architecture, strict
from vidaccel.architecture import Facts
from vidaccel.caching.guided import Guided
from vidaccel.caching.track import MAX_STEPS, Track
from vidaccel.files import write_text
from vidaccel.miniature import PREFIX, miniature_path

FORMAT = 1
DENSE = "dense"
"""`CacheCalibration.attention` of one made without sparse attention."""
MAX_BRANCHES, MAX_NAME, MAX_PROMPTS, MAX_VERSIONS, MAX_TIME = 8, 256, 1_000_000, 16, 1e9
HASH = 64
"""Letters of a SHA-256."""
CLOSE = 1e-3
"""Relative difference up to which two shifts or guidance scales are the same."""


@dataclass(frozen=True)
class CacheCalibration:
    """Measured differences between the steps of dense runs, as pure data, for the run that it names.

    Args:
        model: the denoisers, as `vidaccel.architecture.describe` gives them.
        steps: of the run, over all experts.
        timesteps: of those steps, as the denoisers get them: falling, or rising as Mochi's do.
        scheduler: name of its class.
        shift: of its timesteps; None where it has none.
        guidance: the scale; None where the pipeline has none.
        tracks: by expert and branch.
        attention: hash of the sparse attention that ran, or "dense".
        guided: of what the scheduler was given; None where that is not one output a step.
        prompts: ``count`` and ``sha256`` of what was generated.
        versions: of libraries, by name.
        reference: the path that it was read from; empty for one in memory. No part of the file.
    """

    model: Mapping[str, Mapping[str, Any]] = field(hash=False)
    steps: int
    timesteps: tuple[float, ...]
    scheduler: str
    shift: float | None
    guidance: float | None
    tracks: Mapping[str, Mapping[str, Track]] = field(hash=False)
    attention: str = DENSE
    guided: Guided | None = None
    prompts: Mapping[str, Any] = field(default_factory=dict, hash=False)
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)
    reference: str = field(default="", compare=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CacheCalibration:
        """Read one from a JSON file.

        Raises:
            ValueError: no such file, not JSON, or not a calibration of step caching.
        """
        made = cls.parse(strict.read(path, "cache calibration"), str(path))
        return dataclasses.replace(made, reference=str(path))

    @classmethod
    def of(cls, given: str | os.PathLike[str] | CacheCalibration) -> CacheCalibration:
        """One from a path, from a file of a miniature such as "miniature:wan/cache-20.json", or as it is.

        Raises:
            ValueError: it is none of these, or cannot be read.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, str | os.PathLike) or not str(given) or "\0" in str(given):
            raise ValueError(f"a cache calibration is the path of a JSON file, not {strict.shown(given)}; "
                             "vidaccel calibrate-cache makes one")  # fmt: skip
        if str(given).startswith(PREFIX):
            name, _, file = str(given).removeprefix(PREFIX).partition("/")
            return dataclasses.replace(cls.load(miniature_path(name) / file), reference=str(given))
        return cls.load(os.path.expanduser(given))

    @classmethod
    def parse(cls, text: str, origin: str) -> CacheCalibration:
        """One from its JSON; `origin` names it in errors.

        Raises:
            ValueError: not JSON, or not a calibration of step caching.
        """
        return cls.of_values(strict.parse(text, origin), origin)

    @classmethod
    def of_values(cls, values: Any, origin: str) -> CacheCalibration:
        """One from what `to_dict` gives, or from a stranger's JSON; `origin` names it in errors.

        Raises:
            ValueError: not a calibration of step caching.
        """
        if not isinstance(values, dict) or isinstance(values.get("format"), bool) or values.get("format") != FORMAT:
            raise ValueError(f'{origin} is no cache calibration: it needs "format": {FORMAT}')
        strict.names(origin, values, ("format", *FIELDS), FIELDS)
        return cls(**_checked(values, origin))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, whole or not at all.

        Raises:
            ValueError: something in it that no file may have.
        """
        try:
            self.parse(json.dumps(self.to_dict()), "the calibration")
        except (ValueError, TypeError) as error:
            raise ValueError(f"it cannot be saved: {error}") from error
        write_text(path, _laid_out(self.to_dict()) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """What is in its file, JSON-ready."""
        plain = {name: getattr(self, name) for name in FIELDS}
        plain["timesteps"] = list(self.timesteps)
        plain["tracks"] = {expert: {branch: track.to_dict() for branch, track in each.items()}
                           for expert, each in self.tracks.items()}  # fmt: skip
        plain["guided"] = None if self.guided is None else self.guided.to_dict()
        return {"format": FORMAT} | plain

    @property
    def digest(self) -> str:
        """SHA-256 of what is in its file, in hexadecimal."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def track(self, expert: str, branch: str) -> Track:
        """What was measured of one expert and guidance branch.

        Raises:
            ValueError: none was.
        """
        if expert not in self.tracks:
            raise ValueError(f"{self._where} knows {', '.join(self.tracks)}, not {expert}")
        if branch not in self.tracks[expert]:
            known = ", ".join(self.tracks[expert])
            raise ValueError(f"{self._where} has no guidance branch {branch!r} of {expert}: it was made with {known}")
        return self.tracks[expert][branch]

    def covered(self, expert: str) -> range:
        """The run's steps that one of its experts runs."""
        return next(iter(self.tracks[expert].values())).covered

    def check(
        self, models: Mapping[str, Facts], steps: int | None, scheduler: str | None, shift: float | None,
        guidance: float | None, attention: str = DENSE, *, same_steps: bool = True,
    ) -> None:  # fmt: skip
        """Refuse a run that it was not made for.

        Args:
            models: by their attribute of the pipeline.
            steps: of the run; None where unknown, which only a policy of any number of steps can go by.
            scheduler: name of its class; None where there is none, and `shift` then does not count.
            shift: of its timesteps; None where it has none.
            guidance: the scale; None where it is not known, and then does not count.
            attention: as the field of that name.
            same_steps: whether the run must have as many steps.

        Raises:
            ValueError: what differs, and what is allowed.
        """
        self.check_models(models)
        if same_steps and steps != self.steps:
            given = "an unknown number of steps (give num_inference_steps)" if steps is None else f"{steps} steps"
            raise ValueError(f"{self._where} is for runs of {self.steps} steps, not of {given}")
        if scheduler is not None and scheduler != self.scheduler:
            raise ValueError(f"{self._where} was made with a {self.scheduler}, not a {scheduler}")
        if scheduler is not None and not _same(shift, self.shift):
            raise ValueError(f"{self._where} was made with a shift of {_told(self.shift)}, not {_told(shift)}")
        if guidance is not None and not _same(guidance, self.guidance):
            raise ValueError(f"{self._where} was made with a guidance scale of {_told(self.guidance)}, "
                             f"not {guidance:g}")  # fmt: skip
        if attention != self.attention:
            raise ValueError(f"{self._where} was made with {_regime(self.attention)}, the run has {_regime(attention)}:"
                             " what changes from step to step differs. Calibrate with what the run has, or take a"
                             " policy without a calibration, such as 'easycache'")  # fmt: skip

    def check_models(self, models: Mapping[str, Facts]) -> None:
        """Refuse denoisers that it was not made for; see `check`.

        Raises:
            ValueError: how one differs.
        """
        for expert, facts in models.items():
            if expert not in self.model:
                raise ValueError(f"{self._where} knows {', '.join(self.model)}, but the model has {expert}, too")
            if why := architecture.difference(self.model[expert], facts):
                raise ValueError(f"{self._where} is not for this {expert}: {why}")

    @property
    def _where(self) -> str:
        return f"the cache calibration {self.reference}".rstrip()


FIELDS = ("model", "steps", "timesteps", "scheduler", "shift", "guidance", "attention", "prompts", "versions", "guided",
          "tracks")  # fmt: skip
"""Of a file, apart from its format."""


def shift_of(scheduler: Any) -> float | None:
    """The shift of a diffusers scheduler's timesteps; None where it has none."""
    config = getattr(scheduler, "config", {})
    # `set_shift` changes the attribute alone.
    found = getattr(scheduler, "shift", None) or config.get("flow_shift") or config.get("shift")
    return float(found) if isinstance(found, int | float) else None


def _checked(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """The fields of a file, in what they hold.

    Raises:
        ValueError: one that no calibration has.
    """
    model = architecture.checked(f"{origin}: model", values["model"])
    steps = strict.whole(f"{origin}: steps", values["steps"], 1, MAX_STEPS)
    times = strict.listed(f"{origin}: timesteps", values["timesteps"], steps, steps)
    times = [strict.signed(f"{origin}: one of its timesteps", each, MAX_TIME) for each in times]
    onwards = {math.copysign(1, late - early) if late != early else 0 for early, late in itertools.pairwise(times)}
    if len(onwards) > 1 or 0 in onwards:
        raise ValueError(f"{origin}: timesteps neither fall nor rise")
    strict.string(f"{origin}: scheduler", values["scheduler"], MAX_NAME)
    for name in ("shift", "guidance"):
        if values[name] is not None:
            strict.number(f"{origin}: {name}", values[name], MAX_TIME)
    strict.string(f"{origin}: attention", values["attention"], MAX_NAME)
    _check_origin(values, origin)
    tracks = _tracks(values["tracks"], model, steps, f"{origin}: tracks")
    guided = values["guided"]
    guided = None if guided is None else Guided.read(guided, steps, f"{origin}: guided")
    return {name: values[name] for name in FIELDS} | {"timesteps": tuple(times), "guided": guided, "tracks": tracks}


def _check_origin(values: dict[str, Any], origin: str) -> None:
    """Refuse what does not say what was generated, and with which libraries."""
    prompts = strict.names(f"{origin}: prompts", values["prompts"], ("count", "sha256"), ("count", "sha256"))
    strict.whole(f"{origin}: prompts: count", prompts["count"], 1, MAX_PROMPTS)
    strict.string(f"{origin}: prompts: sha256", prompts["sha256"], HASH)
    versions = values["versions"]
    if not isinstance(versions, dict) or len(versions) > MAX_VERSIONS:
        raise ValueError(f"{origin}: versions is {strict.shown(versions)}, not an object of at most {MAX_VERSIONS}")
    for name, version in versions.items():
        strict.string(f"{origin}: version of {strict.shown(name)}", version, MAX_NAME)


def _tracks(value: Any, model: Mapping[str, Any], steps: int, where: str) -> dict[str, dict[str, Track]]:
    """The tracks of a file: of each expert those of its branches, of the same steps; together they cover the run."""
    strict.names(where, value, tuple(model), tuple(model))
    read: dict[str, dict[str, Track]] = {}
    for expert, branches in value.items():
        here = f"{where}: {strict.shown(expert)}"
        if not isinstance(branches, dict) or not 1 <= len(branches) <= MAX_BRANCHES:
            raise ValueError(f"{here} is {strict.shown(branches)}, not an object of 1 to {MAX_BRANCHES} branches")
        for branch in branches:
            strict.string(f"{here}: name of a branch", branch, MAX_NAME)
        read[expert] = {branch: Track.read(each, steps, f"{here}, {strict.shown(branch)}")
                        for branch, each in branches.items()}  # fmt: skip
        if len({(track.first_step, track.steps) for track in read[expert].values()}) > 1:
            raise ValueError(f"{here}: its branches are of different steps")
    ran = sorted(step for each in read.values() for step in next(iter(each.values())).covered)
    if ran != list(range(steps)):
        raise ValueError(f"{where}: the experts together do not run each of the {steps} steps once")
    return read


def _same(left: float | None, right: float | None) -> bool:
    if left is None or right is None:
        return left is right
    return math.isclose(left, right, rel_tol=CLOSE, abs_tol=CLOSE)


def _told(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _regime(attention: str) -> str:
    return "dense attention" if attention == DENSE else f"sparse attention {attention[:12]}"


def _laid_out(value: Mapping[str, Any]) -> str:
    """JSON with a line for each field, and for each field of a track."""
    compact = {name: json.dumps(item) for name, item in value.items() if name != "tracks"}
    tracks = []
    for expert, each in value["tracks"].items():
        inside = (f"   {json.dumps(branch)}: {{\n" + ",\n".join(f"    {json.dumps(name)}: {json.dumps(item)}"
                  for name, item in track.items()) + "}" for branch, track in each.items())  # fmt: skip
        tracks.append(f"  {json.dumps(expert)}: {{\n" + ",\n".join(inside) + "}")
    lines = [f" {json.dumps(name)}: {text}" for name, text in compact.items()]
    return "{\n" + ",\n".join([*lines, ' "tracks": {\n' + ",\n".join(tracks) + "}"]) + "\n}"
