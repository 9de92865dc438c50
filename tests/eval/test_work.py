from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.eval.cases import plan, source
from vidaccel.eval import bench
from vidaccel.eval.cells import Cell
from vidaccel.eval.clip import Clip
from vidaccel.eval.store import Store, reference_name
from vidaccel.eval.work import rounds_of, tasks_of
from vidaccel.files import write_text
from vidaccel.processes import reporter
from vidaccel.processes.forecast import Forecast, Pace, Task, seconds_left
from vidaccel.processes.launched import Launched

PROMPTS = ["a red circle", "a blue square", "a star"]
VALUES: dict[str, Any] = {"method": ["radial", "nabla"], "density": [0.3, 0.5], "seed": [0, 1], "baselines": True}
DENSE, FAST = Task("dense", "dense", 10), Task("fast", "fast", 10)


# units


def test_a_unit_is_a_reference_with_all_its_cells() -> None:
    cells = plan({**VALUES, "prompt": PROMPTS})
    for processes in (1, 2, 3):
        (units,) = rounds_of(cells, processes)
        assert len(units) == 6 and [cell for unit in units for cell in unit.cells] == cells
        for unit in units:
            assert len({reference_name(cell.reference) for cell in unit.cells}) == 1 and not unit.reference_only


def test_few_references_are_split_by_cell() -> None:
    cells = plan({**VALUES, "prompt": PROMPTS})
    for processes in (4, 100):
        references, families = rounds_of(cells, processes)
        assert all(unit.reference_only and len(unit.cells) == 1 for unit in references)
        assert len({reference_name(unit.cells[0].reference) for unit in references}) == len(references) == 6
        # Dense and four sparse cells of each, with their baselines.
        assert len(families) == 6 * 5 and sum((list(unit.cells) for unit in families), []) == cells
        for unit in families:
            first, *others = unit.cells
            assert first.parent is None and all(cell.parent is first for cell in others)


def test_what_is_left_of_a_family_stays_together() -> None:
    cells = [cell for cell in plan(VALUES) if cell.parent is not None]
    _, families = rounds_of(cells, 2)
    assert [len(unit.cells) for unit in families] == [2] * 8
    assert all(len({cell.parent.key for cell in unit.cells if cell.parent}) == 1 for unit in families)
    alone = [cell for cell in cells if cell.method == "random"][:1]
    assert rounds_of(alone, 5) == rounds_of(alone, 1), "nothing to share"


def test_tasks_are_of_cells(tmp_path: Path) -> None:
    cells = plan({"method": "radial", "density": 0.3, "seed": [0, 1], "baselines": True, "repeats": 3, "steps": 20})
    store = Store(tmp_path)
    (store.references / reference_name(cells[-1].reference)).mkdir(parents=True)
    tasks = tasks_of(cells, store)
    assert [task.steps for task in tasks] == [80, 60, 60, 60] + [60] * 4, "one reference is to be made"
    assert [task.kind for task in tasks[:4]] == [task.kind for task in tasks[4:]] and len({*tasks[:4]}) == 4
    dense, radial, *others = tasks[4:]
    assert dense.like == dense.kind and {task.like for task in others} == {radial.kind}


# forecast


def test_nothing_is_known_before_the_first_step() -> None:
    assert seconds_left([DENSE], Pace()) is None and seconds_left([], Pace(), DENSE) is None
    assert seconds_left([], Pace()) == 0
    assert seconds_left([DENSE, FAST], Pace({"dense": (1, 5.0)})) is None, "no step was counted"


def test_steps_are_extrapolated() -> None:
    pace = Pace({}, steps=4, seconds=8.0)
    # 10 steps at 2 s, of which 8 s are spent, and 10 more.
    assert seconds_left([FAST], pace, DENSE, 8.0) == pytest.approx(20 - 8 + 20)
    assert seconds_left([FAST], pace, DENSE, 100.0) == pytest.approx(20), "late already"


def test_kinds_have_times_of_their_own() -> None:
    pace = Pace({"dense": (2, 60.0), "fast": (1, 10.0)}, steps=30, seconds=70.0)
    assert seconds_left([DENSE, FAST, FAST], pace) == pytest.approx(30 + 10 + 10)
    # A baseline of unknown steps takes about as long as its parent, until one was measured.
    fewer = Task("fewer", "fast", 10)
    assert seconds_left([fewer], pace) == pytest.approx(10)
    assert seconds_left([fewer], dataclasses.replace(pace, kinds={**pace.kinds, "fewer": (2, 8.0)})) == pytest.approx(4)
    assert seconds_left([Task("new", "newer", 3)], pace) == pytest.approx(3 * 70 / 30)


def test_processes_share_what_is_left() -> None:
    pace = Pace({"dense": (1, 30.0)}, 10, 30.0)
    assert seconds_left([DENSE] * 8, pace, processes=4) == pytest.approx(60)
    assert seconds_left([DENSE] * 2, pace, processes=8) == pytest.approx(30), "no more than there are tasks"
    assert seconds_left([DENSE] * 3, pace, DENSE, 20.0, processes=2) == pytest.approx((90 + 10) / 2)


