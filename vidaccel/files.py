"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

WIDE = 110
"""Letters up to which a list or object of a laid out file stays on one line."""


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a UTF-8 text file beside its place and move it there; whatever was there is replaced.

    Raises:
        OSError: the folder cannot be written; nothing is left behind.
    """
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file beside its place and move it there; whatever was there is replaced.

    Raises:
        OSError: the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def read_object(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The JSON object in a file, None where there is none to read."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def size_of(path: str | os.PathLike[str]) -> int | None:
    """Bytes of a file, None where there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def laid_out(value: Any, pad: str = "") -> str:
    """JSON in which what fits on a line stands on one.

    Raises:
        ValueError, TypeError: something that JSON does not have.
    """
    line = json.dumps(value, allow_nan=False)
    if len(line) <= WIDE or not isinstance(value, (dict, list)):
        return line
    inner = pad + "  "
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {laid_out(item, inner)}" for name, item in value.items()]
    else:
        parts = [laid_out(item, inner) for item in value]
    left, right = "{}" if isinstance(value, dict) else "[]"
    return left + "\n" + ",\n".join(inner + part for part in parts) + f"\n{pad}{right}"
