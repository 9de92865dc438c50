"""What static_masks.py and dynamic_masks.py share: their settings, evals in folders, rows, paired tests, tables."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from vidaccel.eval.paired import compare_rows
from vidaccel.eval.record import append_line
from vidaccel.eval.table import RECORDS

HERE = Path(__file__).parent
PROMPTS = HERE / "prompts" / "held_out.txt"
FAMILIES = ("wan", "hunyuanvideo", "cogvideox")
DENSITIES = (0.5, 0.3, 0.2, 0.1)
BLOCK = 16
METRICS = ("latent_snr", "psnr", "ssim", "st_lpips")
NEAR = 0.015
"""A realised density that differs by more is shown."""
STATIC = ("head_profile", "radial", "svg", "neighborhood")
Key = tuple[str, float | None]
"""A row's label and requested density."""
Rows = dict[Key, list[dict[str, Any]]]
"""The cells' records of each row."""


def entry(name: str, **more: Any) -> dict[str, Any]:
    """Of the method axis; head_profile takes the miniature's own profile and its blocks."""
    return {"name": name, **({} if name == "head_profile" else {"block": BLOCK}), **more}


def evaluate(out: Path, family: str, values: dict[str, Any]) -> None:
    """One eval, gone on with if it was stopped; failed cells are part of the result."""
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({"model": f"miniature:{family}", "out": str(out), **values}), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "vidaccel.cli", "eval", str(file)], check=False)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Of all finished cells of an eval."""
    return [json.loads(line) for line in (folder / RECORDS).read_text(encoding="utf-8").splitlines()]


def label_of(record: dict[str, Any]) -> str:
    """The method, with ``+compensation`` where it has one; a baseline is labelled as such."""
    if record["baseline"]:
        return str(record["baseline"]["kind"])
    made_up = record.get("compensation")  # which records made before there was any do not have
    name = str(record["label"]).partition("(")[0].partition("+")[0]
    return f"{name}+{made_up['name']}" if made_up else name


def key_of(record: dict[str, Any]) -> Key:
    """The row of a record."""
    return label_of(record), record["requested_density"]


def rows(folder: Path, key: Callable[[dict[str, Any]], Key] = key_of) -> Rows:
    """The records of an eval by row."""
    found: Rows = {}
    for record in read_records(folder):
        found.setdefault(key(record), []).append(record)
    return found


def means(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the cells of a row, of what they have; older records do not say what was computed."""
    metrics = {name: [each["metrics"].get(name) for each in records] for name in METRICS}
    realised = [each["density"]["video_density"] for each in records if each["density"]]
    found = {name: statistics.mean(values) for name, values in metrics.items() if values and None not in values}
    if realised and all("compensation" in each for each in records):
        found["computed_density"] = statistics.mean(each["density"]["computed_density"] for each in records)
    return {"prompts": len(records), **found, "video_density": statistics.mean(realised) if realised else None}


def against(found: Rows, first: Key, second: Key) -> Iterator[dict[str, Any]]:
    """Paired comparisons of two rows in every metric that all cells of both have; none where a row is missing."""
    pair = found.get(first, []), found.get(second, [])
    if any(len(part) < 2 for part in pair):
        return
    for metric in METRICS:
        if all(each["metrics"].get(metric) is not None for part in pair for each in part):
            result = compare_rows(*pair, metric)
            yield {"density": first[1], "metric": metric, "first": first[0], "against": second[0], **vars(result),
                   "verdict": result.verdict}  # fmt: skip


def spread(pair: dict[str, Any]) -> str:
    """The mean of a paired comparison, its interval and its verdict."""
    return f"{pair['mean']:+.3f} ({pair['low']:+.3f} to {pair['high']:+.3f}), {pair['verdict']}"


def origin(folder: Path) -> dict[str, Any]:
    """When, where and with which versions an eval was made."""
    first = read_records(folder)[0]
    return {name: first[name] for name in ("created", "git", "device", "versions")}


def record_rows(results: Path, shared: dict[str, Any], found: Rows, where: dict[str, Any]) -> None:
    """Append a line of means for each row."""
    for (label, density), cells in found.items():
        append_line(results, {**shared, "method": label, "density": density, **means(cells)} | where)


def table(found: Rows, computed: bool = False) -> str:
    """A Markdown table: a line for each method, a column for each density, with the realised one where it differs.

    With `computed` there is a second line with the share of all pairs that was computed, under each method that is
    compensated, as extra keys count, and where it is more than what was attended to, as cut tiles count whole.
    """
    labels = dict.fromkeys(label for label, density in found if density is not None)
    shown = [name for name in METRICS if any(name in means(cells) for cells in found.values())]
    lines = [f"| {' | '.join(['method', *(f'{density:g}' for density in DENSITIES)])} |", "|---" * 5 + "|"]
    for label in labels:
        cells = [_cell(found.get((label, density)), density, shown) for density in DENSITIES]
        lines.append(f"| {' | '.join([label, *cells])} |")
        shares = [_computed(found.get((label, density), [])) for density in DENSITIES]
        if computed and any(shares):
            lines.append(f"| {' | '.join(['computed', *(share or '-' for share in shares)])} |")
    return "\n".join([f"({', '.join(shown)})", "", *lines])


def _cell(records: list[dict[str, Any]] | None, density: float, shown: list[str]) -> str:
    if not records:
        return "-"
    values = means(records)
    text = " / ".join(f"{values[name]:.3f}" if name in ("ssim", "st_lpips") else f"{values[name]:.1f}"
                      for name in shown if name in values)  # fmt: skip
    realised = values["video_density"]
    return text + (f" ({realised:.2f})" if realised is not None and abs(realised - density) > NEAR else "")


def _computed(records: list[dict[str, Any]]) -> str:
    """What was computed; empty where that is what was attended to, text included."""
    share = means(records).get("computed_density")
    if share is None:
        return ""
    attended = statistics.mean(each["density"]["density"] for each in records)
    return f"{share:.2f}" if share - attended > NEAR or any(each["compensation"] for each in records) else ""
