"""``vidaccel generate --prompts``: the clips of a file of prompts, shared among the processes of a launcher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vidaccel.cli.chosen import Chosen, identity
from vidaccel.cli.loading import FPS, check_fps, dtype_and_device, identify, ready
from vidaccel.cli.output import print_json, progress_bar, resumable, speaker
from vidaccel.processes import Crew, take_device

if TYPE_CHECKING:
    from vidaccel.batch import Request, Result
    from vidaccel.session import Session

FAILED = 1
"""Exit code where a clip is missing in the end."""


@dataclass(frozen=True)
class Wanted:
    """A batch, checked as far as it can be without its model's weights."""

    load: Callable[[], tuple[Any, Session | None]]
    requests: list[Request]
    call: dict[str, Any]
    fps: float
    about: dict[str, Any]


def many(
    crew: Crew, model: str, prompts: Path, out: Path, seeds: str, setting: Chosen, call: dict[str, Any],
    fps: float | None, lossless: bool, dtype: str | None, device: str | None,
) -> Result:  # fmt: skip
    """Check everything, then make the clips that are not there."""
    from vidaccel import batch

    with crew.together():
        wanted = _wanted(crew, model, prompts, seeds, setting, call, fps, dtype, device)

    def say(text: str) -> None:
        typer.echo(speaker(crew) + text, err=True)

    with progress_bar("loading") as advance, resumable(out):
        return batch.run(wanted.load, wanted.requests, out, call=wanted.call, fps=wanted.fps, about=wanted.about,
                         ending=".mkv" if lossless else ".mp4", progress=advance, say=say, crew=crew)  # fmt: skip


def _wanted(crew: Crew, model: str, prompts: Path, seeds: str, setting: Chosen, call: dict[str, Any],
            fps: float | None, dtype: str | None, device: str | None) -> Wanted:  # fmt: skip
    from vidaccel.batch.call import IMAGES
    from vidaccel.batch.requests import read_requests, read_seeds
    from vidaccel.eval.identity import digest

    requests = read_requests(prompts, read_seeds(seeds))
    check_fps(fps)
    precision, place = dtype_and_device(dtype, take_device(crew, device))
    known = identify(model)
    enable_kwargs = setting.enable_kwargs(known)
    about = {"model": digest(known.path), "attention": identity(enable_kwargs, known), "dtype": precision}
    given = {name: str(item) if name in IMAGES and item is not None else item for name, item in call.items()}
    rate = float(fps if fps is not None else known.defaults().get("fps", FPS))
    return Wanted(lambda: ready(known, enable_kwargs, precision, place), requests, known.call(given), rate, about)


def finish(crew: Crew, result: Result, as_json: bool) -> None:
    """Say what came of a batch, in the main process.

    Raises:
        typer.Exit: a clip is missing.
    """
    if crew.main:
        print_json(result.to_dict()) if as_json else _show(result)
    crew.follow()
    if result.failed or result.untried:
        raise typer.Exit(FAILED)


def _show(result: Result) -> None:
    typer.echo(f"{result.out}: {result.done} of {result.clips} clips are done ({result.skipped} were before)")
    for name, reason in result.failed.items():
        typer.echo(f"failed: {name}: {reason}")
    if result.untried:
        typer.echo(f"not tried: {len(result.untried)} clips, as others failed one after the other")
    if result.failed or result.untried:
        typer.echo("the same command tries again what is missing")
