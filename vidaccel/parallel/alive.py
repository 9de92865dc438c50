"""A process that has gone ends those that compute a clip with it, in bounded time: they could only wait for it.

A launcher ends the processes of its own machine at once. Those of other machines wait in a collective, which NCCL gives
up after ten minutes. So a thread of every process gives signs of life in the launcher's key-value store, with what it
has to say at last, and looks at those of the others. A process that no launcher started has no such thread.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import platform
import sys
import threading
import warnings
from typing import Any

from vidaccel.processes import launch

LOOK = 2.5
"""Seconds between two signs of life, and between two looks at those of the others."""
MISSED = 16
"""Looks in a row without a sign, after which a process counts as gone: 40 s, in which this process was awake itself."""
GRACE = 8.0
"""Seconds that an error of the collectives has to end this process in its own words."""
PARTING = 5.0
"""Seconds that the last word of a process may take to be said, or to be heard."""
ALIVE, LEFT, UNFINISHED = "", "left", "its work on a clip unfinished"

_watch: Watch | None = None


def watch(inside: bool | None = None) -> None:
    """Watch over the other processes of this job from now on, until this one ends.

    Called by all of them, as soon as they are known to compute one clip: an error that only one of them sees from here
    on, such as a file that is missing on its machine, ends all with its words.

    Args:
        inside: whether more transformer calls of a clip follow, so that others would wait for this process; None leaves
            it at what it was.
    """
    global _watch
    if _watch is None and launch.is_launched():
        _watch = Watch()
        atexit.register(_watch.part)
    if _watch is not None and inside is not None:
        _watch.inside = inside


def last_words() -> str | None:
    """How another process has gone, where it had time to say or is known to be silent; waits a little for that."""
    return None if _watch is None else _watch.heard(PARTING)


class Watch:
    """The thread, and what it knows."""

    def __init__(self) -> None:
        self.inside = False
        self._process = os.getpid()
        self._store: Any = None
        self._rank = self._size = self._count = 0
        self._gone: str | None = None
        self._ended, self._heard = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="vidaccel watch", daemon=True)
        self._thread.start()

    def part(self) -> None:
        """The last word of this process: how it ended."""
        if os.getpid() != self._process:
            # A fork has this handler, too, and says nothing.
            return
        self._ended.set()
        # The thread says it, as a store that has gone may keep its callers waiting.
        self._thread.join(PARTING)

    def heard(self, seconds: float) -> str | None:
        """How another process has gone, if that is known within so many seconds."""
        self._heard.wait(seconds)
        return self._gone

    def _run(self) -> None:
        try:
            self._store, self._rank, self._size = launch.store("vidaccel/parallel")
            self._sign(ALIVE)
        except Exception as error:
            warnings.warn(f"the processes of this clip cannot watch over each other: {error}", stacklevel=1)
            return
        self._gone = self._wait()
        if self._gone is not None:
            self._heard.set()
            if not self._ended.wait(GRACE):
                _end(f"vidaccel: {self._gone}. {_name(self._rank)} can only wait for it, and ends, too.\n")
        with contextlib.suppress(RuntimeError):
            self._sign(self._last_word())

    def _wait(self) -> str | None:
        """Wait until another process has gone: which, and how; None if this one ends before."""
        missed = {rank: 0 for rank in range(self._size) if rank != self._rank}
        last: dict[int, bytes] = {}
        while not self._ended.wait(LOOK):
            try:
                self._sign(ALIVE)
                for rank in missed:
                    if rank not in last and not self._store.check([f"sign/{rank}"]):
                        continue
                    sign = self._store.get(f"sign/{rank}")
                    missed[rank] = missed[rank] + 1 if sign == last.get(rank) else 0
                    last[rank] = sign
                    name, word, *_ = json.loads(sign)
                    if (gone := self._how(name, word, missed[rank])) is not None:
                        return gone
            except RuntimeError:
                # Whoever holds the store may leave before this process once a clip is done, and not before.
                if self.inside:
                    return "the launcher or the main process, which holds the job's key-value store, has gone"
        return None

    def _how(self, name: str, word: str, missed: int) -> str | None:
        """How a process has gone; None if it has not, or has left as it should."""
        if word == LEFT or (word == UNFINISHED and not self.inside):
            return None
        if word == ALIVE:
            return f"{name} has given no sign of life for {missed * LOOK:.0f} s" if missed >= MISSED else None
        return f"{name} has ended: {word}"

    def _sign(self, word: str) -> None:
        self._count += 1
        self._store.set(f"sign/{self._rank}", json.dumps([_name(self._rank), word, self._count]))

    def _last_word(self) -> str:
        # What Python keeps of an exception that nothing caught.
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        if error is not None:
            return f"{type(error).__name__}: {error}"
        return UNFINISHED if self.inside else LEFT


def _name(rank: int) -> str:
    return f"process {rank} on {platform.node()}"


def _end(text: str) -> None:
    """End this process, whatever its other threads wait for."""
    sys.stderr.write(text)
    for stream in (sys.stdout, sys.stderr):
        # One that a waiting thread holds must not keep this process here.
        flush = threading.Thread(target=stream.flush, daemon=True)
        flush.start()
        flush.join(1)
    os._exit(1)
