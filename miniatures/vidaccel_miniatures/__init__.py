"""Trained miniature video pipelines: real diffusers folders, small enough to run on a laptop's CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
__all__ = ["PROMPTS", "available", "generation_defaults", "path"]

PROMPTS: tuple[str, ...] = (
    "a green circle moves down over a gradient",
    "a yellow circle moves up over a plain background",
    "a red circle moves right over stripes",
    "a blue triangle moves up over a plain background",
)
"""Prompts the miniatures were trained to show."""

_HERE = Path(__file__).resolve().parent


def available() -> tuple[str, ...]:
    """The names of the miniatures whose weights are installed."""
    return tuple(sorted(index.parent.name for index in _HERE.glob("*/model_index.json")))


def path(name: str) -> Path:
    """The folder of miniature `name`, for `DiffusionPipeline.from_pretrained`.

    Raises:
        ValueError: no such miniature; the message lists those there are.
    """
    if name not in available():
        raise ValueError(f"no miniature named {name!r}; available: {', '.join(available()) or 'none'}")
    return _HERE / name


def generation_defaults(name: str) -> dict[str, Any]:
    """The pipeline call's arguments that suit `name`: size, frames, steps, guidance, text length."""
    defaults: dict[str, Any] = json.loads((path(name) / "generation.json").read_text(encoding="utf-8"))
    return defaults
