"""The folder that all processes of a job share, over machines too."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from vidaccel.processes.crew import Crew

FOLDER = ".job"
SIGHT = 60.0
"""Seconds that a file of another machine may take to be seen: file systems of networks keep what they looked up."""
POLL = 0.1


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
