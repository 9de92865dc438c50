"""The table of an eval: one row per model, setting, method, density and cache, averaged over prompts and seeds."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidaccel.eval.caches import NONE
from vidaccel.eval.metrics import metric_names
from vidaccel.eval.record import to_json
from vidaccel.eval.runner import LATENT
from vidaccel.files import write_text

SHOWN_METRICS = ("psnr", "ssim", "lpips", "st_lpips", "flicker", "latent_error")
"""Metrics with a column in the table for people; the CSV has all."""
RECORDS, MARKDOWN, CSV = "records.jsonl", "table.md", "table.csv"
HEADINGS = {"model": "model", "setting": "setting", "label": "method", "requested_density": "density",
            "video_density": "realised", "all_calls": "all calls", "computed_share": "computed", "cells": "n",
            "steps": "steps", "psnr": "PSNR dB", "ssim": "SSIM", "lpips": "LPIPS", "st_lpips": "ST-LPIPS",
            "flicker": "flicker", "latent_error": "latent error", "speedup": "speed"}  # fmt: skip
"""Columns of the table for people, and what stands above them."""
PATTERNS = {"computed_share": "{:.3f}", "psnr": "{:.2f}", "speedup": "{:.2f}x", "steps": "{:.4g}"}
NOTES = {
    "psnr": "PSNR leaves out clips identical to their reference: theirs is infinite.",
    "computed_share": "computed is the share of the blocks' calls that ran, of all guidance passes.",
    "video_density": "realised is the share of video-video pairs in the sparse calls; n is the number of cells; "
                     "speed is of whole generations.",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row: means over `cells` cells.

    Args:
        row: hash of what its cells share.
        model, setting, label, requested_density, cache, baseline: what its cells share, for people; `baseline` is the
            kind of baseline or None.
        cells: how many there are.
        identical: how many of them are equal to their dense reference bit by bit.
        video_density, all_calls: means; None for dense runs.
        computed_share: mean share of the calls of blocks that ran; None without a cache.
        speedup: mean of the cells' speedups.
        steps: mean number of denoising steps.
        metrics: mean of each metric over the cells that have it; None where none has.
        counts: how many cells have each metric.
        reasons: why a metric is missing, for each that some cell lacks.
        versions: of the packages that the cells ran on.
    """

    row: str
    model: str
    setting: str
    label: str
    requested_density: float | None
    cache: str
    baseline: str | None
    cells: int
    identical: int
    video_density: float | None
    all_calls: float | None
    speedup: float | None
    steps: float
    metrics: dict[str, float | None]
    counts: dict[str, int]
    reasons: dict[str, list[str]]
    versions: dict[str, str | None]
    computed_share: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-ready values."""
        return dataclasses.asdict(self)

    def texts(self) -> dict[str, str]:
        """The row for people, by the names of `HEADINGS`."""
        values = {name: getattr(self, name) for name in HEADINGS if name not in SHOWN_METRICS}
        texts = {name: _text(name, item) for name, item in values.items()}
        if self.video_density is None:
            texts |= {"video_density": "1", "all_calls": "1"}
        names = [*HEADINGS, *(name for name in self.metrics if name not in metric_names())]
        return {name: texts.get(name) or self._metric(name) for name in names}

    def _metric(self, name: str) -> str:
        value, count = self.metrics.get(name), self.counts.get(name, 0)
        if value is None:
            return "inf" if self.identical == self.cells and name == "psnr" else "-"
        return _text(name, value) + (f" ({count} of {self.cells})" if count < self.cells else "")


def rows_of(records: Iterable[dict[str, Any]]) -> list[Row]:
    """The rows over records of cells: by model and setting, dense first, each method followed by its baselines."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["row"], []).append(record)
    return [_row(group) for group in sorted(groups.values(), key=lambda group: _order(group[0]))]


def write_tables(out: Path, records: Sequence[dict[str, Any]], rows: Sequence[Row]) -> None:
    """Write records.jsonl, table.md and table.csv, each whole or not at all."""
    write_text(out / RECORDS, "".join(to_json(record) + "\n" for record in records))
    write_text(out / MARKDOWN, markdown(rows))
    write_text(out / CSV, csv_text(rows))


def shown(rows: Sequence[Row]) -> list[str]:
    """The columns worth showing: no metric that no cell has, nor what was computed where there is no cache."""
    empty = {name for name in SHOWN_METRICS if not any(_has(row, name) for row in rows)}
    if all(row.cache == NONE for row in rows):
        empty.add("computed_share")
    return [name for name in HEADINGS if name not in empty]


