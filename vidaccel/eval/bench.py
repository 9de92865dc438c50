"""The bench: every cell of an eval measured against its dense reference, in a folder from which it can go on."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vidaccel.eval.cells import Cell, plan_cells
from vidaccel.eval.settings import Settings
from vidaccel.eval.sources import Source
from vidaccel.eval.stage import Stage
from vidaccel.eval.store import Store
from vidaccel.eval.table import Row, rows_of, write_tables

Progress = Callable[[str, int, int], None]
"""Called after each denoising step with the cell at work, and the steps done and all steps of its generation."""
logger = logging.getLogger(__name__)


@dataclass
class Result:
    """What an eval did and has.

    Args:
        out: its folder.
        cells: how many it was asked for.
        skipped: how many of them were done before.
        failed: the folders of those that failed, and why.
        rows: of the table over all finished cells in the folder.
    """

    out: Path
    cells: int
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values."""
        return {"kind": "eval", "out": str(self.out), "cells": self.cells, "skipped": self.skipped,
                "failed": self.failed, "rows": [row.to_dict() for row in self.rows]}  # fmt: skip


def run(
    models: Any,
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **values: Any,
) -> Result:
    """Measure methods against dense generation, cell by cell, and write a table.

    A cell is one generation: a model, a method at a density, a cache policy, a prompt and a seed. Each gets a folder
    ``out/cells/NAME`` with its config, its clip without loss and its record, or with its error; the dense clips that
    they are compared with are kept in ``out/references``. What is there already is not run again: called once more
    after a kill, the eval goes on. Cells that failed are tried again.

    Args:
        models: a diffusers pipeline, a `Source`, or a list of these.
        out: folder of the eval, made if need be.
        settings: the axes, or their `values` as of `Settings`: ``method="radial", density=[0.2, 0.3], prompt=[...]``.
        progress: hears of every step.
        say: hears what else happens; the log by default.

    Returns:
        Counts, errors and the table, which also lie in ``out`` as records.jsonl, table.md and table.csv.

    Raises:
        ValueError: bad settings, before anything is loaded or run, or a folder that is in use or cannot be written.
    """
    if settings is None:
        settings = Settings.of(values)
    elif values:
        raise ValueError(f"give settings or {', '.join(values)}, not both")
    given = models if isinstance(models, (list, tuple)) else [models]
    sources = [each if isinstance(each, Source) else Source.of(each) for each in given]
    cells = plan_cells(sources, settings)
    with Store(out) as store:
        bench = _Bench(store, cells, progress or (lambda *_: None), say or logger.warning)
        try:
            bench.run()
        finally:
            bench.result.rows = rows_of(store.records())
            write_tables(store.out, store.records(), bench.result.rows)
    return bench.result


class _Bench:
    """Works through cells; keeps one model loaded at a time."""

    def __init__(self, store: Store, cells: Sequence[Cell], progress: Progress, say: Callable[[str], None]) -> None:
        self.store, self.cells, self.progress, self.say = store, cells, progress, say
        self.result = Result(store.out, len(cells))
        self._current = ""

    def run(self) -> None:
        pending = [cell for cell in self.cells if self.store.record(cell) is None]
        self.result.skipped = len(self.cells) - len(pending)
        if self.result.skipped:
            self.say(f"{self.result.skipped} of {len(self.cells)} cells are done already")
        for turn, model in enumerate(dict.fromkeys(cell.source.name for cell in pending)):
            if turn:
                gc.collect()  # the model before may be in cycles, and there may be no room for two
            self._model([cell for cell in pending if cell.source.name == model])

    def _model(self, cells: Sequence[Cell]) -> None:
        """Run the cells of one model, which is not referred to any more afterwards."""
        try:
            stage = Stage(cells[0], self.store, self.say, self._on_step)
        except Exception as error:
            for cell in cells:
                self._fail(cell, error)
            return
        with stage:
            for cell in cells:
                self._one(stage, cell)

    def _one(self, stage: Stage, cell: Cell) -> None:
        """Run one cell and write its folder, whatever comes of it."""
        at = next(index for index, each in enumerate(self.cells, 1) if each is cell)
        self._current = f"{at}/{len(self.cells)} {cell.title}"
        try:
            parent = None if cell.parent is None else self._parent(cell.parent)
            record, clip = stage.measure(cell, parent)
            self.store.keep_cell(cell, record, clip)
        except Exception as error:
            self._fail(cell, error)

    def _fail(self, cell: Cell, error: Exception) -> None:
        self.result.failed[cell.name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        self.say(f"{cell.name} failed: {self.result.failed[cell.name]}")
        with contextlib.suppress(OSError):
            self.store.keep_error(cell, error)
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()

    def _parent(self, parent: Cell) -> dict[str, Any]:
        record = self.store.record(parent)
        if record is None:
            raise RuntimeError(f"it is a baseline of {parent.name}, which failed")
        return record

    def _on_step(self, done: int, steps: int) -> None:
        self.progress(self._current, done, steps)
