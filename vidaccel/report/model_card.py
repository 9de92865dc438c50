"""An eval as Markdown for papers and model cards: tables, small pictures of quality against speed, provenance."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from vidaccel.files import write_bytes
from vidaccel.report.eval_folder import Group
from vidaccel.report.eval_table import columns, lines, remarks
from vidaccel.report.marks import BEGIN, END, put, split
from vidaccel.report.measures import metrics_of
from vidaccel.report.pareto import pareto_png
from vidaccel.report.points import front_of, points
from vidaccel.report.provenance import cases, provenance

TOLD = {"Run": ("created", "vidaccel", "git", "seed"), "Device": ("name", "threads", "gpu"),
        "Versions": ("torch", "diffusers")}  # fmt: skip
"""What of the provenance the foot of a document says."""


def write_markdown(
    groups: Sequence[Group], out: str | os.PathLike[str], images: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Write tables and pictures of an eval into a document, each file whole or not at all.

    Args:
        out: the document. One that exists needs the marks ``<!-- results: begin -->`` and ``<!-- results: end -->``:
            what stands between them is replaced, and all else stays.
        images: folder of the pictures, made if need be; ``images`` beside the document by default.

    Returns:
        The files written.

    Raises:
        ValueError: a document without the marks; nothing is written then.
        OSError: a file or folder cannot be written.
    """
    out = Path(out).expanduser()
    folder = out.parent / "images" if images is None else Path(images).expanduser()
    around = split(out, f"# Quality against speed\n\n{BEGIN}\n{END}\n")
    parts, written = [], []
    for name, group in zip(_names(groups), groups, strict=True):
        parts.append(f"## {_plain(group.title)}")
        metrics = metrics_of(group)
        if metrics:
            found = points(group, metrics[0])
            folder.mkdir(parents=True, exist_ok=True)
            written.append(write_bytes(folder / f"pareto-{name}.png", pareto_png(found, metrics[0], group.title)))
            link = Path(os.path.relpath(written[-1], out.parent)).as_posix().replace(" ", "%20")
            best = ", ".join(str(point.number) for point in front_of(found) if point.number) or "dense alone"
            said = f"{metrics[0].heading} against speed of {group.title}; on the front: {best}"
            parts.append(f"![{_plain(said)}]({link})")
        parts += [table(group), "\n".join(f"- {_plain(each)}" for each in remarks(group))]
    return [put(out, around, "\n\n".join([*parts, _foot(groups)])), *written]


def table(group: Group) -> str:
    """The table of one model and setting, dense first; arrows say which way is better."""
    heads = columns(group)
    rows = [["#", "method", *(f"{heading} {arrow}".strip() for heading, arrow in heads)],
            ["---:", "---", *("---:" for _ in heads)]]  # fmt: skip
    for line in lines(group):
        label = f"{'↳ ' * bool(line.baseline)}{line.baseline or line.label}{' ★' * line.front}"
        rows.append([str(line.number or ""), label, *line.texts])
    return "\n".join(f"| {' | '.join(_plain(cell) if at else cell for cell in row)} |" for at, row in enumerate(rows))


def _foot(groups: Sequence[Group]) -> str:
    """Where and with what all of it was measured."""
    records = [cell.record for group in groups for row in group.cells for cell in row]
    facts = [f"{name} {value}" for title, items in provenance(records) for name, value in items
             if name in TOLD.get(title, ()) and value != "none"]  # fmt: skip
    prompts = len(cases(records))
    return (f"<sub>{len(records)} generations over {prompts} prompt{'s' * (prompts > 1)}, each compared with the dense "
            f"clip of the same prompt and noise. {_plain('; '.join(facts))}. Made by `vidaccel report`.</sub>")


def _names(groups: Sequence[Group]) -> list[str]:
    """A word for each group's files: of the model, with a number where models have several settings."""
    words = [re.sub(r"[^a-z0-9]+", "-", group.model.lower()).strip("-") or "model" for group in groups]
    seen: dict[str, int] = {}
    made = []
    for word in words:
        seen[word] = seen.get(word, 0) + 1
        made.append(word if words.count(word) == 1 else f"{word}-{seen[word]}")
    return made


def _plain(text: str) -> str:
    """Text that means nothing else in Markdown, in a cell of a table too."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)
