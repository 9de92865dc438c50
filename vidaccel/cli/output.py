"""What commands print: one JSON object or text on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

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
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise SystemExit(USER_ERROR) from error


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


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error; call it with what runs, steps done and all steps.

    Where standard error is no terminal, a line for each change of what runs.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, last = bar.add_task(what, total=None), None

        def advance(label: str, done: int, total: int) -> None:
            nonlocal last
            if not console.is_terminal and label != last:
                console.print(f"{label}: step {done} of {total}", markup=False, highlight=False)
            last = label
            bar.update(task, description=label, completed=done, total=total)

        yield advance


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
        typer.echo(f"stopped; what is done lies in {folder}, and the same command goes on from there", err=True)
        raise SystemExit(INTERRUPTED) from error
