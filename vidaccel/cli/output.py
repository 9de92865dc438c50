"""What commands print: one JSON object or text on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import typer
from typer.core import TyperGroup

from vidaccel.processes import Crew, Refused, joined

USER_ERROR = 2
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
# Whose ValueErrors are about what the user gave: diffusers checks sizes and prompts.
_CHECKERS = ("vidaccel", "diffusers")


class Commands(TyperGroup):
    """A group whose commands turn bad input into one line on standard error and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            if not _is_about_input(error):
                raise
            say_error(joined(), error)
            raise SystemExit(USER_ERROR) from error


def say_error(crew: Crew, error: ValueError) -> None:
    """Print what was wrong with the input: what all processes of a job agree on, in the main one alone."""
    if crew.main or not isinstance(error, Refused):
        typer.echo(f"{speaker(crew)}error: {' '.join(str(error).split())}", err=True)
    crew.follow()


def speaker(crew: Crew) -> str:
    """What lines of a process begin with, where they are not the main one's."""
    return "" if crew.main else f"{crew.name}: "


@contextlib.contextmanager
def speaking(crew: Crew) -> Iterator[None]:
    """A block whose bugs and breakdowns are told with the process in which they happened."""
    try:
        yield
    except Exception as error:
        if not crew.main and not isinstance(error, Refused):
            typer.echo(f"{speaker(crew)}{type(error).__name__}: {error}", err=True)
        raise


def _is_about_input(error: ValueError) -> bool:
    """Whether the error was raised on purpose by a check, and not by a bug further down."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raiser = str(trace.tb_frame.f_globals.get("__name__", "")) if trace else ""
    return raiser.split(".")[0] in _CHECKERS


@contextlib.contextmanager
def reserved_stdout() -> Iterator[None]:
    """Send what libraries print to standard error, so that standard output holds the result alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(values: dict[str, Any]) -> None:
    """Print one strict JSON object on standard output."""
    from vidaccel.eval.record import to_json

    typer.echo(to_json(values))


class Advance(Protocol):
    """Moves a bar on: what runs, steps done, all steps and, where that is known, the seconds left of everything."""

    def __call__(self, label: str, done: int, total: int, left: float | None = None, /) -> None: ...


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Advance]:
    """A bar on standard error, of the main process alone.

    Where standard error is no terminal, a line for each change of what runs.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[left]}"))  # fmt: skip
    console = Console(stderr=True, quiet=not joined().main)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, last = bar.add_task(what, total=None, left=""), None

        def advance(label: str, done: int, total: int, left: float | None = None, /) -> None:
            nonlocal last
            if not console.is_terminal and label != last:
                line = f"{label}: step {done} of {total}" + (f", {time_left(left)}" if left is not None else "")
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            last = label
            bar.update(task, description=label, completed=done, total=total, left=time_left(left))

        yield advance


def time_left(seconds: float | None) -> str:
    """Seconds for people: "about 12 min left"; nothing where they are not known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    minutes = round(seconds / 60)
    return f"about {minutes} min left" if minutes < 120 else f"about {minutes // 60} h {minutes % 60} min left"


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into `folder` once all are complete; on an error none does.

    Raises:
        ValueError: `folder` cannot be made or written, before the block runs.
    """
    folder = folder.expanduser().absolute()
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".vidaccel-", dir=folder))
    except OSError as error:
        raise ValueError(f"cannot write into folder {str(folder)!r}: {error.strerror}") from error
    try:
        yield staging
        for file in sorted(staging.iterdir()):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for empty in made:
            with contextlib.suppress(OSError):
                empty.rmdir()


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A path to write instead of `path`, moved there once complete.

    Raises:
        ValueError: the folder of `path` cannot be written, before the block runs.
    """
    with staged_folder(path.expanduser().absolute().parent) as staging:
        yield staging / path.name


@contextlib.contextmanager
def resumable(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Work that keeps what it has done in a folder: Ctrl-C ends the command and says how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        if joined().main:
            typer.echo(f"stopped; what is done lies in {folder}, and the same command goes on from there", err=True)
        raise SystemExit(INTERRUPTED) from error
