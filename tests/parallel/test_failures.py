"""A process that fails ends all that compute a clip with it: soon, and with its words. Real launches are slow tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import torch

import vidaccel
from tests import tiny
from tests.parallel.cases import parallelised
from tests.parallel.world import ROOT, World
from vidaccel.parallel import alive
from vidaccel.parallel.alive import Watch
from vidaccel.processes import launch

MOST = 60
"""Seconds in which all have to be gone."""
WATCHER = """
import threading, time
from vidaccel.parallel import alive
alive.LOOK, alive.GRACE = 0.1, 0.5
alive.watch(inside=True)
while not alive._watch._count:
    time.sleep(0.05)
print("watching", flush=True)
{then}
"""
"""As after torch has set up its processes: the store is there."""
WAITS = "threading.Event().wait(100)"
"""As one waits whose collectives notice nothing."""


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Watch]]:
    """Makes the watch of one process after the other, here threads of one; what ends a process is noted in its name."""
    store, ranks, made = torch.distributed.HashStore(), iter(range(9)), []
    monkeypatch.setattr(alive, "LOOK", 0.02)
    monkeypatch.setattr(alive, "GRACE", 0.05)
    monkeypatch.setattr(launch, "store", lambda prefix: (store, next(ranks), 3))
    monkeypatch.setattr(alive, "_end", lambda text: setattr(threading.current_thread(), "name", text))

    def make() -> Watch:
        made.append(watch := Watch())
        assert within(lambda: store.check([f"sign/{len(made) - 1}"]))
        return watch

    yield make
    for watch in made:
        watch.part()


def within(found: Callable[[], Any], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not found() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(found())


def ended(watch: Watch) -> str:
    """What a process was ended with; empty while it goes on."""
    return "" if watch._thread.name == "vidaccel watch" else watch._thread.name


def test_all_go_on_while_all_give_signs_and_after_one_has_left(
    watches: Callable[[], Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A third process of the job never came, or computes nothing with them.
    first, second = watches(), watches()
    first.inside = True
    time.sleep(0.02 * alive.MISSED * 3)
    monkeypatch.delattr(sys, "last_exc", raising=False)
    monkeypatch.delattr(sys, "last_value", raising=False)
    second.part()
    time.sleep(0.02 * alive.MISSED * 3)
    assert ended(first) == ended(second) == "" and first.heard(0) is None


def test_a_silent_process_counts_as_gone(watches: Callable[[], Watch]) -> None:
    first, second = watches(), watches()
    silenced = threading.Event()
    # It waits for this instead of the next look.
    second._ended.wait = lambda seconds: silenced.wait(30)  # type: ignore[method-assign, assignment]
    assert within(lambda: ended(first))
    assert "process 1 on " in ended(first) and "no sign of life for" in ended(first)
    assert first.heard(0) is not None and "process 1 on" in str(first.heard(0))
    silenced.set()


def test_the_words_of_one_that_failed_end_the_others(
    watches: Callable[[], Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "last_value", OSError("no profile here"), raising=False)
    monkeypatch.delattr(sys, "last_exc", raising=False)
    first, second, third = watches(), watches(), watches()
    second.part()
    assert within(lambda: ended(first) and ended(third))
    assert all("process 1 on" in ended(each) and "has ended: OSError: no profile here" in ended(each)
               for each in (first, third))  # fmt: skip
    assert "OSError" in str(first.heard(0)) and ended(second) == ""


@pytest.mark.parametrize("waits", [True, False])
def test_one_that_leaves_in_the_middle_of_a_clip(
    waits: bool, watches: Callable[[], Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends those that are in the middle of it, too, and would wait for it; no others."""
    monkeypatch.delattr(sys, "last_exc", raising=False)
    monkeypatch.delattr(sys, "last_value", raising=False)
    first, second = watches(), watches()
    first.inside, second.inside = waits, True
    second.part()
    assert within(lambda: ended(first), 20 if waits else 0.5) is waits
    assert ("unfinished" in ended(first)) is waits


