from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.crews import in_crew
from vidaccel.processes import (
    Crew,
    Refused,
    appears,
    check_agreed,
    check_shared,
    held,
    join,
    joined,
    launch,
    launched,
    share,
    take_device,
)
from vidaccel.processes import folder as folder_module
from vidaccel.processes.launched import Launched

ENVIRONMENT = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launched, "POLL", 0.005)
    monkeypatch.setattr(launched, "BEAT", 0.02)
    monkeypatch.setattr(folder_module, "SIGHT", 0.2)


@pytest.fixture
def crews() -> Callable[[int, Callable[[Crew], Any]], list[Any]]:
    """Runs a function in as many processes as asked for, here threads, and returns what each returned or raised."""
    return in_crew


def test_alone_nothing_is_shared() -> None:
    crew = Crew()
    assert crew.main and (crew.rank, crew.size) == (0, 1) and crew.gather({"a": 1}) == [{"a": 1}]
    assert list(crew.claims(3)) == [0, 1, 2] and crew.told() == []
    with pytest.raises(KeyError), crew.together():
        raise KeyError("mine")


def test_everyone_hears_everyone(crews: Any) -> None:
    def work(crew: Crew) -> Any:
        turns = []
        first = crew.gather([crew.rank], lambda: turns.append(crew.rank))
        time.sleep(0.1 * crew.rank)
        return first, crew.gather(crew.rank * 10, lambda: turns.append(crew.rank)), turns

    found = crews(3, work)
    assert [each[0] for each in found] == [[[0], [1], [2]]] * 3 and [each[1] for each in found] == [[0, 10, 20]] * 3
    assert set(found[0][2]) == {0}, "the first one waits"


def test_each_number_goes_to_one_process(crews: Any) -> None:
    def work(crew: Crew) -> Any:
        return [list(crew.claims(60)), list(crew.claims(7)), list(crew.claims(0))]

    found = crews(3, work)
    for turn, count in enumerate((60, 7, 0)):
        shares = [each[turn] for each in found]
        assert sorted(sum(shares, [])) == list(range(count))
        assert all(share == sorted(share) for share in shares)


def test_whoever_is_quick_gets_more(crews: Any) -> None:
    def work(crew: Crew) -> int:
        crew.gather(None)
        return sum(1 for _ in crew.claims(20) if not time.sleep(0.1 if crew.main else 0.002))

    slow, quick = crews(2, work)
    assert slow + quick == 20 and quick > slow


def test_what_fails_in_one_fails_in_all(crews: Any) -> None:
    def work(crew: Crew) -> None:
        with crew.together():
            crew.gather(None)
        with crew.together():
            if crew.rank == 1:
                raise ValueError("no such colour")

    found = crews(3, work)
    assert all(type(each) is Refused and str(each).endswith(": no such colour") for each in found)
    assert {str(each).split(" on ")[0] for each in found} == {"process 1"}


def test_others_go_on_before_they_fail_too(crews: Any) -> None:
    done: list[int] = []

    def do(piece: int) -> None:
        if piece == 12:
            raise ValueError("bad luck")
        time.sleep(0.01)
        done.append(piece)

    pieces = range(10, 20)
    found = crews(2, lambda crew: share(crew, pieces, do))
    assert all(isinstance(each, ValueError) and str(each).endswith("bad luck") for each in found)
    assert sorted(done) == [piece for piece in pieces if piece != 12], "what is done is kept"
    turns: list[int] = []
    assert crews(2, lambda crew: share(crew, [], do, lambda: turns.append(1) or time.sleep(0.1))) == [None, None]
    share(Crew(), [3, 4], done.append)
    assert done[-2:] == [3, 4]


def test_waiting_for_others_is_told(crews: Any) -> None:
    told: list[int] = []

    def work(crew: Crew) -> None:
        with crew.together(lambda: told.append(crew.rank)):
            time.sleep(0.2 * crew.rank)

    assert crews(2, work) == [None, None] and set(told) == {0}


def test_all_are_to_do_the_same(crews: Any) -> None:
    def work(crew: Crew) -> None:
        check_agreed(crew, {"size": 4, "device": "a"}, "bake another cake")
        check_agreed(crew, {"size": 4 + (crew.rank == 2), "device": "b"}, "bake another cake")

    assert {str(each) for each in crews(3, work)} == {
        "process 2 would bake another cake than the main one: of other size (5, not 4)"
    }


def test_the_main_process_speaks_for_all(crews: Any) -> None:
    def work(crew: Crew) -> None:
        with crew.together():
            raise ValueError(f"bad for {'all' if crew.main else 'me'}")

    main, other = crews(2, work)
    assert type(main) is ValueError and str(main) == "bad for all", "its own, which knows where it was raised"
    assert type(other) is Refused and str(other) == "bad for all"


def test_bugs_stay_bugs(crews: Any) -> None:
    def work(crew: Crew) -> None:
        with crew.together():
            if not crew.main:
                raise KeyError("oops")

    main, other = crews(2, work)
    assert type(main) is RuntimeError and "process 1" in str(main) and "oops" in str(main)
    assert type(other) is KeyError


