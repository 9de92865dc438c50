"""Profiles: everything chosen for a model, as JSON beside the model or shipped with vidaccel."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from vidaccel.files import write_text

FORMAT = 1
FILE = "vidaccel.json"
"""Name of a profile that lies in a model's own folder."""


@dataclass(frozen=True)
class Profile:
    """What `enable` should do for a model.

    Args:
        method: name of the method.
        options: its options.
        schedule: fields of a `Schedule`; empty for the family's own.
        min_tokens: calls with fewer tokens stay dense; None for the default.
        models: repository ids that it is for.
        source: where the numbers come from.
        precision: of sparse calls, as in `vidaccel.enable`; None for the model's own type.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, float] = field(default_factory=dict)
    min_tokens: int | None = None
    models: tuple[str, ...] = ()
    source: str = ""
    precision: str | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a profile.

        Raises:
            ValueError: no such file, not JSON, or not a profile.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"no profile at {path}: {error.strerror}") from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, origin: str) -> Profile:
        """A profile from its JSON; `origin` names it in errors.

        Raises:
            ValueError: not JSON, or not a profile.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{origin} is not JSON: {error}") from error
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ValueError(f'{origin} is not a vidaccel profile: it needs "format": {FORMAT}')
        types = {
            "method": str,
            "options": dict,
            "schedule": dict,
            "min_tokens": (int, type(None)),
            "models": list,
            "source": str,
            "precision": (str, type(None)),
        }
        for name, value in values.items():
            if name not in types or not isinstance(value, types[name]):  # type: ignore[arg-type]
                raise ValueError(f"{origin}: {name}={value!r} does not belong in a profile; it has {', '.join(types)}")
        if "method" not in values:
            raise ValueError(f"{origin} is a profile without a method")
        return cls(**{**values, "models": tuple(values.get("models", ()))})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, whole or not at all."""
        values = {"format": FORMAT} | {item.name: asdict(self)[item.name] for item in fields(self)}
        write_text(path, json.dumps(values, indent=2) + "\n")


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