def test_a_forecast_follows_the_clock() -> None:
    now = [100.0]
    forecast = Forecast([DENSE, FAST, DENSE, FAST], lambda: now[0])
    assert forecast.left() is None
    forecast.begin(0)
    assert forecast.left() is None
    now[0] += 6
    forecast.step()
    assert forecast.left() == pytest.approx(4 * 60 - 6)
    now[0] += 24
    forecast.end()
    assert forecast.done() == {0} and forecast.left() == pytest.approx(30 + 2 * 300), "one step was counted in 30 s"
    forecast.begin(1)
    now[0] += 5
    forecast.end()
    assert forecast.left() == pytest.approx(35)
    forecast.begin()
    now[0] += 7
    forecast.step()
    forecast.end()
    assert forecast.left() == pytest.approx(35) and forecast.done() == {0, 1}, "it was no task"
    forecast.begin(2)
    now[0] += 1
    forecast.end(typical=False)
    assert forecast.left() == pytest.approx(5) and forecast.done() == {0, 1, 2}
    told = json.loads(json.dumps(forecast.to_dict()))
    assert told == {"done": [0, 1, 2], "kinds": {"dense": [1, 30.0], "fast": [1, 5.0]}, "steps": 2, "seconds": 43.0}


def test_a_forecast_hears_of_others() -> None:
    now = [0.0]
    forecast = Forecast([DENSE, FAST] * 3, lambda: now[0])
    other = {"done": [1, 3], "kinds": {"fast": [2, 8.0]}, "steps": 20, "seconds": 8.0}
    assert forecast.left([None]) is None and forecast.left([other, None]) == pytest.approx((3 * 4 + 4) / 3)
    forecast.begin(0)
    now[0] = 20
    forecast.step()
    forecast.end()
    assert forecast.done([other, None]) == {0, 1, 3}
    assert forecast.left([other]) == pytest.approx((2 * 20 + 4) / 2)


# several processes, here threads, of an eval whose runs are made up


class Record:
    def __init__(self, cell: Cell, rank: int) -> None:
        self.values = {"cell": cell.name, "rank": rank}

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(self.values))


class FakeStage:
    """Counts what it is asked for, and makes a reference and clips of noise."""

    runs: list[tuple[str, str]] = []
    broken: set[tuple[str, str]] = set()

    def __init__(self, cell: Cell, store: Store, say: Any, on_step: Any) -> None:
        self.store, self.on_step, self.thread = store, on_step, threading.current_thread().name
        if (cell.source.name, self.thread) in self.broken:
            raise MemoryError("no room for the weights")

    def __enter__(self) -> FakeStage:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def prepare(self, cell: Cell) -> None:
        if self.store.reference(cell.reference)[0] is None:
            if "star" in cell.prompt:
                raise RuntimeError("out of memory")
            self.runs.append(("reference", cell.prompt))
            time.sleep(0.02)
            self.store.keep_reference(cell.reference, Clip(None, np.zeros(3, np.float32)), {})

    def measure(self, cell: Cell, parent: dict[str, Any] | None) -> tuple[Any, Clip]:
        self.prepare(cell)
        assert (parent is None) == (cell.parent is None)
        self.runs.append(("cell", cell.name))
        self.on_step(1, 1)
        time.sleep(0.02)
        return Record(cell, int(self.thread)), Clip(None, np.ones(3, np.float32))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeStage]:
    monkeypatch.setattr("vidaccel.eval.worker.Stage", FakeStage)
    monkeypatch.setattr(FakeStage, "runs", [])
    monkeypatch.setattr(FakeStage, "broken", set())
    return FakeStage


