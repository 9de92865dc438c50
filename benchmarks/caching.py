"""Policies of step caching against each other and against fewer steps, on the miniatures, as in docs/caching.md.

    python benchmarks/caching.py tune FAMILY --steps N --work DIR       # settings that compute 2/3 and 1/2 of a run
    python benchmarks/caching.py quick FAMILY --steps N --work DIR      # these, 4 held-out prompts, latents
    python benchmarks/caching.py finalists FAMILY --steps N --work DIR  # `FINALISTS`: 16 held-out prompts, decoded
    python benchmarks/caching.py report --work DIR                      # tables, paired bootstraps, JSON lines

Settings are found on prompts of their own, benchmarks/prompts/calibration.txt, by bisection, each with the predictor
"hold": each round is a `vidaccel eval` of all that is not found yet. They go into DIR/tuned/FAMILY-N.json. What needs a
calibration goes by the one that the miniature brings along, of the first four of these prompts. Tuned and quick runs
are of 96 x 144 pixels, finalists of the model's own size, or with ``--small`` of that, too. All parts go on where they
were stopped. ``--policy``, ``--predictor`` and ``--target`` limit what is tuned, where what was found before stays, and
what the others run. What a policy computes is counted in calls of blocks, of both guidance passes. `report` appends to
benchmarks/results/caching.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caching_tuning import (
    CALIBRATION,
    COUNTED,
    HALF,
    PREDICTORS,
    SMALL,
    SWEPT,
    TARGETS,
    Only,
    Place,
    counted,
    key_in,
    key_of,
    share_of,
    tune,
    value_of,
)
from masks import FAMILIES, HERE, METRICS, PROMPTS, Key, Rows, against, entry, means, origin, read_records, spread

from vidaccel.eval.record import append_line
from vidaccel.eval.table import RECORDS

RESULTS = HERE / "results" / "caching.jsonl"
PARTS = ("quick", "finalists", "finalists-small")
"""Folders of what is reported."""
FINALISTS = ("static/fitted", "easycache/taylor")
"""The best in trials on the prompts for tuning, and the best of those without a calibration, which a sparse run can
have, too; in full beside evenly spread steps and their own baselines."""
SPARSE = entry("head_profile", density=0.3)
BASELINES = ("same-compute", "own-timesteps")


def under_sparse(place: Place) -> dict[str, Any]:
    """The steps and predictor of a calibration under `SPARSE`, at half the work."""
    return {**counted("static", "fitted", HALF, place), "file": str(place.under_sparse)}


def calibrate_under_sparse(place: Place) -> None:
    """As the miniatures' own calibrations were made, but of sparse runs."""
    prompts = place.work / "sparse" / "prompts.txt"
    texts = [line for line in CALIBRATION.read_text(encoding="utf-8").splitlines() if line.strip()][:4]
    prompts.parent.mkdir(parents=True, exist_ok=True)
    prompts.write_text("\n".join(texts) + "\n", encoding="utf-8")
    method = ["--method", SPARSE["name"], "--density", str(SPARSE["density"])]
    subprocess.run([sys.executable, "-m", "vidaccel.cli", "calibrate-cache", "--model", f"miniature:{place.family}",
                    "--prompts", str(prompts), "--steps", str(place.steps), *method, "--out",
                    str(place.under_sparse)], check=True)  # fmt: skip


def quick(place: Place, only: Only) -> None:
    """Every policy and predictor at its tuned settings; the baselines are those of evenly spread steps that hold."""
    for even in (True, False):
        caches = [each["cache"] for each in place.found()
                  if only.has(each) and ((each["policy"], each["predictor"]) == ("even", "hold")) is even]  # fmt: skip
        values = {"method": "dense", "quick": True, "baselines": list(BASELINES) if even else False, **SMALL}
        if caches:
            # One value may be the nearest to both targets.
            once = list({key_of(each): each for each in caches}.values())
            place.evaluate("quick", {**values, "cache": once}, PROMPTS)


def finalists(place: Place, only: Only, part: str) -> None:
    """`FINALISTS` at half the work, with their baselines; then sparse runs, without a cache, with the one that needs no
    calibration and with a calibration of their own."""
    size = SMALL if part == PARTS[-1] else {}
    caches = {f"{each['policy']}/{each['predictor']}": each["cache"] for each in place.found()
              if each["target"] == HALF and only.has(each)}  # fmt: skip
    chosen = [caches[label] for label in FINALISTS if label in caches]
    place.evaluate(part, {"method": "dense", "cache": chosen, "baselines": list(BASELINES), **size}, PROMPTS)
    if "even/hold" in caches:
        even = {"method": "dense", "cache": caches["even/hold"], "baselines": False}
        place.evaluate(part, {**even, **size}, PROMPTS)
    if (free := FINALISTS[1]) in caches:
        both = {"method": ["dense", SPARSE], "cache": ["none", caches[free]], "baselines": False}
        place.evaluate(part, {**both, **size}, PROMPTS)
        if not place.under_sparse.exists():
            calibrate_under_sparse(place)
        both = {"method": SPARSE, "cache": under_sparse(place), "baselines": False}
        place.evaluate(part, {**both, **size}, PROMPTS)


