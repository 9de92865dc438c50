"""The folder of an eval: references and cells, each in a folder of its own that appears whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from vidaccel.eval.cells import Cell
from vidaccel.eval.clip import Clip
from vidaccel.eval.identity import file_digest, key_of
from vidaccel.eval.record import CellRecord, to_json
from vidaccel.eval.video import write_lossless, write_mp4
from vidaccel.files import read_object, size_of, write_text
from vidaccel.processes import Crew, held

CONFIG, RECORD, ERROR = "config.json", "record.json", "error.json"
CLIP, PREVIEW, LOSSLESS = "clip.safetensors", "preview-lossy.mp4", "video-lossless.mkv"
FIELDS = {item.name for item in dataclasses.fields(CellRecord) if item.default is dataclasses.MISSING}
"""Of every record that tables can be made of."""
PART, OLD = ".part", ".old"


class Store:
    """One eval's folder, locked for the processes of one job while it is used as a context.

    Raises:
        ValueError: the folder cannot be written, another eval is at work in it, or some process of the job does not see
            the folder of the main one, which holds the lock.
    """

    def __init__(self, out: str | os.PathLike[str], crew: Crew | None = None) -> None:
        self.crew = crew or Crew()
        self.out = Path(out).expanduser().absolute()
        self.cells, self.references = self.out / "cells", self.out / "references"
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Store:
        self._held.enter_context(held(self.crew, self.out, "eval", self._prepare))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._held.close()

    def _prepare(self) -> None:
        for folder in (self.cells, self.references):
            folder.mkdir(exist_ok=True)
        self._sweep()

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """The record of a cell that is done, else None."""
        folder = self.cells / cell.name
        record, size = read_object(folder / RECORD), size_of(folder / CLIP)
        about = read_object(folder / CONFIG)
        if record is None or about is None or about.get("config") != _plain(cell.config):
            return None
        return record if about.get("clip_bytes") == size else None

    def error(self, cell: Cell) -> dict[str, Any] | None:
        """What a cell that is not done failed with when it was last tried, else None."""
        return None if self.record(cell) else read_object(self.cells / cell.name / ERROR)

    def keep_cell(self, cell: Cell, record: CellRecord, clip: Clip) -> None:
        """Write a finished cell: config, clip, a preview to look at, and the record."""
        with self._staged(self.cells / cell.name) as folder:
            clip.save(folder / CLIP)
            if clip.frames is not None:
                write_mp4(clip.frames, folder / PREVIEW, cell.source.fps)
                if cell.lossless:
                    write_lossless(clip.frames, folder / LOSSLESS, cell.source.fps)
            _write(folder / CONFIG, {"key": cell.key, "clip_bytes": size_of(folder / CLIP), "config": cell.config})
            record.write(folder / RECORD)

    def lacks_split(self, cell: Cell) -> bool:
        """Whether a cell that is done is to tell where its time goes, and does not."""
        record = self.record(cell)
        return cell.breakdown and record is not None and record.get("split") is None

    def add_split(self, cell: Cell, split: dict[str, Any]) -> None:
        """Write into the record of a cell that is done where its time goes."""
        record = self.record(cell)
        assert record is not None
        self.rewrite({**record, "split": split})

    def add_video(self, cell: Cell) -> None:
        """Write the lossless video of a cell that is done, if it is to have one and has none."""
        record = self.record(cell)
        if not cell.lossless or record is None or LOSSLESS in record["files"].values():
            return
        folder = self.cells / cell.name
        write_lossless(Clip.load(folder / CLIP).frames, folder / LOSSLESS, record["settings"]["fps"])
        self.rewrite({**record, "files": {**record["files"], "video_lossless": LOSSLESS}})

    def rewrite(self, record: dict[str, Any]) -> None:
        """Put a record that something was added to in the place of the one before."""
        write_text(self.cells / record["cell"] / RECORD, to_json(record, indent=2) + "\n")

    def keep_error(self, cell: Cell, error: BaseException) -> None:
        """Write what a cell failed with."""
        with self._staged(self.cells / cell.name) as folder:
            _write(folder / CONFIG, {"key": cell.key, "config": cell.config})
            lines = traceback.format_exception(type(error), error, error.__traceback__)
            _write(folder / ERROR, {"type": type(error).__name__, "message": str(error), "traceback": "".join(lines)})

    def reference(self, config: dict[str, Any]) -> tuple[Clip | None, str | None]:
        """The dense clip with this config; else None and, where there is something else in its place, what is wrong."""
        folder = self.references / reference_name(config)
        if not folder.exists():
            return None, None
        about = read_object(folder / CONFIG)
        if about is None or about.get("config") != _plain(config):
            return None, f"the reference {folder.name} is of another setting"
        try:
            if file_digest(folder / CLIP) != about.get("clip_sha256"):
                return None, f"the reference {folder.name} is damaged"
            return Clip.load(folder / CLIP), None
        except (OSError, ValueError) as error:
            return None, f"the reference {folder.name} cannot be read ({error})"

    def keep_reference(self, config: dict[str, Any], clip: Clip, about: dict[str, Any]) -> None:
        """Write a dense clip; `about` is added to its description: time, versions."""
        with self._staged(self.references / reference_name(config)) as folder:
            clip.save(folder / CLIP)
            _write(folder / CONFIG, {"config": config, "clip_sha256": file_digest(folder / CLIP), **about})

    def records(self) -> list[dict[str, Any]]:
        """The records of all finished cells in the folder, by the names of their folders."""
        found = (read_object(folder / RECORD) for folder in sorted(self.cells.iterdir()) if _is_whole(folder))
        return [record for record in found if record is not None and record.keys() >= FIELDS]

    def _sweep(self) -> None:
        # What a killed eval left half written; nobody else writes here now.
        for folder in (*self.cells.iterdir(), *self.references.iterdir()):
            if not _is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _staged(self, folder: Path) -> Iterator[Path]:
        # A process of a lost machine may still be at it.
        part, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}{ending}") for ending in (PART, OLD))
        part.mkdir()
        try:
            yield part
            _exchange(part, folder, old)
        finally:
            for leftover in (part, old):
                shutil.rmtree(leftover, ignore_errors=True)


def _exchange(part: Path, folder: Path, old: Path) -> None:
    """Put `part` in the place of `folder`, which becomes `old`."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder, old)
    try:
        os.replace(part, folder)
    except OSError:
        # Another process was quicker: what it put there is of the same config.
        if not folder.exists():
            raise


def reference_name(config: dict[str, Any]) -> str:
    """Name of a reference's folder."""
    return key_of(config)[:16]


def _is_whole(folder: Path) -> bool:
    return not folder.name.startswith(".")


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(to_json(values, indent=2) + "\n", encoding="utf-8")


def _plain(values: dict[str, Any]) -> Any:
    """As JSON reads them back: tuples as lists, whole floats as they are."""
    return json.loads(json.dumps(values))
