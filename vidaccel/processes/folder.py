"""The folder that all processes of a job share, over machines too."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from vidaccel.processes.crew import Crew

FOLDER, LOCK = ".job", ".lock"
SIGHT = 60.0
"""Seconds that a file of another machine may take to be seen: file systems of networks keep what they looked up."""
POLL = 0.1


@contextlib.contextmanager
def held(crew: Crew, folder: Path, what: str, prepare: Callable[[], None] = lambda: None) -> Iterator[None]:
    """A block in which the processes of one job alone work in a folder, made if need be: the main one holds its lock.

    Args:
        what: is at work there, such as "eval".
        prepare: called once, by the main process, while no other one writes.

    Raises:
        ValueError: the folder cannot be written, another job is at work in it, or some process does not see it.
    """
    lock = FileLock(folder / LOCK)
    try:
        with crew.together():
            if crew.main:
                with _writing(folder):
                    _take(lock, folder, what)
                    prepare()
        check_shared(crew, folder)
        yield
    finally:
        lock.release()


def _take(lock: FileLock, folder: Path, what: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another {what} is at work in {str(folder)!r}: choose another folder") from error


def check_shared(crew: Crew, folder: Path) -> None:
    """Make sure that all processes see and can write the folder of the main one.

    Raises:
        ValueError: one of them does not, or cannot.
    """
    if crew.size == 1:
        return
    job, token = folder / FOLDER, crew.gather(uuid.uuid4().hex)[0]
    try:
        with crew.together(), _writing(folder):
            if crew.main:
                shutil.rmtree(job, ignore_errors=True)
                job.mkdir()
                (job / token).touch()
        with crew.together(), _writing(folder):
            if not appears(job / token):
                raise ValueError(f"folder {str(folder)!r} is not the main process's: processes on several machines "
                                 "need one that all of them share")  # fmt: skip
            (job / f"{token}-{crew.rank}").touch()
        with crew.together():
            gone = [rank for rank in range(crew.size) if crew.main and not appears(job / f"{token}-{rank}")]
            if gone:
                raise ValueError(f"what processes {gone} write into {str(folder)!r} is not seen by the main one")
    finally:
        if crew.main:
            shutil.rmtree(job, ignore_errors=True)


def appears(path: Path, seconds: float | None = None) -> bool:
    """Whether a path that another process made is there, or comes within `seconds`; `SIGHT` by default."""
    end = time.monotonic() + (SIGHT if seconds is None else seconds)
    while True:
        with contextlib.suppress(OSError):
            # Reading the folder makes a file system of a network look again.
            os.listdir(path.parent)
            if path.exists():
                return True
        if time.monotonic() >= end:
            return False
        time.sleep(POLL)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot write into folder {str(folder)!r}: {error.strerror}") from error
