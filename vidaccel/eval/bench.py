"""The bench: every cell of an eval measured against its dense reference, in a folder from which it can go on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidaccel.eval.cells import Cell, plan_cells
from vidaccel.eval.failing import described
from vidaccel.eval.identity import key_of
from vidaccel.eval.settings import Settings
from vidaccel.eval.sources import Source
from vidaccel.eval.store import RECORD, Store
from vidaccel.eval.table import Row, rows_of, write_tables
from vidaccel.eval.work import tasks_of
from vidaccel.eval.worker import Worker
from vidaccel.processes import Crew, appears, check_agreed
from vidaccel.processes.reporter import Progress, Reporter

logger = logging.getLogger(__name__)


@dataclass
class Result:
    """What an eval did and has.

    Args:
        out: its folder.
        cells: how many it was asked for.
        skipped: how many of them were done before.
        failed: the folders of those that failed, and why.
        rows: of the table over all finished cells in the folder; only in the main process.
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
    crew: Crew | None = None,
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
        crew: the processes that share the cells, each of which calls this with the same arguments; see
            `vidaccel.processes.join`. This one alone by default.

    Returns:
        Counts, errors and the table, which also lie in ``out`` as records.jsonl, table.md and table.csv.

    Raises:
        ValueError: bad settings, before anything is loaded or run, or a folder that is in use, cannot be written or is
            not the same for all processes.
        RuntimeError: another process has gone.
    """
    if settings is None:
        settings = Settings.of(values)
    elif values:
        raise ValueError(f"give settings or {', '.join(values)}, not both")
    given = models if isinstance(models, (list, tuple)) else [models]
    sources = [each if isinstance(each, Source) else Source.of(each) for each in given]
    crew = crew or Crew()
    with crew.together():
        cells = list({cell.key: cell for cell in plan_cells(sources, settings)}.values())
    _check_agreed(crew, cells)
    with Store(out, crew) as store:
        bench = _Bench(store, cells, crew, progress or (lambda *_: None), say or logger.warning)
        try:
            bench.run()
        finally:
            if crew.main:
                bench.result.rows = rows_of(store.records())
                write_tables(store.out, store.records(), bench.result.rows)
    return bench.result


def _check_agreed(crew: Crew, cells: Sequence[Cell]) -> None:
    """All processes must want the very same cells, whose references depend on the machine, too.

    Raises:
        ValueError: they differ, with all that they differ in.
    """
    about = {name: item for name, item in cells[0].reference.items() if name not in ("prompt", "seed")}
    check_agreed(crew, {**about, "settings": key_of({"cells": [cell.key for cell in cells]})}, "run another eval")


class _Bench:
    """Shares the cells among processes, and puts together what came of them."""

    def __init__(self, store: Store, cells: Sequence[Cell], crew: Crew, progress: Progress,
                 say: Callable[[str], None]) -> None:  # fmt: skip
        self.store, self.cells, self.crew, self.say = store, cells, crew, say
        # The main process looks what there is, so that all of them share the same work.
        with crew.together():
            lacking = self._lacking() if crew.main else []
        self.pending = [cells[index] for index in crew.gather(lacking)[0]]
        self.result = Result(store.out, len(cells), len(cells) - len(self.pending))
        self.reporter = Reporter(tasks_of(self.pending, store), crew, progress)
        titles = {cell.key: f"{turn}/{len(cells)} {cell.title}" for turn, cell in enumerate(cells, 1)}
        self.worker = Worker(store, self.pending, titles, crew, self.reporter, say)

    def _lacking(self) -> list[int]:
        """The cells that something is still to be run of; what is lacking otherwise is added."""
        for cell in self.cells:
            self.store.add_video(cell)
        return [index for index, cell in enumerate(self.cells)
                if self.store.record(cell) is None or self.store.lacks_split(cell)]  # fmt: skip

    def run(self) -> None:
        if self.crew.main:
            self._announce()
        try:
            self.worker.run()
        finally:
            self.result.failed = self.worker.failed
        self._merge()

    def _announce(self) -> None:
        if self.result.skipped:
            self.say(f"{self.result.skipped} of {len(self.cells)} cells are done already")
        if self.crew.size > 1:
            self.say(f"{self.crew.size} processes share {len(self.pending)} cells")

    def _merge(self) -> None:
        """Wait for the other processes, and add what failed in them."""
        broken = {model: described(error) for model, error in self.worker.broken.items()}
        mine = {"done": self.reporter.done(), "failed": self.worker.failed, "broken": broken}
        everyone = self.crew.gather(mine, self.reporter.waiting)
        done = {index for each in everyone for index in each["done"]}
        for each in everyone:
            self.worker.failed |= each["failed"]
            broken |= each["broken"]
        if self.crew.main:
            self._check_done(done, broken)
        failed = self.crew.gather(self.worker.failed)[0]
        self.result.failed = {cell.name: failed[cell.name] for cell in self.pending if cell.name in failed}

    def _check_done(self, done: set[int], broken: dict[str, str]) -> None:
        """Fail the cells that no process could run, or whose folders are not seen here."""
        for index, cell in enumerate(self.pending):
            if index not in done:
                reason = RuntimeError(f"its model cannot be loaded: {broken[cell.source.name]}")
                self.worker.fail(cell, self.worker.broken.get(cell.source.name, reason))
            elif cell.name not in self.worker.failed and not appears(self.store.cells / cell.name / RECORD):
                self.worker.failed[cell.name] = "another process ran it, and its folder is not to be seen"
