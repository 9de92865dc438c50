"""Several processes of one job, over the key-value store that their launcher opened."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from vidaccel.processes.crew import Crew, Refused

SILENCE = 300.0
"""Seconds without a sign of life after which a process counts as gone."""
BEAT = 5.0
"""Seconds between signs of life."""
POLL = 0.1
"""Seconds between two looks at what others have said."""
PARTING = 300.0
"""Seconds that others wait for the main process's last words."""
OVER = "over"
Found = TypeVar("Found")


class Launched(Crew):
    """One of several processes.

    Args:
        store: of `torch.distributed`, the same for all.
        rank, size, local: as of `Crew`.
    """

    def __init__(self, store: Any, rank: int, size: int, local: int) -> None:
        self.rank, self.size, self.local = rank, size, local
        self._store, self._lock = store, threading.Lock()
        self._turns = self._shares = 0
        self._heard = {other: (0, time.monotonic()) for other in range(size) if other != rank}
        self._looked = time.monotonic()
        self._names = [f"process {other}" for other in range(size)]
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True)
        self._pulse.start()
        self._names = self.gather(self.name)

    def gather(self, value: Any, idle: Callable[[], None] | None = None) -> list[Any]:
        self._turns += 1
        keys = [f"turn/{self._turns}/{rank}" for rank in range(self.size)]
        self._set(keys[self.rank], value)
        while not self._has(*keys):
            self._listen()
            if idle is not None:
                idle()
            time.sleep(POLL)
        return [self._get(key) for key in keys]

    @contextlib.contextmanager
    def together(self, idle: Callable[[], None] | None = None) -> Iterator[None]:
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        mine = None if failed is None else {"input": isinstance(failed, ValueError), "text": str(failed)}
        said = self.gather(mine, idle)
        if all(each is None for each in said):
            return
        if failed is not None and (self.main or not isinstance(failed, ValueError)):
            raise failed
        first = next(rank for rank, each in enumerate(said) if each is not None)
        text = said[first]["text"] if first == 0 else f"{self._names[first]}: {said[first]['text']}"
        raise (Refused if said[first]["input"] else RuntimeError)(text) from failed

    def claims(self, count: int) -> Iterator[int]:
        self._shares += 1
        key = f"share/{self._shares}"
        while (number := self._add(key, 1) - 1) < count:
            yield number

    def tell(self, value: Any) -> None:
        self._set(f"told/{self.rank}", value)

    def told(self) -> list[Any]:
        keys = [f"told/{rank}" for rank in range(self.size) if rank != self.rank]
        return [self._get(key) if self._has(key) else None for key in keys]

    def follow(self) -> None:
        end = time.monotonic() + PARTING
        with contextlib.suppress(RuntimeError):
            while not self.main and time.monotonic() < end and not self._has(OVER):
                time.sleep(POLL)

    def close(self) -> None:
        """The last word of this process."""
        self._ended.set()
        self._pulse.join(BEAT)
        if self.main:
            with contextlib.suppress(RuntimeError):
                self._set(OVER, True)

    def _listen(self) -> None:
        """Look for signs of life of the others, now and then.

        Raises:
            RuntimeError: a process has gone.
        """
        now = time.monotonic()
        if now - self._looked < BEAT:
            return
        self._looked = now
        for rank, (before, when) in self._heard.items():
            count = self._add(f"beat/{rank}", 0)
            if count != before:
                self._heard[rank] = count, now
            elif now - when > SILENCE:
                raise RuntimeError(f"{self._names[rank]} has given no sign of life for {now - when:.0f} s; what is "
                                   "done is kept: run the job again")  # fmt: skip

    def _beat(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._add(f"beat/{self.rank}", 1)
            while not self._ended.wait(BEAT):
                self._add(f"beat/{self.rank}", 1)

    def _has(self, *keys: str) -> bool:
        return bool(self._ask(lambda: self._store.check(list(keys))))

    def _add(self, key: str, count: int) -> int:
        return int(self._ask(lambda: self._store.add(key, count)))

    def _set(self, key: str, value: Any) -> None:
        self._ask(lambda: self._store.set(key, json.dumps(value)))

    def _get(self, key: str) -> Any:
        return json.loads(self._ask(lambda: self._store.get(key)))

    def _ask(self, question: Callable[[], Found]) -> Found:
        """One request to the store, which two threads share."""
        try:
            with self._lock:
                return question()
        except RuntimeError as error:
            raise RuntimeError("the main process or its machine has gone; what is done is kept: run the job again"
                               ) from error  # fmt: skip
