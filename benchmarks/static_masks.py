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


def finalists(family: str, work: Path, methods: list[str]) -> None:
    """All held-out prompts, decoded."""
    evaluate(work / "finalists" / family, family, settings(methods, baselines=False))


def transfer(family: str, work: Path) -> None:
    """At the smaller trained size: a profile made there, and that of the larger one."""
    own = work / f"{family}-small.json"
    if not own.exists():
        command = ["profile", "--model", f"miniature:{family}", "--prompts", str(CALIBRATION), "--out", str(own),
                   "--target-density", "0.3", "--cost", "counted"]  # fmt: skip
        size = [f"--{name}={value}" for name, value in SMALL.items()]
        subprocess.run([sys.executable, "-m", "vidaccel.cli", *command, *size], check=True)
    methods = [{"name": "head_profile", "profile": name} for name in (str(own), f"miniature:{family}")]
    values = {**settings([]), "method": methods, "baselines": False, **SMALL}
    evaluate(work / "transfer" / family, family, values)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Of all finished cells of an eval."""
    return [json.loads(line) for line in (folder / RECORDS).read_text(encoding="utf-8").splitlines()]


def rows(folder: Path) -> dict[tuple[str, float | None], list[dict[str, Any]]]:
    """The records of an eval by label and density."""
    found: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for record in read_records(folder):
        found.setdefault((record["label"].partition("(")[0], record["requested_density"]), []).append(record)
    return found


def lines(part: str, family: str, folder: Path) -> Iterator[dict[str, Any]]:
    """A line for each row, then one for each paired comparison of the profile with another method."""
    found = rows(folder)
    for (label, density), records in found.items():
        metrics = {name: [each["metrics"].get(name) for each in records] for name in METRICS}
        means = {name: statistics.mean(values) for name, values in metrics.items() if None not in values}
        realised = [each["density"]["video_density"] for each in records if each["density"]]
        yield {"part": part, "family": family, "method": label, "density": density, "prompts": len(records), **means,
               "video_density": statistics.mean(realised) if realised else None}  # fmt: skip
    for density, other in itertools.product(DENSITIES, [*METHODS[1:], "random"]):
        for metric in METRICS:
            pair = [found.get((name, density), []) for name in ("head_profile", other)]
            if all(each and each[0]["metrics"].get(metric) is not None for each in pair):
                result = compare_rows(*pair, metric)
                yield {"part": part, "family": family, "density": density, "metric": metric, "against": other,
                       **vars(result), "verdict": result.verdict}  # fmt: skip


def report(work: Path) -> None:
    """Print and record everything that DIR holds."""
    for part, family in itertools.product(("quick", "finalists"), FAMILIES):
        folder = work / part / family
        if folder.exists():
            records = read_records(folder)
            where = {name: records[0][name] for name in ("created", "git", "device", "versions")}
            for line in lines(part, family, folder):
                print(json.dumps(line))
                append_line(RESULTS, {"benchmark": "static_masks", **line} | where)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("quick", "finalists", "transfer", "report"))
    parser.add_argument("family", choices=FAMILIES, nargs="?")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    options = parser.parse_args()
    if options.part == "report":
        report(options.work)
    elif options.family is None:
        parser.error(f"{options.part} needs a family")
    elif options.part == "finalists":
        finalists(options.family, options.work, options.methods)
    else:
        {"quick": quick, "transfer": transfer}[options.part](options.family, options.work)


if __name__ == "__main__":
    main()