def rows(place: Place, part: str) -> Rows:
    """The records of an eval by row: what they are and which share they were meant to compute."""
    known = {key_of(each["cache"]): (f"{each['policy']}/{each['predictor']}", each["target"])
             for each in place.found()}  # fmt: skip
    if place.under_sparse.exists():
        known[key_of(under_sparse(place))] = FINALISTS[0], HALF
    records = read_records(place.folder(part))
    by_cell = {record["cell"]: record for record in records}
    found: Rows = {}
    for record in records:
        if (key := _row(record, by_cell, known)) is not None:
            found.setdefault(key, []).append(record)
    return found


def _row(record: dict[str, Any], by_cell: dict[str, Any], known: dict[str, Key]) -> Key | None:
    """Label and target; None for what was tuned otherwise since."""
    if record["baseline"]:
        of = _row(by_cell[record["baseline"]["of"]], by_cell, known)
        return None if of is None else (f"{record['baseline']['kind']} for {of[0]}", of[1])
    method = record["method"]["name"]
    if not record["cached"]:
        return method, None
    key = known.get(key_in(record))
    return key if key is None or method == "dense" else (f"{method} and {key[0]}", key[1])


def comparisons(found: Rows) -> Iterator[dict[str, Any]]:
    """Paired differences: each policy against its baselines and against steps spread evenly; predictors against
    holding; what sparse attention and the cache do together against each of them."""
    for label, target in found:
        first = (label, target)
        if " for " in label or target is None:
            continue
        others = [*((f"{kind} for {label}", target) for kind in BASELINES), ("even/hold", target),
                  (f"{label.partition('/')[0]}/hold", target)]  # fmt: skip
        if " and " in label:
            method, _, cache = label.partition(" and ")
            others = [(method, None), (cache, target)]
        for second in others:
            if second != first:
                yield from against(found, first, second)


def table(found: Rows) -> str:
    """A Markdown table: a line for each row, the share that it computes, steps, and means of the metrics."""
    shown = [name for name in METRICS if any(name in means(cells) for cells in found.values())]
    heads = ["", "target", "computed", "steps", "n", "denoising, s", *shown]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (label, target), cells in sorted(found.items(), key=lambda item: (item[0][1] or 1, item[0][0])):
        values = means(cells)
        steps = statistics.mean(each["settings"]["num_inference_steps"] for each in cells)
        share = "-" if cells[0]["cached"] is None else f"{share_of(cells):.3f}"
        texts = [f"{values[name]:.3f}" if name in values else "-" for name in shown]
        words = [label, "-" if target is None else f"{target:.3f}", share, f"{steps:g}", str(len(cells)),
                 f"{seconds(cells):.2f}", *texts]  # fmt: skip
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def seconds(cells: list[dict[str, Any]]) -> float:
    """Median time of a run's denoising."""
    return statistics.median((each["timing"]["denoising"] or each["timing"])["fast_median"] for each in cells)


def report(work: Path) -> None:
    """Record everything that DIR holds, and print it as Markdown."""
    for part, family in itertools.product(PARTS, FAMILIES):
        for folder in sorted((work / part).glob(f"{family}-*/")):
            if not (folder / RECORDS).exists():
                continue
            place = Place(family, int(folder.name.rpartition("-")[2]), work)
            found, where = rows(place, part), origin(folder)
            shared = {"benchmark": "caching", "part": part, "family": family, "steps": place.steps}
            for (label, target), cells in found.items():
                share = None if cells[0]["cached"] is None else share_of(cells)
                about = {"row": label, "target": target, "computed": share, "value": value_of(cells[0]),
                         "denoising_seconds": seconds(cells)}  # fmt: skip
                append_line(RESULTS, {**shared, **about, **means(cells)} | where)
            print(f"\n### {part}, {family}, {place.steps} steps\n\n{table(found)}\n")
            for pair in comparisons(found):
                pair["target"] = pair.pop("density")
                append_line(RESULTS, shared | pair | where)
                print(f"- {pair['first']} minus {pair['against']} at {pair['target']:.3f}, {pair['metric']}: "
                      f"{spread(pair)}")  # fmt: skip


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("tune", "quick", "finalists", "report"))
    parser.add_argument("family", choices=FAMILIES, nargs="?")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--policy", nargs="+", choices=(*SWEPT, *COUNTED), default=[*SWEPT, *COUNTED])
    parser.add_argument("--predictor", nargs="+", choices=PREDICTORS, default=list(PREDICTORS))
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--small", action="store_true", help="finalists of 96 x 144 pixels")
    parser.add_argument("--prompts", type=int, default=4, choices=range(1, 5), help="to tune on")
    options = parser.parse_args()
    if options.part == "report":
        report(options.work)
        return
    if options.family is None:
        parser.error(f"{options.part} needs a family")
    place = Place(options.family, options.steps, options.work.absolute())
    only = Only(options.policy, options.predictor, [TARGETS[name] for name in options.target])
    if options.part == "tune":
        tune(place, only, options.prompts)
    elif options.part == "quick":
        quick(place, only)
    else:
        finalists(place, only, PARTS[2 if options.small else 1])


if __name__ == "__main__":
    main()