def scored(rows: Iterable[Row]) -> list[str]:
    """Names of the outside judges whose scores some row has, each a column of its own behind the others."""
    return list(dict.fromkeys(name for row in rows for name in row.metrics if name not in metric_names()))


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader of the table needs to know: how its columns are meant, and why metrics are missing."""
    leaves_out = any(row.identical and row.counts.get("psnr") for row in rows)
    lines = [NOTES["video_density"]] + [NOTES["psnr"]] * leaves_out
    lines += [NOTES["computed_share"]] * any(row.cache != NONE for row in rows)
    missing: dict[str, set[str]] = {}
    for name, reason in ((name, reason) for row in rows for name, every in row.reasons.items() for reason in every):
        if name in HEADINGS and "identical" not in reason:
            missing.setdefault(reason, set()).add(name)
    lines += [f"{', '.join(HEADINGS[name] for name in HEADINGS if name in names)}: {reason}"
              for reason, names in sorted(missing.items())]  # fmt: skip
    different = [row for row in rows if row.label == "dense" and row.identical < row.cells]
    return lines + [f"dense repeated is not the same clip in {row.cells - row.identical} of {row.cells} cells of "
                    f"{row.model}: this setting is not deterministic" for row in different]  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown, notes below."""
    columns = [*shown(rows), *scored(rows)]
    lines = [[HEADINGS.get(name, name) for name in columns], ["---"] * len(columns)]
    lines += [[row.texts().get(name, "-").replace("|", "\\|") for name in columns] for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([table, "", *(f"- {note}" for note in notes(rows)), ""])


def csv_text(rows: Sequence[Row]) -> str:
    """The table as CSV: full precision, one column for each number."""
    nested = ("metrics", "counts", "reasons", "versions")
    plain = [item.name for item in dataclasses.fields(Row) if item.name not in nested]
    packages = ("vidaccel", "torch", "diffusers")
    names, text = [*metric_names(), *scored(rows)], io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*plain, *names, *(f"{name}_cells" for name in names), *packages])
    for row in rows:
        writer.writerow([*(getattr(row, name) for name in plain), *(row.metrics.get(name) for name in names),
                         *(row.counts.get(name, 0) for name in names),
                         *(row.versions.get(name) for name in packages)])  # fmt: skip
    return text.getvalue()


def _row(group: Sequence[dict[str, Any]]) -> Row:
    first = group[0]
    # Records that were made before there were scores do not have them.
    judges = dict.fromkeys(name for each in group for name in each.get("scores") or ())
    values = {name: [each["metrics"].get(name) for each in group] for name in (*metric_names(), *judges)}
    reasons = {name: {each["metrics"].get(f"{name}_reason") for each in group} - {None} for name in values}
    return Row(
        first["row"], first["model"]["name"], _setting(first), first["label"], first["requested_density"],
        first["cache"], first["baseline"] and first["baseline"]["kind"], len(group),
        sum(each["metrics"]["identical"] for each in group),
        _mean(each["density"] and each["density"]["video_density"] for each in group),
        _mean(each["density"] and each["density"]["all_calls"] for each in group),
        _mean(each["timing"]["speedup"] for each in group),
        float(statistics.mean(each["settings"]["num_inference_steps"] for each in group)),
        {name: _mean(each) for name, each in values.items()},
        {name: sum(item is not None for item in each) for name, each in values.items()},
        {name: sorted(each) for name, each in reasons.items() if each}, dict(first["versions"]),
        # Records that were made before there were caches do not have one.
        _mean(each["cached"] and each["cached"]["blocks_share"] for each in group if "cached" in each),
    )  # fmt: skip


def _setting(record: dict[str, Any]) -> str:
    """Size and steps; a baseline of fewer steps is listed with its method, whose steps it was given."""
    settings, baseline = record["settings"], record["baseline"]
    steps = baseline["of_steps"] if baseline else settings["num_inference_steps"]
    size = f"{settings['width']}x{settings['height']}x{settings['num_frames']}"
    return f"{size}, {steps} steps" + (", latents" if settings["output"] == LATENT else "")


def _order(record: dict[str, Any]) -> tuple[Any, ...]:
    baseline = record["baseline"]
    label = baseline["label"] if baseline else record["label"]
    density = record["requested_density"]
    return (record["model"]["name"], _setting(record), label != "dense", label, density is None, density or 0,
            baseline is not None, record["label"], record["row"])  # fmt: skip


def _has(row: Row, name: str) -> bool:
    return row.counts.get(name, 0) > 0 or (name == "psnr" and row.identical > 0 and row.setting[-7:] != LATENT + "s")


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.mean(found) if found else None


def _text(name: str, item: Any) -> str:
    if item is None:
        return "-"
    if isinstance(item, float):
        return f"{item:g}" if name == "requested_density" else PATTERNS.get(name, "{:.4f}").format(item)
    return str(item)
