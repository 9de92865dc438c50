"""Static masks against each other on the miniatures, as in docs/static-masks.md.

    python benchmarks/static_masks.py quick FAMILY --work DIR      # all methods, 4 held-out prompts, latents, baselines
    python benchmarks/static_masks.py finalists FAMILY --work DIR  # 16 held-out prompts, decoded: pixels and ST-LPIPS
    python benchmarks/static_masks.py transfer FAMILY --work DIR   # a profile of one resolution at the other
    python benchmarks/static_masks.py report --work DIR            # tables, paired bootstraps, JSON lines

Each part is a `vidaccel eval` in a folder of DIR and goes on where it was stopped. The prompts of
benchmarks/prompts/held_out.txt show combinations that no training clip shows, and none was used in a calibration.
ST-LPIPS needs ``pip install --no-deps stlpips-pytorch``. `report` appends to benchmarks/results/static_masks.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from vidaccel.eval.paired import compare_rows
from vidaccel.eval.record import append_line
from vidaccel.eval.table import RECORDS

HERE = Path(__file__).parent
PROMPTS = HERE / "prompts" / "held_out.txt"
CALIBRATION = HERE / "prompts" / "calibration.txt"
RESULTS = HERE / "results" / "static_masks.jsonl"
FAMILIES = ("wan", "hunyuanvideo", "cogvideox")
METHODS = ("head_profile", "radial", "svg", "neighborhood")
DENSITIES = (0.5, 0.3, 0.2, 0.1)
BLOCK = 16
SMALL = {"height": 96, "width": 144}
METRICS = ("latent_snr", "psnr", "ssim", "st_lpips")


def settings(methods: Iterable[str], **more: Any) -> dict[str, Any]:
    """Of an eval over all densities; head_profile takes the miniature's own profile and its blocks."""
    entries = [name if name == "head_profile" else {"name": name, "block": BLOCK} for name in methods]
    return {"method": entries, "density": list(DENSITIES), "prompts_file": str(PROMPTS), **more}


def evaluate(out: Path, family: str, values: dict[str, Any]) -> None:
    """One eval, gone on with if it was stopped; failed cells are part of the result."""
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({"model": f"miniature:{family}", "out": str(out), **values}), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "vidaccel.cli", "eval", str(file)], check=False)


def quick(family: str, work: Path) -> None:
    """Every method and random blocks at every density; fewer steps at equal time beside the profile."""
    out = work / "quick" / family
    evaluate(out, family, settings(["head_profile"], quick=True, baselines=["dense", "fewer-steps"]))
    evaluate(out, family, settings([*METHODS[1:], "random"], quick=True, baselines=False))


def finalists(family: str, work: Path, densities: list[float]) -> None:
    """The profile and at each density the best other method of the quick part: all held-out prompts, decoded."""
    best = best_others(work / "quick" / family)
    others = [{"name": best[density], "block": BLOCK, "density": density} for density in densities]
    values = {"method": ["head_profile", *others], "density": densities, "baselines": False}
    evaluate(work / "finalists" / family, family, {**settings([]), **values})


def best_others(folder: Path) -> dict[float, str]:
    """By density the method, besides head_profile and random, whose latents are nearest to dense in the mean."""
    found = rows(folder)
    means = {
        key: statistics.mean(each["metrics"]["latent_snr"] for each in records)
        for key, records in found.items()
        if key[0] in METHODS[1:]
    }
    return {
        density: max((value, name) for (name, at), value in means.items() if at == density)[1] for density in DENSITIES
    }


