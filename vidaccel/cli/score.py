"""``vidaccel score``: outside judges on the clips of an eval, such as VBench's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidaccel.cli.output import print_json, progress_bar, reserved_stdout, resumable
from vidaccel.cli.plan import Json

if TYPE_CHECKING:
    from vidaccel.eval.scoring import Scored


def score(
    folder: Annotated[Path, typer.Argument(help="Of an eval, with its clips decoded.")],
    scorer: Annotated[list[str], typer.Option(help="NAME or NAME:OPTION, such as vbench:imaging_quality; repeatable.")],
    json: Json = False,
) -> None:
    """Score the clips of a finished eval, each by itself, and add the scores to its records and tables."""
    from vidaccel.eval.scoring import score_folder

    with reserved_stdout(), progress_bar("loading") as advance, resumable(folder):
        result = score_folder(folder, scorer, advance)
    print_json(result.to_dict()) if json else _show(result, scorer)
    if result.missing:
        raise typer.Exit(1)


def _show(result: Scored, names: list[str]) -> None:
    """The mean score of each row, then what is missing."""
    for row in result.rows:
        means = [f"{name} {'-' if (mean := row.metrics.get(name)) is None else f'{mean:.4f}'}" for name in names]
        density = "" if row.requested_density is None else f" at {row.requested_density:g}"
        typer.echo(f"{row.model}, {row.setting}, {row.label}{density}: {', '.join(means)} (n {row.cells})")
    typer.echo(f"{result.made} new scores, {result.kept} were there before")
    for place, reason in result.missing.items():
        typer.echo(f"missing: {place}: {reason}")
