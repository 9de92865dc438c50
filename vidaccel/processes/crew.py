"""What processes of one job need of each other; here, of one that is alone."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


class Refused(ValueError):
    """What all processes have agreed to end with, and the main one says."""


class Crew:
    """The processes of a job; this one alone where there was no launcher.

    Args:
        rank: of this process, from 0; 0 is the main one.
        size: how many there are.
        local: rank among those of its machine.
    """

    rank, size, local = 0, 1, 0

    @property
    def main(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """Of this process, for people."""
        return f"process {self.rank} on {platform.node()}"

    def gather(self, value: Any, idle: Callable[[], None] | None = None) -> list[Any]:
        """Everyone's value, by rank; all processes call it at the same place.

        Args:
            value: of this process, made of what JSON has.
            idle: called again and again while others are waited for.

        Raises:
            RuntimeError: a process has gone.
        """
        return [value]

    @contextlib.contextmanager
    def together(self, idle: Callable[[], None] | None = None) -> Iterator[None]:
        """A block that all processes run: where one fails all do, with its words.

        Args:
            idle: called again and again while others are waited for.

        Raises:
            Exception: what the block raised here.
            ValueError: one was raised in another process.
            RuntimeError: another error was raised there, or a process has gone.
        """
        yield

    def claims(self, count: int) -> Iterator[int]:
        """Numbers below `count` for this process, in order: each goes to one process, the next to whichever asks."""
        yield from range(count)

    def tell(self, value: Any) -> None:
        """Publish a value of JSON for `told`; the last one counts."""

    def told(self) -> list[Any]:
        """What each other process told last, by rank; None for those that have not yet."""
        return []

    def follow(self) -> None:
        """Let the main process have the last word: launchers end all processes as soon as one fails."""


def check_agreed(crew: Crew, about: Mapping[str, Any], what: str) -> None:
    """Make sure that all processes are to do the very same.

    Args:
        about: what must be the same in all, of what JSON has.
        what: a process would do where it is not, such as "run another eval".

    Raises:
        ValueError: they differ, with all that they differ in.
    """
    everyone = crew.gather(dict(about))
    for rank, each in enumerate(everyone):
        differ = [f"{name} ({each.get(name)!r}, not {item!r})" for name, item in everyone[0].items()
                  if each.get(name) != item]  # fmt: skip
        if differ:
            raise Refused(f"process {rank} would {what} than the main one: of other {', '.join(differ)}")


def share(crew: Crew, pieces: Sequence[int], do: Callable[[int], None], idle: Callable[[], None] | None = None) -> None:
    """Have each of some pieces of work done by one process; when it returns, all of them are done.

    Args:
        pieces: numbers, the same in all processes.
        do: does one.
        idle: called again and again while others are waited for.

    Raises:
        Exception: what `do` raised here. Others go on with what there is before they fail, too: see `Crew.together`.
    """
    with crew.together(idle):
        for turn in crew.claims(len(pieces)):
            do(pieces[turn])
