"""Static masks against each other on the miniatures, as in docs/static-masks.md.

    python benchmarks/static_masks.py quick FAMILY --work DIR      # all methods, 4 held-out prompts, latents, baselines
    python benchmarks/static_masks.py finalists FAMILY --work DIR  # 16 held-out prompts, decoded: pixels and ST-LPIPS
    python benchmarks/static_masks.py transfer FAMILY --work DIR   # profiles at a resolution that is not their first
    python benchmarks/static_masks.py report --work DIR            # tables, paired bootstraps, JSON lines

Each part is a `vidaccel eval` in a folder of DIR and goes on where it was stopped. The prompts of
benchmarks/prompts/held_out.txt show combinations that no training clip shows, and none was used in a calibration.
ST-LPIPS needs ``pip install --no-deps stlpips-pytorch``. `report` appends to benchmarks/results/static_masks.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from masks import (
    DENSITIES,
    FAMILIES,
    HERE,
    PROMPTS,
    STATIC,
    Key,
    Rows,
    against,
    entry,
    evaluate,
    key_of,
    origin,
    record_rows,
    rows,
    spread,
    table,
)

from vidaccel.eval.record import append_line
from vidaccel.eval.table import RECORDS
from vidaccel.profile import Profile

CALIBRATION = HERE / "prompts" / "calibration.txt"
RESULTS = HERE / "results" / "static_masks.jsonl"
SMALL = {"height": 96, "width": 144}
BOTH, MADE_THERE, ONE = "both sizes", "made there", "one size"
PROFILES = {"profile=miniature:": BOTH, "-small.json": MADE_THERE, "-one.json": ONE}
"""Rows of the transfer part, by what the profiles' names have in common."""


def settings(methods: Iterable[str], **more: Any) -> dict[str, Any]:
    """Of an eval over all densities."""
    shared = {"density": list(DENSITIES), "prompts_file": str(PROMPTS)}
    return {"method": [entry(name) for name in methods], **shared, **more}


def quick(family: str, work: Path) -> None:
    """Every method and random blocks at every density; fewer steps at equal time beside the profile."""
    out = work / "quick" / family
    evaluate(out, family, settings(["head_profile"], quick=True, baselines=["dense", "fewer-steps"]))
    evaluate(out, family, settings([*STATIC[1:], "random"], quick=True, baselines=False))


def finalists(family: str, work: Path, densities: list[float]) -> None:
    """The profile and at each density the best other method of the quick part: all held-out prompts, decoded."""
    best = best_others(work / "quick" / family)
    others = [entry(best[density], density=density) for density in densities]
    values = {"method": [entry("head_profile"), *others], "density": densities, "baselines": False}
    evaluate(work / "finalists" / family, family, {**settings([]), **values})


def best_others(folder: Path) -> dict[float, str]:
    """By density the method, besides head_profile and random, whose latents are nearest to dense in the mean."""
    found = rows(folder)
    means = {
        key: statistics.mean(each["metrics"]["latent_snr"] for each in records)
        for key, records in found.items()
        if key[0] in STATIC[1:]
    }
    return {
        density: max((value, name) for (name, at), value in means.items() if at == density)[1] for density in DENSITIES
    }


def transfer(family: str, work: Path) -> None:
    """At the smaller trained size, 4 prompts, latents: a profile made there, the miniature's own, which was made at the
    larger one and measured at both, and that one without what was measured at the smaller."""
    own = work / f"{family}-small.json"
    if not own.exists():
        command = ["profile", "--model", f"miniature:{family}", "--prompts", str(CALIBRATION), "--out", str(own),
                   "--target-density", "0.3", "--cost", "density"]  # fmt: skip
        size = [f"--{name}={value}" for name, value in SMALL.items()]
        subprocess.run([sys.executable, "-m", "vidaccel.cli", *command, *size], check=True)
    shipped, one = f"miniature:{family}", work / f"{family}-one.json"
    dataclasses.replace(Profile.read(shipped), heads_at=()).save(one)
    methods = [{"name": "head_profile", "profile": name} for name in (str(own), shipped, str(one))]
    values = {**settings([]), "method": methods, "baselines": False, "quick": True, **SMALL}
    evaluate(work / "transfer" / family, family, values)


def row_of(record: dict[str, Any]) -> Key:
    """The row of a record; a profile that is named is labelled by where it was measured."""
    label, density = key_of(record)
    named = [words for part, words in PROFILES.items() if part in record["label"] and not record["baseline"]]
    return (named or [label])[0], density


def compared(found: Rows, first: str = "head_profile") -> Iterator[dict[str, Any]]:
    """Paired comparisons of one row with every other of its density, in every metric that both have."""
    for label, density in found:
        if label != first:
            yield from against(found, (first, density), (label, density))


def report(work: Path) -> None:
    """Record everything that DIR holds, and print it as Markdown."""
    for part, family in itertools.product(("quick", "finalists", "transfer"), FAMILIES):
        folder = work / part / family
        if not (folder / RECORDS).exists():
            continue
        found, where = rows(folder, row_of), origin(folder)
        shared = {"benchmark": "static_masks", "part": part, "family": family}
        record_rows(RESULTS, shared, found, where)
        pairs = list(compared(found, BOTH if part == "transfer" else "head_profile"))
        for pair in pairs:
            append_line(RESULTS, shared | pair | where)
        print(f"\n### {part}, {family}\n\n{table(found)}\n")
        for pair in pairs:
            sides = f"{pair['first']} minus {pair['against']}"
            print(f"- density {pair['density']}, {pair['metric']}: {sides} {spread(pair)}")


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
