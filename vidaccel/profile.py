"""Profiles: everything chosen for a model, as JSON beside the model, on the hub or shipped with vidaccel."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from vidaccel import architecture, miniature, points, stored_cache, strict
from vidaccel.architecture import Facts
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.files import laid_out, write_text
from vidaccel.heads import MAX_SIZES, HeadsAt, HeadTable, layout_of
from vidaccel.layout import TokenLayout
from vidaccel.points import Point
from vidaccel.target import Target

FORMAT = 1
FILE = "vidaccel.json"
"""Name of a profile that lies in a model's own folder, or in a repository."""
HEADS = "head_profile"
"""The method that profiles with heads are for."""
REPOSITORY = r"\w[\w.-]*/\w[\w.-]*"
MAX_MODELS, MAX_NAME, MAX_TEXT, MAX_OPTIONS, MAX_TOKENS = 256, 256, 4096, 64, 1 << 40


@dataclass(frozen=True)
class Profile:
    """What `enable` should do for a model.

    Args:
        method: name of the method; "dense" leaves attention alone, for a cache by itself.
        options: its options.
        schedule: fields of a `Schedule`; empty for the family's own.
        min_tokens: calls with fewer tokens stay dense; None for the default.
        models: repository ids that it is for.
        source: where the numbers come from.
        precision: of sparse calls, as in `vidaccel.enable`; None for the model's own type.
        model: the denoisers that it was made for, as `vidaccel.architecture.describe` gives them, and which others are
            refused for; None where it is for any.
        calibration: how the heads were measured, JSON-ready: prompts' hash, grid, versions and so on.
        heads: what was measured of every head, for the method "head_profile".
        compensation: of what is skipped, as in `vidaccel.enable`: a name, or a mapping of ``name`` and options; None
            for none.
        heads_at: the same heads as they were measured on other token grids; `calibration` then names the grid of
            `heads` as ``grid``.
        cache: which steps reuse what earlier ones computed, as in `vidaccel.enable`: a policy's name, or a mapping of
            ``name``, options and limits, whose ``file`` is a name in `calibrations` or ``miniature:NAME/FILE.json``;
            None for none.
        calibrations: of caches, by the names that `cache` and `points` have for them.
        points: settings that were measured, see `aimed`; those above are mostly of one of them.
        aim: the point whose settings those above are; None where none is known to be. No part of the file.
        reference: what `read` finds it by again; empty for one in memory. No part of the file.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, float] = field(default_factory=dict)
    min_tokens: int | None = None
    models: tuple[str, ...] = ()
    source: str = ""
    precision: str | None = None
    model: dict[str, dict[str, Any]] | None = None
    calibration: dict[str, Any] | None = None
    heads: HeadTable | None = None
    compensation: str | dict[str, Any] | None = None
    heads_at: tuple[HeadsAt, ...] = ()
    cache: str | dict[str, Any] | None = None
    calibrations: Mapping[str, CacheCalibration] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    aim: Point | None = field(default=None, compare=False)
    reference: str = field(default="", compare=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a profile.

        Raises:
            ValueError: no such file, not JSON, or not a profile.
        """
        made = cls.parse(strict.read(path, "profile"), str(path))
        return dataclasses.replace(made, reference=str(path))

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], *, revision: str | None = None) -> Profile:
        """The `FILE` of a folder or of a hub repository, of which nothing else is downloaded.

        Args:
            source: a folder or ``owner/name``.
            revision: branch, tag or commit of the repository.

        Raises:
            ValueError: there is none, it cannot be downloaded, or it is not a profile.
        """
        folder = Path(source).expanduser()
        if folder.is_dir():
            return cls.load(folder / FILE)
        if not re.fullmatch(REPOSITORY, str(source)):
            raise ValueError(f"{str(source)!r} is neither a folder nor a repository id (owner/name)")
        made = cls.load(_download(str(source), revision))
        return dataclasses.replace(made, reference=str(source) if revision is None else f"{source}@{revision}")

    @classmethod
    def read(cls, reference: str) -> Profile:
        """A profile by what a user may write: a path that ends in ".json", a folder or a repository id (after which
        "@" and a revision may follow) with a `FILE`, or ``miniature:NAME``.

        Raises:
            ValueError: there is none, or it is not a profile.
        """
        if not isinstance(reference, str) or not reference or "\0" in reference:
            raise ValueError(f"{strict.shown(reference)} names no profile")
        if reference.startswith(miniature.PREFIX):
            made = cls.load(miniature.miniature_path(reference.removeprefix(miniature.PREFIX)) / FILE)
        elif reference.endswith(".json"):
            made = cls.load(Path(reference).expanduser())
        elif (at := re.fullmatch(rf"({REPOSITORY})@(\S+)", reference)) and not Path(reference).is_dir():
            made = cls.from_pretrained(at[1], revision=at[2])
        else:
            made = cls.from_pretrained(reference)
        return dataclasses.replace(made, reference=reference)

    @classmethod
    def parse(cls, text: str, origin: str) -> Profile:
        """A profile from its JSON; `origin` names it in errors.

        Raises:
            ValueError: not JSON, or not a profile.
        """
        values = strict.parse(text, origin)
        if not isinstance(values, dict) or isinstance(values.get("format"), bool) or values.get("format") != FORMAT:
            raise ValueError(f'{origin} is not a vidaccel profile: it needs "format": {FORMAT}')
        del values["format"]
        for name, value in values.items():
            if name not in TYPES or not isinstance(value, TYPES[name]) or isinstance(value, bool):
                given = f"{strict.shown(name)[1:-1]}={strict.shown(value)}"
                raise ValueError(f"{origin}: {given} does not belong in a profile; it has {', '.join(TYPES)}")
        if "method" not in values:
            raise ValueError(f"{origin} is a profile without a method")
        return cls(**_checked(values, origin))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, whole or not at all.

        Raises:
            ValueError: something in it that JSON does not have.
        """
        try:
            write_text(path, laid_out(self.to_dict()) + "\n")
        except TypeError as error:
            raise ValueError(f"the profile cannot be saved: {error}") from error

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write it into a folder, which is made if there is none, under the name that `from_pretrained` and `enable`
        look for; returns its path."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = Path(folder) / FILE
        self.save(path)
        return path

    def to_dict(self) -> dict[str, Any]:
        """What is in its file, JSON-ready."""
        plain = {name: getattr(self, name) for name in TYPES}
        heads = self.heads and self.heads.to_dict()
        # Patterns at other sizes mostly have the same weights: their texts stand once.
        others = [each.to_dict(heads["texts"] if heads else ()) for each in self.heads_at]
        plain |= {"models": list(self.models), "heads": heads, "heads_at": others or None}
        plain["points"] = [each.to_dict() for each in self.points] or None
        plain["calibrations"] = {name: each.to_dict() for name, each in self.calibrations.items()} or None
        absent = [name for name in MAY_LACK if plain[name] is None]
        return {"format": FORMAT} | {name: item for name, item in plain.items() if name not in absent}

    def aimed(self, target: str | Target) -> Profile:
        """This profile with the settings of the point that is best for a target; see `vidaccel.points.best`.

        Raises:
            ValueError: no target, no points, or none that meets it; the message lists those there are.
        """
        wanted, where = Target.of(target), f"the profile {self.reference}".rstrip()
        if not self.points:
            raise ValueError(f"{where} has no measured points, so that no target can be chosen by; vidaccel tune makes "
                             "a profile that has")  # fmt: skip
        found = points.best(self.points, wanted)
        if found is None:
            raise ValueError(f"no point of {where} has {wanted}; it has {'; '.join(map(str, self.points))}")
        return self.at(found)

    def at(self, point: Point) -> Profile:
        """This profile with the settings of a point."""
        chosen = {name: copy.deepcopy(point.settings[name]) for name in points.SETTINGS}
        return dataclasses.replace(self, **chosen, compensation=None, aim=point)

    def rounded(self) -> Profile:
        """With its heads as its file has or would have them, their numbers rounded.

        Raises:
            ValueError: heads that no file may have.
        """
        if self.heads is None and not self.heads_at:
            return self
        values, origin = self.to_dict(), self.reference or "the profile"
        heads = HeadTable.of(values.get("heads"), origin)
        return dataclasses.replace(self, heads=heads, heads_at=_heads_at(values, heads, origin))

    def check(self, models: Mapping[str, Facts]) -> None:
        """Refuse denoisers that it was not made for; one made for any model refuses none.

        Args:
            models: by their attribute of the pipeline.

        Raises:
            ValueError: what differs.
        """
        if self.model is None:
            return
        where = f"the profile {self.reference}".rstrip()
        for expert, facts in models.items():
            if expert not in self.model:
                raise ValueError(f"{where} knows {', '.join(self.model)}, but the model has {expert}, too")
            why = architecture.difference(self.model[expert], facts)
            if why:
                raise ValueError(f"{where} is not for this {expert}: {why}")


TYPES: dict[str, Any] = {
    "method": str, "options": dict, "schedule": dict, "min_tokens": (int, type(None)), "models": list, "source": str,
    "precision": (str, type(None)), "compensation": (str, dict, type(None)), "model": (dict, type(None)),
    "calibration": (dict, type(None)), "heads": (dict, type(None)), "heads_at": list,
    "cache": (str, dict, type(None)), "calibrations": dict, "points": list,
}  # fmt: skip
"""What a file may have, apart from its format."""
MAY_LACK = ("model", "calibration", "heads", "heads_at", "compensation", "cache", "calibrations", "points")
"""What stands in a file only where there is some."""


def shipped() -> dict[str, Profile]:
    """The profiles inside the package, by file name without its ending."""
    folder = resources.files("vidaccel") / "data"
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".json")), key=lambda item: item.name)
    return {item.name[:-5]: Profile.parse(item.read_text(encoding="utf-8"), item.name) for item in files}


def find(model: str | None) -> Profile | None:
    """The profile for a model: in its own folder, else shipped for its repository id, else None."""
    if not model:
        return None
    beside = Path(model) / FILE
    if beside.is_file():
        return Profile.load(beside)
    return next((profile for profile in shipped().values() if model in profile.models), None)


def _checked(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """The fields of a file, of the right types already, in what they hold.

    Raises:
        ValueError: one that no profile has.
    """
    read = {**values, "models": tuple(values.get("models", ()))}
    strict.string(f"{origin}: method", values["method"], MAX_NAME)
    strict.string(f"{origin}: source", values.get("source", ""), MAX_TEXT)
    strict.listed(f"{origin}: models", list(read["models"]), MAX_MODELS, 0)
    for name in read["models"]:
        strict.string(f"{origin}: one of its models", name, MAX_NAME)
    if values.get("min_tokens") is not None:
        strict.whole(f"{origin}: min_tokens", values["min_tokens"], 0, MAX_TOKENS)
    if values.get("compensation") is not None:
        _check_compensation(f"{origin}: compensation", values["compensation"])
    read |= _checked_points(values, origin)
    if values.get("model") is not None:
        architecture.checked(f"{origin}: model", values["model"])
    if values.get("heads") is not None:
        read["heads"] = HeadTable.of(values["heads"], origin)
        read["heads_at"] = _heads_at(values, read["heads"], origin)
        _check_together(read, origin)
    elif "heads_at" in values:
        raise ValueError(f"{origin}: heads_at are beside heads, and there are none")
    return read


def _checked_points(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """Calibrations and points of a file, where there are any; its caches are looked at, too.

    Raises:
        ValueError: one that no profile has.
    """
    known = stored_cache.calibrations(f"{origin}: calibrations", values.get("calibrations", {}))
    stored_cache.check(f"{origin}: cache", values.get("cache"), known)
    found = points.read(values["points"], f"{origin}: points") if "points" in values else ()
    heads = values.get("heads") is not None
    for index, each in enumerate(found):
        _check_settings(f"{origin}: points[{index}]: settings", each.settings, known, heads)
    own = {name: values.get(name) for name in points.SETTINGS}
    aim = next((each for each in found if each.settings == own), None)
    return {"calibrations": known, "points": found, "aim": aim}


def _check_settings(where: str, settings: Mapping[str, Any], known: Mapping[str, Any], heads: bool) -> None:
    """Refuse settings of a point that no profile's own could be.

    Raises:
        ValueError: what was given.
    """
    for name, value in settings.items():
        if not isinstance(value, TYPES[name]) or isinstance(value, bool):
            raise ValueError(f"{where}: {name}={strict.shown(value)} does not belong there")
    strict.string(f"{where}: method", settings["method"], MAX_NAME)
    stored_cache.check(f"{where}: cache", settings["cache"], known)
    if heads:
        _check_own_heads(where, settings["options"])


def _heads_at(values: dict[str, Any], heads: HeadTable, origin: str) -> tuple[HeadsAt, ...]:
    """The heads on other grids than that of the calibration, of a file whose `heads` are read.

    Raises:
        ValueError: too many, one that is not of these heads, a grid that is not known or comes twice.
    """
    if "heads_at" not in values:
        return ()
    seen: list[TokenLayout] = [layout_of((values.get("calibration") or {}).get("grid"), f"{origin}: calibration: grid")]
    found = []
    for index, each in enumerate(strict.listed(f"{origin}: heads_at", values["heads_at"], MAX_SIZES)):
        found.append(HeadsAt.read(each, heads, values["heads"]["texts"], f"{origin}: heads_at[{index}]"))
        if found[-1].layout in seen:
            raise ValueError(f"{origin}: heads_at[{index}] is on {found[-1].layout}, as others of this profile are")
        seen.append(found[-1].layout)
    return tuple(found)


def _check_compensation(where: str, value: str | dict[str, Any]) -> None:
    """Refuse what is neither a name nor a name with plain options; `enable` knows which there are.

    Raises:
        ValueError: what was given.
    """
    if isinstance(value, str):
        strict.string(where, value, MAX_NAME)
        return
    strict.listed(where, list(value), MAX_OPTIONS)
    strict.string(f"{where}: name", value.get("name"), MAX_NAME)
    for name, item in value.items():
        if isinstance(item, (dict, list)):
            raise ValueError(f"{where}: {strict.shown(name)} is {strict.shown(item)}, not one value")


def _check_together(read: dict[str, Any], origin: str) -> None:
    """Refuse heads that come with a method, options or a model which they contradict.

    Raises:
        ValueError: they do.
    """
    if read["method"] != HEADS and not read["points"]:
        raise ValueError(f"{origin}: heads are for method {HEADS!r}, not {read['method']!r}")
    _check_own_heads(origin, read.get("options", {}))
    shapes = read["heads"].shapes()
    for expert, each in (read.get("model") or {}).items():
        if shapes.get(expert) != (each["layers"], each["heads"]):
            raise ValueError(f"{origin}: heads of {strict.shown(expert)} are not those of the {each['layers']} "
                             f"layers of {each['heads']} heads that its model has")  # fmt: skip


def _check_own_heads(where: str, options: Mapping[str, Any]) -> None:
    for name in ("profile", "digest"):
        # It would send whoever reads this file to another one.
        if name in options:
            raise ValueError(f"{where}: a profile with heads has no option {name!r}: it is the profile")


def _download(repository: str, revision: str | None) -> str:
    """The path of a repository's `FILE` in the local cache.

    Raises:
        ValueError: it has none, or it cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return str(hf_hub_download(repository, FILE, revision=revision))
    except (OSError, ValueError, EntryNotFoundError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"no {FILE} from repository {repository!r}: {type(error).__name__}: {why}") from error
