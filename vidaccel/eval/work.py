"""An eval's work in units that processes share: none needs a record or a reference that another one is making."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from vidaccel.eval.cells import Cell
from vidaccel.eval.store import Store, reference_name
from vidaccel.processes.forecast import Task

FEW = 2
"""References a process below which they are too coarse a split: of 3 for 2 processes, one is done by a single one."""


@dataclass(frozen=True)
class Unit:
    """What one process does in one go.

    Args:
        cells: of one reference, in the order in which they run, a baseline after its parent.
        reference_only: whether only their reference is to be made, and none of them is to run.
    """

    cells: tuple[Cell, ...]
    reference_only: bool = False


def rounds_of(cells: Sequence[Cell], processes: int) -> list[list[Unit]]:
    """The cells of one model as rounds of units, each round to be over before the next begins.

    Normally one round of a unit for each reference, with all its cells. Where these are too few for the processes, one
    that makes the references, and then one of a unit for each cell and its baselines.
    """
    references = _grouped(cells, lambda cell: reference_name(cell.reference))
    families = [family for each in references for family in _grouped(each, lambda cell: (cell.parent or cell).key)]
    if processes == 1 or len(references) >= FEW * processes or len(families) == len(references):
        return [[Unit(each) for each in references]]
    return [[Unit(each[:1], reference_only=True) for each in references], [Unit(each) for each in families]]


def tasks_of(cells: Sequence[Cell], store: Store) -> list[Task]:
    """The cells as tasks of a forecast: those of one row take about as long, and a baseline as long as its parent.

    A reference that the folder does not have is counted with the first of its cells.
    """
    made: set[str] = set()
    tasks = []
    for cell in cells:
        steps, name = int(cell.call["num_inference_steps"]), reference_name(cell.reference)
        missing = name not in made and not (store.references / name).exists()
        made.add(name)
        tasks.append(Task(cell.row, (cell.parent or cell).row, steps * (cell.repeats + missing + 2 * cell.breakdown)))
    return tasks


def _grouped(cells: Iterable[Cell], key: Callable[[Cell], Hashable]) -> list[tuple[Cell, ...]]:
    groups: dict[Hashable, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return [tuple(group) for group in groups.values()]
