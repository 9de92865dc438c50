"""From the folder of an eval to one self-contained page: plots, tables, clips, maps, times and provenance."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vidaccel.eval.settings import DENSE
from vidaccel.files import write_text
from vidaccel.report import breakdown, clips, heatmap
from vidaccel.report.eval_folder import Group, read_groups
from vidaccel.report.eval_table import columns, lines, remarks
from vidaccel.report.html import render_page
from vidaccel.report.measures import metrics_of
from vidaccel.report.pareto import pareto_svg
from vidaccel.report.points import front_of, points
from vidaccel.report.provenance import cases, provenance, row_settings

PAGE = "report.html"
VIDEOS = 12
"""Pairs of clips that a page holds where nothing else is asked for."""
Folders = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def write_page(
    folder: Folders, out: str | os.PathLike[str] | None = None, *, videos: int = VIDEOS,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Path:
    """Write the page of an eval, whole or not at all.

    The page holds its clips, pictures, style and scripts itself and makes no request; its Content-Security-Policy
    forbids any.

    Args:
        folder: of the eval; several are shown together.
        out: the page; ``report.html`` in the folder by default.
        videos: pairs of dense and fast clips in the page, at most. They are re-encoded, at most 480 pixels a side.
        progress: hears of each pair that is encoded.

    Returns:
        The path of the page.

    Raises:
        ValueError: a folder without records, records or clips that are damaged, or several folders and no `out`.
        OSError: the page cannot be written.
    """
    folders = as_folders(folder)
    if videos < 0:
        raise ValueError(f"videos={videos} is not a number of pairs of clips of at least 0")
    if out is None and len(folders) > 1:
        raise ValueError(f"a page of {len(folders)} folders needs a path of its own: give out")
    path = folders[0] / PAGE if out is None else Path(out).expanduser()
    return write_text(path, render(read_groups(folders), folders, videos, progress))


def as_folders(folder: Folders) -> list[Path]:
    """One folder or several, as paths."""
    given = [folder] if isinstance(folder, (str, os.PathLike)) else list(folder)
    return [Path(each).expanduser() for each in given]


def render(
    groups: Sequence[Group], folders: Sequence[Path], videos: int, progress: Callable[[int, int], None]
) -> str:
    """The page's HTML."""
    records = [cell.record for group in groups for row in group.cells for cell in row]
    held = clips.gather(groups, [_rank(group) for group in groups], videos, progress)
    first = next(iter(held.pairs), None)
    names = list(dict.fromkeys(group.model for group in groups))
    return render_page(
        "evaluation.html.j2", styles=["report.css", "evaluation.css"], scripts=["player.js", "evaluation.js"],
        kind="eval", headline=f"{names[0] if len(names) == 1 else f'{len(names)} models'}: quality against speed",
        facts_line=_facts(groups, records), groups=[_group(at, group) for at, group in enumerate(groups)],
        looks=[_looks(at, group) for at, group in enumerate(groups)], first="-".join(map(str, first or (0, 0))),
        clips={"videos": held.videos, "pairs": {f"{at}-{row}": each for (at, row), each in held.pairs.items()}},
        held=held.held, there=held.there, side=clips.SIDE, inspections=_inspections(folders),
        provenance=provenance(records), prompts=cases(records), folders=[folder.resolve().name for folder in folders],
    )  # fmt: skip


def _rank(group: Group) -> list[int]:
    """The places of rows by how much they are worth a look: the front, then methods, then their baselines."""
    metrics = metrics_of(group)
    front = {point.number for point in front_of(points(group, metrics[0]))} if metrics else set()
    return sorted(range(len(group.rows)), key=lambda at: (at + 1 not in front, group.rows[at].baseline is not None, at))


def _facts(groups: Sequence[Group], records: Sequence[Any]) -> list[str]:
    devices = dict.fromkeys(str(each["device"].get("gpu") or each["device"].get("name")) for each in records)
    rows, prompts = sum(len(group.rows) for group in groups), len(cases(records))
    return [f"{len(records)} cells", f"{rows} rows", f"{prompts} prompt{'s' * (prompts > 1)}", *devices]


def _group(at: int, group: Group) -> dict[str, Any]:
    """The part of one model and setting: plots, table, times."""
    metrics = metrics_of(group)
    found = {metric: points(group, metric) for metric in metrics}
    bars = breakdown.bars(group)
    return {
        "at": at, "title": group.title, "columns": columns(group), "lines": lines(group), "remarks": remarks(group),
        "plots": [{"metric": metric.name, "heading": metric.title,
                   "svg": pareto_svg(each, metric, f"plot-{at}-{number}", group.title)}
                  for number, (metric, each) in enumerate(found.items())],
        "front": [point.text.splitlines()[:3] for point in front_of(found[metrics[0]])] if metrics else [],
        "bars": bars, "longest": max((bar.total for bar in bars), default=0), "parts": list(breakdown.PARTS.items()),
        "bar_notes": breakdown.bar_notes(group),
    }  # fmt: skip


def _looks(at: int, group: Group) -> dict[str, Any]:
    """What can be looked at more closely: each row with its map and settings."""
    rows = []
    for place, (row, cells) in enumerate(zip(group.rows, group.cells, strict=True)):
        name = f"#{place + 1} {row.label}" + (f", density {row.requested_density:g}" if row.requested_density else "")
        drawn = next((cell.record for cell in cells if cell.record.get("map")), None)
        rows.append({
            "key": f"{at}-{place}", "name": name, "settings": row_settings(cells[0].record),
            "dense": row.label == DENSE, "map": None if drawn is None else heatmap.heatmap_svg(
                drawn["map"], f"map-{at}-{place}", name),
            "told": None if drawn is None else heatmap.told(drawn["map"]),
            "case": None if drawn is None else f"{drawn['prompt']}, seed {drawn['seed']}",
        })  # fmt: skip
    return {"title": group.title, "rows": rows}


def _inspections(folders: Sequence[Path]) -> list[Markup]:
    """What `vidaccel inspect` has left beside an eval.

    Raises:
        ValueError: a file that is no inspection.
    """
    paths = [path for folder in folders for path in sorted((folder / "inspection").glob("*.json"))]
    if not paths:
        return []
    from vidaccel.report.inspection import section

    made = []
    for path in paths:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the inspection {str(path)!r}: {error}") from error
        made.append(section(values))
    return made