def transfer(family: str, work: Path) -> None:
    """At the smaller trained size, 4 prompts, latents: a profile made there, and that of the larger one."""
    own = work / f"{family}-small.json"
    if not own.exists():
        command = ["profile", "--model", f"miniature:{family}", "--prompts", str(CALIBRATION), "--out", str(own),
                   "--target-density", "0.3", "--cost", "density"]  # fmt: skip
        size = [f"--{name}={value}" for name, value in SMALL.items()]
        subprocess.run([sys.executable, "-m", "vidaccel.cli", *command, *size], check=True)
    methods = [{"name": "head_profile", "profile": name} for name in (str(own), f"miniature:{family}")]
    values = {**settings([]), "method": methods, "baselines": False, "quick": True, **SMALL}
    evaluate(work / "transfer" / family, family, values)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Of all finished cells of an eval."""
    return [json.loads(line) for line in (folder / RECORDS).read_text(encoding="utf-8").splitlines()]


def rows(folder: Path) -> dict[tuple[str, float | None], list[dict[str, Any]]]:
    """The records of an eval by label and density; a baseline is labelled as such, a profile of another size too."""
    found: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for record in read_records(folder):
        label = record["label"].partition("(")[0]
        if record["baseline"]:
            label = record["baseline"]["kind"]
        elif "-small.json" in record["label"]:
            label = "made there"
        found.setdefault((label, record["requested_density"]), []).append(record)
    return found


def means(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the cells of a row, of what they have."""
    metrics = {name: [each["metrics"].get(name) for each in records] for name in METRICS}
    realised = [each["density"]["video_density"] for each in records if each["density"]]
    found = {name: statistics.mean(values) for name, values in metrics.items() if values and None not in values}
    return {"prompts": len(records), **found, "video_density": statistics.mean(realised) if realised else None}


def compared(
    found: dict[tuple[str, float | None], list[dict[str, Any]]], first: str = "head_profile"
) -> Iterator[dict[str, Any]]:
    """Paired comparisons of one row with every other of its density, in every metric that both have."""
    for (label, density), records in found.items():
        if label == first or (first, density) not in found:
            continue
        for metric in METRICS:
            pair = (found[first, density], records)
            if len(records) > 1 and all(each["metrics"].get(metric) is not None for part in pair for each in part):
                result = compare_rows(*pair, metric)
                yield {"density": density, "metric": metric, "first": first, "against": label, **vars(result),
                       "verdict": result.verdict}  # fmt: skip


def report(work: Path) -> None:
    """Record everything that DIR holds, and print it as Markdown."""
    for part, family in itertools.product(("quick", "finalists", "transfer"), FAMILIES):
        folder = work / part / family
        if not (folder / RECORDS).exists():
            continue
        found, records = rows(folder), read_records(folder)
        where = {name: records[0][name] for name in ("created", "git", "device", "versions")}
        shared = {"benchmark": "static_masks", "part": part, "family": family}
        for (label, density), cells in found.items():
            append_line(RESULTS, {**shared, "method": label, "density": density, **means(cells)} | where)
        pairs = list(compared(found))
        for pair in pairs:
            append_line(RESULTS, shared | pair | where)
        print(f"\n### {part}, {family}\n\n{table(found)}\n")
        for pair in pairs:
            print(f"- density {pair['density']}, {pair['metric']}: head_profile minus {pair['against']} "
                  f"{pair['mean']:+.3f} ({pair['low']:+.3f} to {pair['high']:+.3f}), {pair['verdict']}")  # fmt: skip


def table(found: dict[tuple[str, float | None], list[dict[str, Any]]]) -> str:
    """A Markdown table: a line for each method, a column for each density, with the realised one where it differs."""
    labels = dict.fromkeys(label for label, density in found if density is not None)
    shown = [name for name in METRICS if any(name in means(cells) for cells in found.values())]
    lines = [f"| {' | '.join(['method', *(f'{density:g}' for density in DENSITIES)])} |", "|---" * 5 + "|"]
    for label in labels:
        cells = [_cell(found.get((label, density)), density, shown) for density in DENSITIES]
        lines.append(f"| {' | '.join([label, *cells])} |")
    return "\n".join([f"({', '.join(shown)})", "", *lines])


def _cell(records: list[dict[str, Any]] | None, density: float, shown: list[str]) -> str:
    if not records:
        return "-"
    values = means(records)
    text = " / ".join(f"{values[name]:.3f}" if name in ("ssim", "st_lpips") else f"{values[name]:.1f}"
                      for name in shown if name in values)  # fmt: skip
    realised = values["video_density"]
    return text + (f" ({realised:.2f})" if realised is not None and abs(realised - density) > 0.015 else "")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("quick", "finalists", "transfer", "report"))
    parser.add_argument("family", choices=FAMILIES, nargs="?")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--density", type=float, nargs="+", default=list(DENSITIES), help="of the finalists")
    options = parser.parse_args()
    if options.part == "report":
        report(options.work)
    elif options.family is None:
        parser.error(f"{options.part} needs a family")
    elif options.part == "finalists":
        finalists(options.family, options.work, options.density)
    else:
        {"quick": quick, "transfer": transfer}[options.part](options.family, options.work)


if __name__ == "__main__":
    main()
