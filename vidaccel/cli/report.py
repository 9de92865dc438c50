"""``vidaccel report``: what an eval has found, as one page, and as Markdown and CSV for papers and model cards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vidaccel.cli.output import print_json, progress_bar, reserved_stdout, staged_file
from vidaccel.cli.plan import Json

VIDEOS = 12


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of `vidaccel eval`.")],
    out: Annotated[Path | None, typer.Option(help="The page, ending in .html; FOLDER/report.html by default.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="A document to put tables and pictures into, new or with the marks for it.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the document's pictures; images beside it by default.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="A file for all rows with full precision.")] = None,
    videos: Annotated[int, typer.Option(min=0, help="Pairs of clips in the page, at most.")] = VIDEOS,
    json: Json = False,
) -> None:
    """Make the page of an eval: plots, tables, clips side by side, maps, times and provenance."""
    if out is None and len(folders) > 1:
        raise ValueError(f"a page of {len(folders)} folders needs a path of its own: --out page.html")
    if images is not None and markdown is None:
        raise ValueError("--images is of a document: give --markdown FILE as well")
    page = folders[0] / "report.html" if out is None else out
    _check_ending("--out", page, ".html")
    _check_ending("--markdown", markdown, ".md")
    _check_ending("--csv", csv, ".csv")
    with reserved_stdout():
        try:
            files = _written(folders, page, markdown, images, csv, videos)
        except OSError as error:
            raise ValueError(f"cannot write {str(error.filename)!r}: {error.strerror}") from error
    values = {"kind": "report", "page": str(page), "files": list(map(str, files)), "bytes": page.stat().st_size}
    print_json(values) if json else _show(values)


def _check_ending(flag: str, path: Path | None, ending: str) -> None:
    if path is not None and path.suffix.lower() != ending:
        raise ValueError(f"{flag} {str(path)!r} does not end in {ending}")


def _written(folders: list[Path], page: Path, markdown: Path | None, images: Path | None, csv: Path | None,
             videos: int) -> list[Path]:  # fmt: skip
    """All files, the quick ones first."""
    from vidaccel.eval.table import csv_text
    from vidaccel.report.eval_folder import read_groups
    from vidaccel.report.evaluation import write_page
    from vidaccel.report.model_card import write_markdown

    groups = read_groups(folders)
    files = [] if markdown is None else write_markdown(groups, markdown, images)
    if csv is not None:
        with staged_file(csv) as part:
            part.write_text(csv_text([row for group in groups for row in group.rows]), encoding="utf-8")
        files.append(csv)
    with progress_bar("clips") as advance, staged_file(page) as part:
        write_page(folders, part, videos=videos, progress=lambda done, of: advance("clips", done, of))
    return [page, *files]


def _show(values: dict[str, Any]) -> None:
    for path in values["files"]:
        typer.echo(path)
    typer.echo(f"the page holds everything itself: {values['bytes'] / 1e6:.1f} MB")
