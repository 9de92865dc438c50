"""A settings file of an eval: YAML, read before anything else happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; a relative ``prompts_file`` in it counts from the file's folder.

    Raises:
        ValueError: there is no such file, or it holds no mapping.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        values = yaml.safe_load(read_text(path, "settings file"))
    except yaml.YAMLError as error:
        raise ValueError(f"settings file {str(path)!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"settings file {str(path)!r} holds no mapping of settings")
    if isinstance(values.get("prompts_file"), str):
        values["prompts_file"] = str(path.parent / values["prompts_file"])
    return values


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines and those that start with # do not count.

    Raises:
        ValueError: there is no such file, or no prompt in it.
    """
    lines = [line.strip() for line in read_text(path, "prompts file").splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"prompts file {str(path)!r} has no prompt")
    return prompts


def read_text(path: Path, what: str) -> str:
    """The text of a user's file; `what` says what it should be.

    Raises:
        ValueError: there is no such file, or it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{what} {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} {str(path)!r} is not UTF-8 text") from error
