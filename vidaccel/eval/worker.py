"""One process's share of an eval: claims units, loads their models, runs their cells."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from typing import Any

from vidaccel.eval.cells import Cell
from vidaccel.eval.failing import described, make_room
from vidaccel.eval.stage import Stage
from vidaccel.eval.store import Store, reference_name
from vidaccel.eval.work import Unit, rounds_of
from vidaccel.processes import Crew, appears
from vidaccel.processes.reporter import Reporter


class Worker:
    """Works through the units that it can get; keeps one model loaded at a time.

    Args:
        store: of references and cells.
        pending: the cells to run, of all processes.
        titles: of their lines of progress, by their keys.
        reporter: told of everything that runs.
        say: hears what else happens.

    Attributes:
        failed: names of the cells that failed here, and why.
        broken: the models that could not be loaded here, and why.
    """

    def __init__(self, store: Store, pending: Sequence[Cell], titles: dict[str, str], crew: Crew, reporter: Reporter,
                 say: Callable[[str], None]) -> None:  # fmt: skip
        self.store, self.pending, self.crew, self.reporter, self.say = store, pending, crew, reporter, say
        self.failed: dict[str, str] = {}
        self.broken: dict[str, Exception] = {}
        self._titles = titles
        self._task = {cell.key: index for index, cell in enumerate(pending)}
        self._made: list[str] = []
        self._lost: dict[str, str] = {}

    def run(self) -> None:
        """Run whatever no other process does."""
        for turn, model in enumerate(dict.fromkeys(cell.source.name for cell in self.pending)):
            if turn:
                gc.collect()  # the model before may be in cycles, and there may be no room for two
            self._model(rounds_of([cell for cell in self.pending if cell.source.name == model], self.crew.size))

    def fail(self, cell: Cell, error: Exception) -> None:
        """Keep what a cell failed with."""
        self.failed[cell.name] = described(error)
        self.say(f"{cell.name} failed: {self.failed[cell.name]}")
        if self.store.record(cell) is None:
            with contextlib.suppress(OSError):
                self.store.keep_error(cell, error)

    def _model(self, rounds: Sequence[Sequence[Unit]]) -> None:
        """One model, which is not referred to any more afterwards."""
        with contextlib.ExitStack() as context:
            stage: Stage | None = None
            for turn, units in enumerate(rounds):
                if turn:
                    self._meet()
                for index in self.crew.claims(len(units)):
                    stage = stage or self._stage(units[index].cells[0], context)
                    if stage is None:
                        break  # other processes may be luckier
                    self._unit(stage, units[index])

    def _stage(self, cell: Cell, context: contextlib.ExitStack) -> Stage | None:
        """A cell's model, loaded; None where it cannot be, which is tried once."""
        if cell.source.name in self.broken:
            return None
        try:
            return context.enter_context(Stage(cell, self.store, self.say, self.reporter.step))
        except Exception as error:
            self.broken[cell.source.name] = error
            self.say(f"{cell.source.name} cannot be loaded: {described(error)}")
            return None

    def _unit(self, stage: Stage, unit: Unit) -> None:
        if unit.reference_only:
            self._reference(stage, unit.cells[0])
            return
        for cell in unit.cells:
            self._cell(stage, cell)

    def _reference(self, stage: Stage, cell: Cell) -> None:
        """Make a reference that other processes wait for."""
        name = reference_name(cell.reference)
        self.reporter.begin(f"reference of {cell.title}")
        try:
            stage.prepare(cell)
            self._made.append(name)
        except Exception as error:
            self._lost[name] = described(error)
            make_room()
        self.reporter.end()

    def _cell(self, stage: Stage, cell: Cell) -> None:
        """Run one cell and write its folder, whatever comes of it."""
        self.reporter.begin(self._titles[cell.key], self._task[cell.key])
        try:
            if self.store.record(cell) is None:
                record, clip = stage.measure(cell, self._parent(cell))
                self.store.keep_cell(cell, record, clip)
        except Exception as error:
            self.fail(cell, error)
            make_room()
        if self.store.lacks_split(cell):
            self._split(stage, cell)
        self.reporter.end(typical=cell.name not in self.failed and not cell.breakdown)

    def _split(self, stage: Stage, cell: Cell) -> None:
        """Add to a cell that is done where its time goes; it stays done if that fails."""
        try:
            self.store.add_split(cell, stage.split(cell))
        except Exception as error:
            self.failed[cell.name] = f"breakdown: {described(error)}"
            self.say(f"{cell.name} has no breakdown: {described(error)}")
            make_room()

    def _parent(self, cell: Cell) -> dict[str, Any] | None:
        """The record of the cell that a baseline follows.

        Raises:
            RuntimeError: there is none, or no dense reference.
        """
        if (lost := self._lost.get(reference_name(cell.reference))) is not None:
            raise RuntimeError(f"there is no dense reference: {lost}")
        record = None if cell.parent is None else self.store.record(cell.parent)
        if cell.parent is not None and record is None:
            raise RuntimeError(f"it is a baseline of {cell.parent.name}, which failed")
        return record

    def _meet(self) -> None:
        """Wait for the references that others make."""
        for each in self.crew.gather({"made": self._made, "lost": self._lost}, self.reporter.waiting):
            self._lost |= each["lost"]
            for name in each["made"]:
                appears(self.store.references / name)
        self._made = []
