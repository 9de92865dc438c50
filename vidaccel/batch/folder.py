"""The folder of a batch: a video and a record of each clip, and the settings that all of them share."""

from __future__ import annotations

import contextlib
import json
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidaccel.batch.call import identified
from vidaccel.batch.requests import Request
from vidaccel.eval.identity import file_digest
from vidaccel.eval.record import to_json
from vidaccel.eval.video import write_video
from vidaccel.files import read_object, size_of, write_text

SETTINGS, TABLE = "batch.json", "clips.jsonl"
RECORD, ERROR = ".json", ".error.json"
NAME = re.compile(r"(\d{4,})-(?:.*-)?seed(\d+)\.json", re.ASCII)
"""Of a record."""


class Folder:
    """Clips on disk. A clip is done where its record is, which is written after its video.

    Args:
        out: the folder.
        settings: all that the clips depend on and have in common, as JSON has it.
        ending: of the videos.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], ending: str) -> None:
        self.out, self.ending = out, ending
        self.settings: dict[str, Any] = json.loads(json.dumps(settings, allow_nan=False))

    def prepare(self, requests: Iterable[Request]) -> None:
        """Refuse what does not belong together, and remove what a kill left half written and what failed; for the main
        process.

        Raises:
            ValueError: the folder's clips have other settings, or one of them is another clip of the same name.
        """
        # Settings with which no clip came about bind nobody.
        if any(self._records()):
            before = read_object(self.out / SETTINGS)
            if before is None:
                raise ValueError(f"{self.out / SETTINGS} cannot be read: choose another folder, or restore it")
            if differ := list(_differing(before, self.settings)):
                raise ValueError(f"folder {str(self.out)!r} has clips of other settings: {'; '.join(differ)}; choose "
                                 "another folder")  # fmt: skip
            self._check_places(requests)
        for left in (*self.out.glob(".*.part*"), *self.out.glob(f"[0-9]*-seed*{ERROR}")):
            left.unlink(missing_ok=True)

    def begin(self) -> None:
        """Write the settings of the clips that are about to be made; for the main process."""
        write_text(self.out / SETTINGS, to_json(self.settings, indent=2) + "\n")

    def record(self, request: Request) -> dict[str, Any] | None:
        """The record of a clip that is done and whole, else None."""
        found = read_object(self.out / f"{request.name}{RECORD}")
        return found if found is not None and found.get("bytes") == size_of(self.video(request)) else None

    def video(self, request: Request) -> Path:
        """Where a clip's video lies."""
        return self.out / f"{request.name}{self.ending}"

    def keep(self, request: Request, frames: Any, fps: float, facts: Mapping[str, Any]) -> None:
        """Write a clip's video, then its record."""
        path = write_video(frames, self.video(request), fps)
        values = {"kind": "clip", "file": path.name, **self._asked(request), "settings": self.settings,
                  "bytes": path.stat().st_size, "sha256": file_digest(path), **facts}  # fmt: skip
        write_text(self.out / f"{request.name}{RECORD}", to_json(values, indent=2) + "\n")

    def keep_error(self, request: Request, error: BaseException) -> None:
        """Write what a clip failed with; where that cannot be, it is only said."""
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        values = {"type": type(error).__name__, "message": str(error), "traceback": "".join(lines)}
        with contextlib.suppress(OSError):
            write_text(self.out / f"{request.name}{ERROR}", to_json(values, indent=2) + "\n")

    def write_table(self) -> None:
        """The records of all clips of the folder, one a line, in the order of their names."""
        found = (read_object(self.out / name) for _, name in sorted(self._records()))
        write_text(self.out / TABLE, "".join(to_json(each) + "\n" for each in found if each is not None))

    def _check_places(self, requests: Iterable[Request]) -> None:
        """Refuse clips in whose place there is another one."""
        there = dict(self._records())
        for request in requests:
            name = there.get((request.number, request.seed))
            found = None if name is None else read_object(self.out / name)
            if found is None:
                continue
            if differ := list(_differing({key: found.get(key) for key in self._asked(request)}, self._asked(request))):
                raise ValueError(f"folder {str(self.out)!r} has another clip for prompt {request.number + 1} and seed "
                                 f"{request.seed}: {'; '.join(differ)}; put new prompts behind the others, or choose "
                                 "another folder")  # fmt: skip

    def _asked(self, request: Request) -> dict[str, Any]:
        return {"number": request.number, "prompt": request.prompt, "seed": request.seed,
                "own": identified(request.own)}  # fmt: skip

    def _records(self) -> Iterator[tuple[tuple[int, int], str]]:
        """Number, seed and file name of each record."""
        for path in self.out.iterdir():
            if match := NAME.fullmatch(path.name):
                yield (int(match[1]), int(match[2])), path.name


def missing(folder: Folder, requests: Sequence[Request]) -> list[int]:
    """Indices of the clips that are still to be made."""
    return [index for index, each in enumerate(requests) if folder.record(each) is None]


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What differs, in words; mappings in it one by one."""
    for name in dict.fromkeys((*before, *now)):
        first, second = before.get(name), now.get(name)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            yield from _differing(first, second, f"{prefix}{name}.")
        elif first != second:
            yield f"{prefix}{name} is {_short(first)} there, and {_short(second)} was given"


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
