"""Some processes with gloo between them, started once for a whole test session: importing diffusers takes seconds."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 300
"""Seconds for the start, and for a function: a worker has only a share of a core."""
GRACE = 10
"""Seconds for the other ranks once one has failed: they may wait for it in a collective."""


class World:
    """Processes that each run the same function with the same arguments; started when first needed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[Any] = []
        self._lines: list[Connection] = []

    def __call__(self, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> list[Any]:
        """What a function of a module returns in each process, by rank; its first error is raised here.

        Args:
            function: found by its module and name in the processes.
            args: tensors and other plain data.
            timeout: seconds; past them all processes are killed, and others are started with the next call.
        """
        if not self._processes:
            self._start()
        task = pickle.dumps((function.__module__, function.__qualname__, args))
        for line in self._lines:
            line.send_bytes(task)
        found = self._answers(time.monotonic() + timeout)
        failed = [answer for answer in found if answer is None or answer[1] is not None]
        if None in found:
            # It may be in a collective, for which another one has failed.
            self.stop()
        for answer in (answer for answer in failed if answer is not None):
            raise answer[1] from Remote(answer[2])
        if failed:
            raise TimeoutError(f"{function.__qualname__}: ranks {[i for i, each in enumerate(found) if each is None]} "
                               f"have not answered after {timeout} s, or died")  # fmt: skip
        return [answer[0] for answer in found if answer is not None]

    def _answers(self, end: float) -> list[tuple[Any, BaseException | None, str] | None]:
        """By rank; None of one that does not answer in time."""
        found: list[tuple[Any, BaseException | None, str] | None] = [None] * self.size
        waiting = set(range(self.size))
        while waiting and time.monotonic() < end:
            for rank in [rank for rank in waiting if self._lines[rank].poll(0.002)]:
                waiting.discard(rank)
                try:
                    found[rank] = answer = pickle.loads(self._lines[rank].recv_bytes())
                except EOFError:
                    answer = (None, RuntimeError("died"), "")
                if answer[1] is not None:
                    end = min(end, time.monotonic() + GRACE)
        return found

    def _start(self) -> None:
        context, self._folder = multiprocessing.get_context("spawn"), tempfile.mkdtemp()
        for rank in range(self.size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.size, self._folder, there), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._lines.append(here)
        if None in self._answers(time.monotonic() + TIMEOUT):
            self.stop()
            raise TimeoutError(f"{self.size} processes with torch and diffusers did not start in {TIMEOUT} s")

    def stop(self) -> None:
        """End the processes; the next call starts others."""
        for process in self._processes:
            process.kill()
            process.join()
        for line in self._lines:
            line.close()
        if self._processes:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._processes, self._lines = [], []


class Remote(Exception):
    """The traceback of another process, as the cause of its error here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _serve(rank: int, size: int, folder: str, line: Connection) -> None:
    """One of the processes: answers tasks until it is killed, or nobody is at the other end any more."""
    sys.path.insert(0, str(ROOT))
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size,
                                   timeout=timedelta(seconds=60))  # fmt: skip
    import diffusers  # noqa: F401  (so that the time of a test is its own)

    line.send_bytes(pickle.dumps((None, None, "")))
    while True:
        try:
            module, name, args = pickle.loads(line.recv_bytes())
        except EOFError:
            return
        line.send_bytes(_answer(module, name, args))


def _answer(module: str, name: str, args: tuple[Any, ...]) -> bytes:
    import torch

    try:
        torch.manual_seed(0)
        answer = getattr(__import__(module, fromlist=[name]), name)(*args), None, ""
        return pickle.dumps(answer)
    except BaseException as error:
        text = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return pickle.dumps((None, error, text))


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """Two processes: ``world(function, *args)`` runs a function in both and returns what it returned, by rank."""
    made = World(2)
    yield made
    made.stop()


@pytest.fixture(scope="session")
def four() -> Iterator[World]:
    """Four of them, for tests that run with ``--all-variants`` alone."""
    made = World(4)
    yield made
    made.stop()
