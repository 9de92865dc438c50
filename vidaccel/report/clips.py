"""The clips of a page: which pairs it holds, and each as a small video."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidaccel.eval.clip import Clip
from vidaccel.eval.settings import DENSE
from vidaccel.eval.video import write_mp4
from vidaccel.report.eval_folder import Cell, Group
from vidaccel.report.html import data_uri

SIDE = 480
"""Pixels of the longer side of a clip in a page, at most."""


@dataclass
class Clips:
    """The pairs of a page, and their videos, those that several pairs share once.

    Args:
        videos: as ``data:`` URIs.
        pairs: by cell, its name and its group's and row's places: which two videos, and what to say of them.
        there: how many pairs there are in the folders.
    """

    videos: list[str] = field(default_factory=list)
    pairs: dict[tuple[int, int], list[dict[str, Any]]] = field(default_factory=dict)
    there: int = 0

    @property
    def held(self) -> int:
        """How many pairs the page has."""
        return sum(map(len, self.pairs.values()))


def gather(
    groups: Sequence[Group], ranks: Sequence[Sequence[int]], most: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Clips:
    """Re-encode pairs of dense and fast clips: the first prompt of all rows, then the next.

    Args:
        ranks: for each group, the places of its rows, those to show first at the beginning.
        most: pairs at most.
        progress: hears of each pair.

    Raises:
        ValueError: a clip that is damaged, or not of its reference's shape.
    """
    found = _wanted(groups, ranks)
    clips, places = Clips(there=len(found)), dict[Path, int]()
    for done, (group, row, cell, paths) in enumerate(found[:most], 1):
        frames = [_frames(path) for path in paths]
        if frames[0].shape != frames[1].shape:
            raise ValueError(f"{str(paths[1])!r} is {list(frames[1].shape)}, its reference {list(frames[0].shape)}")
        for path, each in zip(paths, frames, strict=True):
            if path not in places:
                places[path] = len(clips.videos)
                clips.videos.append(_encoded(each, float(cell.record["settings"]["fps"])))
        clips.pairs.setdefault((group, row), []).append({
            "case": f"{cell.record['prompt']}, seed {cell.record['seed']}", "videos": [places[path] for path in paths],
            "fps": cell.record["settings"]["fps"], "width": frames[0].shape[2], "height": frames[0].shape[1],
        })  # fmt: skip
        progress(done, min(most, len(found)))
    return clips


def _wanted(
    groups: Sequence[Group], ranks: Sequence[Sequence[int]]
) -> list[tuple[int, int, Cell, tuple[Path, Path]]]:
    """Every pair in the order in which a page takes them: all models' best rows come first."""
    columns = []
    for at, (group, rank) in enumerate(zip(groups, ranks, strict=True)):
        cases = list(dict.fromkeys((cell.record["prompt"], cell.record["seed"]) for row in group.cells for cell in row))
        kept = {(row, (cell.record["prompt"], cell.record["seed"])): (cell, paths)
                for row in rank if group.rows[row].label != DENSE for cell in group.cells[row]
                if (paths := cell.clips()) is not None}  # fmt: skip
        columns.append([(at, row, *kept[row, case]) for case in cases for row in rank if (row, case) in kept])
    return [pair for turn in zip_longest(*columns) for pair in turn if pair is not None]


def _frames(path: Path) -> NDArray[np.uint8]:
    frames = Clip.load(path).frames
    if frames is None:
        raise ValueError(f"{str(path)!r} holds no frames")
    return frames


def _encoded(frames: NDArray[np.uint8], fps: float) -> str:
    with tempfile.TemporaryDirectory(prefix="vidaccel-") as folder:
        return data_uri("video/mp4", write_mp4(_smaller(frames), Path(folder) / "clip.mp4", fps).read_bytes())


def _smaller(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = frames.shape[1:3]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return frames
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    return np.stack([np.asarray(Image.fromarray(each).resize(size, Image.Resampling.LANCZOS)) for each in frames])
