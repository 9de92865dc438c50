"""The records of finished evals, by model and setting, and where their clips lie."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidaccel.eval.runner import LATENT
from vidaccel.eval.store import CLIP, FIELDS
from vidaccel.eval.table import RECORDS, Row, rows_of

PARTS = ("model", "settings", "device", "versions", "method", "schedule", "timing", "metrics")
"""Of a record, what has names and values."""


@dataclass(frozen=True)
class Cell:
    """The record of one finished cell, and the eval's folder that it is from."""

    record: Mapping[str, Any]
    folder: Path

    def clips(self) -> tuple[Path, Path] | None:
        """The files of the dense reference and of the cell's own clip, None where nothing was decoded or kept.

        Raises:
            ValueError: a name in the record that may lead out of the folder.
        """
        if self.record["settings"]["output"] == LATENT:
            return None
        names = {"references": str(self.record["reference"]), "cells": str(self.record["cell"])}
        if any(Path(name).name != name or name == ".." for name in names.values()):
            raise ValueError(f"a record names {' and '.join(map(repr, names.values()))}, not two folders of the eval")
        paths = [self.folder / part / name / CLIP for part, name in names.items()]
        return (paths[0], paths[1]) if all(path.is_file() for path in paths) else None


@dataclass(frozen=True)
class Group:
    """What belongs into one table: rows of one model and setting, dense first.

    Args:
        rows: as of the eval's table.
        cells: those of each row, in the order of ``rows``.
    """

    model: str
    setting: str
    rows: list[Row]
    cells: list[list[Cell]]

    @property
    def title(self) -> str:
        """Model and setting."""
        return f"{self.model}, {self.setting}"


def read_groups(folders: Sequence[str | os.PathLike[str]]) -> list[Group]:
    """The rows of all records of some evals, by model and setting.

    Raises:
        ValueError: a folder without records, or with something else in their place.
    """
    cells = [cell for folder in folders for cell in _cells(Path(folder).expanduser())]
    named = [str(folder) for folder in folders]
    if not cells:
        raise ValueError(f"there is no finished cell in {', '.join(map(repr, named)) or 'no folder'}")
    try:
        rows = rows_of(dict(cell.record) for cell in cells)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the records in {', '.join(map(repr, named))} are not those of an eval: "
                         f"{type(error).__name__} {error}") from error
    groups: dict[tuple[str, str], Group] = {}
    for row in rows:
        group = groups.setdefault((row.model, row.setting), Group(row.model, row.setting, [], []))
        group.rows.append(row)
        group.cells.append([cell for cell in cells if cell.record["row"] == row.row])
    return list(groups.values())


def _cells(folder: Path) -> list[Cell]:
    path = folder / RECORDS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{str(folder)!r} is no folder of `vidaccel eval`: cannot read {RECORDS}: "
                         f"{error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not text in UTF-8") from error
    return [Cell(_record(line, f"line {number} of {str(path)!r}"), folder) for number, line in enumerate(lines, 1)]


def _record(line: str, where: str) -> dict[str, Any]:
    values: Any
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    whole = isinstance(values, dict) and values.keys() >= FIELDS
    if not whole or not all(isinstance(values[name], dict) for name in PARTS):
        raise ValueError(f"{where} is not the record of a cell")
    return dict(values)
