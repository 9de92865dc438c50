"""What a batch has made, to be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vidaccel.eval.video import read_video


def contents(out: Path) -> dict[str, Any]:
    """The frames of the videos, and the records without times and what a file has anew each time."""
    found: dict[str, Any] = {path.name: read_video(path).tobytes() for path in out.glob("*.m[pk][4v]")}
    for path in out.glob("0*.json"):
        found[path.name] = {name: item for name, item in json.loads(path.read_text()).items()
                            if name not in ("created", "seconds", "denoising_seconds", "turn", "sha256")}  # fmt: skip
    return found