@pytest.mark.parametrize("inside", [True, False])
def test_a_store_that_has_gone(inside: bool, watches: Callable[[], Watch], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a clip that is the end; after it, whoever held it may have left first."""
    first = watches()
    first.inside = inside

    def gone(*_: Any) -> None:
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(first, "_store", type("Gone", (), {"set": staticmethod(gone)}))
    assert within(lambda: ended(first), 20 if inside else 0.5) is inside
    assert ("key-value store, has gone" in ended(first)) is inside


def test_an_error_of_the_collectives_comes_first(
    watches: Callable[[], Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a process ends by itself within the time of grace, its own words are the last."""
    monkeypatch.setattr(alive, "GRACE", 30.0)
    monkeypatch.setattr(sys, "last_value", OSError("first"), raising=False)
    monkeypatch.delattr(sys, "last_exc", raising=False)
    first, second = watches(), watches()
    second.part()
    assert within(lambda: first.heard(0))
    first.part()
    assert ended(first) == "" and not first._thread.is_alive()


def test_no_watch_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "is_launched", lambda: False)
    monkeypatch.setattr(alive, "_watch", None)
    before = threading.active_count()
    alive.watch(inside=True)
    assert alive._watch is None and threading.active_count() == before and alive.last_words() is None


def machines(*then: str) -> list[subprocess.Popen[str]]:
    """A process on each of some machines, whose launchers know nothing of each other: here without any."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    found = []
    for rank, what in enumerate(then):
        job = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": len(then), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        code = [sys.executable, "-c", WATCHER.format(then=what)]
        found.append(subprocess.Popen(code, env={**os.environ, **{name: str(each) for name, each in job.items()}},
                                      cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))  # fmt: skip
    return found


def watching(*processes: subprocess.Popen[str]) -> None:
    """Wait until all have started."""
    for each in processes:
        assert each.stdout is not None and each.stdout.readline() == "watching\n"


@pytest.mark.slow
def test_other_machines_end_with_the_words_of_the_one_that_failed() -> None:
    waiting, failing = machines(WAITS, "raise OSError('no profile on this machine')")
    watching(waiting, failing)
    said = [each.communicate(timeout=MOST)[1] for each in (waiting, failing)]
    assert waiting.returncode == failing.returncode == 1
    assert "process 1 on" in said[0] and "OSError: no profile on this machine. process 0 on" in said[0]


@pytest.mark.slow
def test_other_machines_end_where_one_is_killed() -> None:
    waiting, killed = machines(WAITS, WAITS)
    watching(waiting, killed)
    killed.kill()
    _, said = waiting.communicate(timeout=MOST)
    assert waiting.returncode == 1 and "process 1 on" in said and "no sign of life" in said
    killed.communicate()


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                   "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "how"), [("torchrun", "killed"), ("accelerate", "raises")])
def test_a_job_ends_with_its_first_failure(launcher: str, how: str, tmp_path: Path) -> None:
    """In the middle of a step of a real pipeline, split over two processes by diffusers."""
    words = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "tests.parallel.failing", how, str(tmp_path)]
    job = subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    files = [tmp_path / str(rank) for rank in range(2)]
    assert within(lambda: all(each.exists() for each in files) or job.poll() is not None, 300)
    processes = [psutil.Process(int(each.read_text())) for each in files]
    (tmp_path / "go").touch()
    _, said = job.communicate(timeout=MOST)
    assert job.returncode != 0
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)
    if how == "raises":
        assert "RuntimeError: only this process ran out of luck" in said
    else:
        assert f"Signal {signal.SIGKILL.value} (SIGKILL)" in said and "rank      : 1" in said


def when_watched() -> tuple[int, list[Any]]:
    """How often an `enable` that fails watched over the others before, and what a clip said of its place."""
    pipe = parallelised(tiny.tiny_wan(), ulysses=2)
    with mock.patch.object(alive, "watch") as watch:
        with pytest.raises(ValueError, match=r"missing\.json"):
            vidaccel.enable(pipe, "missing.json")
        before = watch.call_count
        with vidaccel.enable(pipe, "radial", block=16, split=16, min_tokens=0):
            watch.reset_mock()
            tiny.generate(pipe, output_type="latent", num_inference_steps=3)
        return before, [call.args[0] for call in watch.call_args_list]


def test_what_only_one_process_finds_amiss_is_watched_for(world: World) -> None:
    # Two passes a step; after the last step's first one, nothing is left to wait for but that step.
    assert world(when_watched) == [(1, [True] * 4 + [False] * 2)] * 2
