"""Results of `vidaccel bench kernels` as Markdown tables and a picture of speed over density."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from vidaccel.report.marks import BEGIN, END, put, split
from vidaccel.report.performance_tables import SECTIONS, Line

PICTURE = "performance.png"
SMOKE = "**Smoke test**: tiny shapes that only show that everything runs. The times mean nothing."
GOALS = "Goals: efficiency of at least 0.90, 1.30x over FlexAttention, planning under 5 % of dense attention."


def read_lines(path: Path) -> list[Line]:
    """The results in a file of JSON lines, or the one of a record (``.json``) of `vidaccel bench model`.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}") from error
    if path.suffix == ".json":
        record = _parsed(text, str(path))
        if record.get("kind") != "bench":
            raise ValueError(f"{str(path)!r} is no record of `vidaccel bench model`")
        return [{"benchmark": "pipeline", **record}]
    lines = [_parsed(line, f"line {number} of {path}") for number, line in enumerate(text.splitlines(), 1)]
    for number, line in enumerate(lines, 1):
        if "benchmark" not in line:
            raise ValueError(f"line {number} of {str(path)!r} is no result of a benchmark")
    return lines


def _parsed(text: str, where: str) -> Line:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not a JSON object")
    return value


def tables(lines: Sequence[Line]) -> str:
    """All results as Markdown, in sections; the newest of equal ones counts."""
    sections: list[str] = []
    for place in dict.fromkeys(_place(line) for line in lines):
        here = [line for line in lines if _place(line) == place]
        kernels = [line for line in here if line["benchmark"] == "kernels"]
        sections += [f"### {place}", _versions(here[-1])]
        sections += [SMOKE if kernels[-1]["smoke"] else GOALS] if kernels else []
        for title, make in SECTIONS.items():
            table = make(here)
            if table:
                sections += [f"#### {title}", table]
    return "\n\n".join(sections)


def write_results(lines: Sequence[Line], out: str | os.PathLike[str]) -> list[Path]:
    """Put the tables, and a picture where there is something to draw, into a document that has the marks.

    Returns:
        The files written: the document, and the picture in the folder ``images`` beside it.

    Raises:
        ValueError: no results, or a document without the two marks.
    """
    out = Path(out)
    if not lines:
        raise ValueError("there are no results to render")
    around = split(out, f"# Performance\n\n{BEGIN}\n{END}\n")
    picture, parts, written = plot(lines), [tables(lines)], []
    if picture is not None:
        folder = out.parent / "images"
        folder.mkdir(exist_ok=True)
        (folder / PICTURE).write_bytes(picture)
        written.append(folder / PICTURE)
        parts.insert(0, f"![Speed-up over dense attention by density](images/{PICTURE})")
    put(out, around, "\n\n".join(parts))
    return [out, *written]


def plot(lines: Sequence[Line]) -> bytes | None:
    """Speed-up over dense attention by density, one field per shape, as a PNG; None without measured real shapes."""
    points = [line for line in lines if line.get("case") == "attention" and "speedup" in line and not line.get("smoke")]
    shapes = list(dict.fromkeys(line["shape"] for line in points))
    if not shapes:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(shapes), 3.4), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, shape in zip(figure.subplots(1, len(shapes), squeeze=False)[0], shapes, strict=True):
        axes.set(xscale="log", yscale="log", title=shape, xlabel="density", ylabel="speed-up over dense")
        axes.plot([0.05, 1], [20, 1], color="#9aa5b1", linewidth=1, linestyle=":", label="1 / density")
        for (name, kind), own in _grouped(points, shape).items():
            style = "-" if name == "vidaccel" else "--"
            axes.plot(*zip(*sorted(own), strict=True), style, marker="o", markersize=3, label=f"{name}, {kind}")
        axes.legend(fontsize=6)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _grouped(points: Iterable[Line], shape: str) -> dict[tuple[str, str], list[tuple[float, float]]]:
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for line in points:
        if line["shape"] == shape:
            found.setdefault((line["implementation"], line["plan"]), []).append((line["density"], line["speedup"]))
    return found


def _place(line: Line) -> str:
    device = line.get("device") or {}
    return str(device.get("gpu") or f"{device.get('name', 'unknown CPU')}, {device.get('threads', '?')} threads")


def _versions(line: Line) -> str:
    versions = line.get("versions") or {}
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "diffusers") if versions.get(name))
    revision = str(line.get("git") or "unknown")
    dirty = "-dirty" if revision.endswith("-dirty") else ""
    return f"{named}; git {revision[:12]}{dirty}; {str(line.get('created'))[:10]}; seed {line.get('seed')}"