def test_the_last_word_counts(crews: Any) -> None:
    def work(crew: Crew) -> Any:
        before = crew.told()
        crew.gather(None)
        for word in ("first", "second"):
            crew.tell([crew.rank, word])
        crew.gather(None)
        return before, crew.told()

    found = crews(3, work)
    assert [each[0] for each in found] == [[None, None]] * 3
    assert found[1][1] == [[0, "second"], [2, "second"]]


def test_a_silent_process_is_given_up(crews: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launched, "SILENCE", 0.3)

    def work(crew: Any) -> None:
        crew.gather(None)
        if crew.rank == 2:
            crew._ended.set()  # as if it had been killed
            return
        # Those that are only slow are waited for, as they show signs of life.
        time.sleep(0.6 * (crew.rank == 1))
        crew.gather(None)

    found = crews(3, work)
    for each in found[:2]:
        assert type(each) is RuntimeError and str(each).startswith("process 2 on ") and "run the job again" in str(each)


def test_a_lost_store_is_said() -> None:
    class Broken:
        def add(self, *_: Any) -> int:
            return 1

        def set(self, *_: Any) -> None:
            raise RuntimeError("Connection reset by peer")

    with pytest.raises(RuntimeError, match="main process or its machine has gone"):
        Launched(Broken(), 1, 2, 1)


def test_others_wait_for_the_last_word_of_the_main_one(crews: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken: list[str] = []

    def work(crew: Any) -> None:
        if crew.main:
            time.sleep(0.2)
            spoken.append("main")
            crew.close()
        else:
            crew.follow()
            spoken.append("other")

    assert crews(2, work) == [None, None] and spoken == ["main", "other"]
    monkeypatch.setattr(launched, "PARTING", 0.1)
    began = time.monotonic()
    assert crews(2, lambda crew: crew.follow()) == [None, None] and time.monotonic() - began < 5


def test_a_folder_that_all_share(crews: Any, tmp_path: Path) -> None:
    assert crews(3, lambda crew: check_shared(crew, tmp_path)) == [None] * 3
    assert list(tmp_path.iterdir()) == []
    check_shared(Crew(), tmp_path / "absent")


def test_a_folder_that_is_not_shared_is_refused(crews: Any, tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()

    def work(crew: Crew) -> None:
        check_shared(crew, tmp_path / ("0" if crew.main else "elsewhere"))

    for each in crews(2, work):
        assert isinstance(each, ValueError) and "process 1 on " in str(each)
        assert "is not the main process's: processes on several machines need one that all of them share" in str(each)
    assert list(tmp_path.rglob("*")) == [tmp_path / "0"]


def test_what_others_write_must_be_seen(crews: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.touch

    def touch(self: Path, *args: Any, **options: Any) -> None:
        if not self.name.endswith("-1"):
            original(self, *args, **options)

    monkeypatch.setattr(Path, "touch", touch)
    for each in crews(3, lambda crew: check_shared(crew, tmp_path)):
        assert isinstance(each, ValueError) and "what processes [1] write" in str(each)


def test_a_folder_is_held_by_one_job(crews: Any, tmp_path: Path) -> None:
    prepared: list[int] = []

    def work(crew: Crew) -> Any:
        with held(crew, tmp_path / "a" / "b", "bakery", lambda: prepared.append(crew.rank)):
            inside = crew.gather(len(prepared))
            if crew.main:
                with pytest.raises(ValueError, match="another bakery is at work in .*choose another folder"):
                    held(Crew(), tmp_path / "a" / "b", "bakery").__enter__()
            return crew.gather(inside)[0]

    assert crews(2, work) == [[1, 1]] * 2 and prepared == [0]
    with held(Crew(), tmp_path / "a" / "b", "bakery"):
        assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [".lock"]
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write into folder"), held(Crew(), tmp_path / "file" / "x", "bakery"):
        pass


def test_a_file_may_come_late(tmp_path: Path) -> None:
    path = tmp_path / "late"
    threading.Timer(0.1, path.touch).start()
    assert appears(path, 10) and not appears(tmp_path / "never", 0) and not appears(tmp_path / "no" / "folder", 0)


def test_one_process_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in launch.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert not launch.is_launched()
    for name, item in ENVIRONMENT.items():
        monkeypatch.setenv(name, item)
    assert launch.is_launched()
    # Clusters set the size of a job for plain commands, too, and launchers start single processes.
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not launch.is_launched() and type(join()) is Crew and type(joined()) is Crew
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK")
    assert not launch.is_launched() and type(join()) is Crew
    assert not torch.distributed.is_initialized()


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    crew, taken = Crew(), list[int]()
    crew.rank, crew.size, crew.local = 5, 8, 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert take_device(crew, None) is None and take_device(crew, "cuda") == "cuda" and taken == [1, 1]
    assert take_device(crew, "cpu") == "cpu" and take_device(Crew(), "cuda:1") == "cuda:1" and taken == [1, 1]
    with pytest.raises(ValueError, match="'cuda:1' would be shared by 8 processes"):
        take_device(crew, "cuda:1")
    crew.local = 2
    with pytest.raises(ValueError, match="2 GPUs for process 2 of this machine"):
        take_device(crew, None)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert take_device(crew, None) == "cpu" and taken == [1, 1]