def share(out: Path, size: int, models: Any = None, **values: Any) -> tuple[list[Any], list[list[str]]]:
    """What `bench.run` returned or raised in each of `size` processes, and what each said."""
    store, found, said = torch.distributed.HashStore(), [None] * size, [[] for _ in range(size)]
    sources = models or [source()]
    given = {"method": "radial", "density": [0.3, 0.5], "prompt": PROMPTS[:2], "quick": True, **values}

    def one(rank: int) -> None:
        crew = Launched(store, rank, size, rank)
        try:
            of_rank = sources[rank] if isinstance(sources, dict) else sources
            found[rank] = bench.run(of_rank, out, say=said[rank].append, crew=crew, **given)
        except Exception as error:
            found[rank] = error
        crew.close()

    threads = [threading.Thread(target=one, args=(rank,), name=str(rank)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "it hangs"
    return found, said


@pytest.mark.parametrize("size", [2, 5])
def test_nothing_is_done_twice(fake: type[FakeStage], tmp_path: Path, size: int) -> None:
    found, said = share(tmp_path, size)
    assert all(result.failed == {} and result.cells == 14 and result.skipped == 0 for result in found), found
    assert len(fake.runs) == len(set(fake.runs)) == 2 + 14
    done = [json.loads(path.read_text()) for path in tmp_path.glob("cells/*/record.json")]
    assert len(done) == 14 and len({record["rank"] for record in done}) > 1
    assert said == [[f"{size} processes share 14 cells"]] + [[]] * (size - 1)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".lock"], "the token is gone"
    fake.runs.clear()
    again, _ = share(tmp_path, size)
    assert all(result.skipped == 14 for result in again) and fake.runs == []
    alone = bench.run(source(), tmp_path, method="radial", density=[0.3, 0.5], prompt=PROMPTS, quick=True)
    assert alone.skipped == 14 and alone.cells == 21 and len(alone.failed) == 7


def test_failures_are_known_to_all(fake: type[FakeStage], tmp_path: Path) -> None:
    found, _ = share(tmp_path, 4, prompt=PROMPTS)
    assert all(result.failed == found[0].failed for result in found) and len(found[0].failed) == 7
    names = [cell.name for cell in plan_of(PROMPTS) if "star" in cell.prompt]
    assert list(found[0].failed) == names, "in the order of the cells"
    assert set(found[0].failed.values()) == {
        "RuntimeError: there is no dense reference: RuntimeError: out of memory",
    }  # fmt: skip
    assert len(list(tmp_path.glob("cells/*/error.json"))) == 7


def test_a_cell_that_is_done_is_not_lost_to_an_error(fake: type[FakeStage], tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    share(tmp_path, 2)
    before = {path: path.read_bytes() for path in tmp_path.glob("cells/*/*")}
    monkeypatch.setattr(Store, "lacks_split", lambda self, cell: cell.method == "radial")
    fake.broken |= {("miniature:wan", "0"), ("miniature:wan", "1")}
    found, _ = share(tmp_path, 2)
    assert len(found[0].failed) == 4 and {path: path.read_bytes() for path in tmp_path.glob("cells/*/*")} == before


def plan_of(prompts: list[str]) -> list[Cell]:
    return plan({"method": "radial", "density": [0.3, 0.5], "prompt": prompts, "quick": True, "baselines": True})


def test_a_process_that_cannot_load_leaves_the_work_to_others(fake: type[FakeStage], tmp_path: Path) -> None:
    fake.broken.add(("miniature:wan", "1"))
    found, said = share(tmp_path, 2, seed=[0, 1])
    # It had claimed one reference with its seven cells before it knew, if it came to it at all.
    failed = found[0].failed
    assert len(failed) in (0, 7) and found[1].failed == failed
    assert set(failed.values()) <= {"RuntimeError: its model cannot be loaded: MemoryError: no room for the weights"}
    assert len(list(tmp_path.glob("cells/*/record.json"))) == 28 - len(failed)
    assert len(list(tmp_path.glob("cells/*/error.json"))) == len(failed)
    fake.broken |= {("other", "0"), ("other", "1")}
    found, said = share(tmp_path, 2, [source(name="other"), source()], seed=[0, 1])
    assert sum(name.startswith("other-") for name in found[0].failed) == 28 and found[1].failed == found[0].failed
    assert said[1][0] == "other cannot be loaded: MemoryError: no room for the weights"


def test_other_cells_in_another_process_are_refused(fake: type[FakeStage], tmp_path: Path) -> None:
    models = {0: source(), 1: source(identify=lambda: "sha256:1"), 2: source()}
    found, _ = share(tmp_path / "out", 3, models)
    for each in found:
        assert isinstance(each, ValueError) and "process 1 would run another eval" in str(each)
        assert "model ('sha256:1', not 'sha256:0')" in str(each)
    assert not (tmp_path / "out").exists()


def test_a_second_job_is_refused_as_a_whole(fake: type[FakeStage], tmp_path: Path) -> None:
    with Store(tmp_path):
        found, _ = share(tmp_path, 3)
    assert all(isinstance(each, ValueError) and "another eval is at work" in str(each) for each in found)
    assert fake.runs == [] and found[0].__class__ is ValueError


def test_bad_input_is_one_error(fake: type[FakeStage], tmp_path: Path) -> None:
    def unreadable() -> str:
        raise ValueError("weights are missing")

    models = {0: [source()], 1: [source(identify=unreadable)]}
    found, _ = share(tmp_path / "out", 2, models)
    assert all(str(each).startswith("process 1 on ") and "weights are missing" in str(each) for each in found)
    assert not (tmp_path / "out").exists()


def test_the_main_process_shows_what_others_do(fake: type[FakeStage], tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(reporter, "ASK", 0.0)

    class Slow(FakeStage):
        def measure(self, *given: Any) -> Any:
            time.sleep(0.4 * (self.thread == "1"))
            return super().measure(*given)

    monkeypatch.setattr("vidaccel.eval.worker.Stage", Slow)
    heard: list[tuple[Any, ...]] = []
    found, _ = share(tmp_path, 2, baselines=False, progress=lambda *each: heard.append(each))
    assert not any(result.failed for result in found)
    labels = [each[0] for each in heard]
    assert any(label.startswith("reference of ") for label in labels) or any("/4 " in label for label in labels)
    waiting = [each for each in heard if each[0] == "other processes"]
    assert waiting and all(total == 4 for _, _, total, _ in waiting) and waiting[-1][3] is not None
    assert all(left is None or left >= 0 for *_, left in heard)
