"""The tuner against settings by hand, at equal measured time, on a miniature and prompts that it has not seen.

    python benchmarks/tuner.py FAMILY --work DIR              # tune, measure, report
    python benchmarks/tuner.py FAMILY --work DIR --only report

First `vidaccel tune` on benchmarks/prompts/calibration.txt, with the miniature's own calibrations, for `--budget`. Then
an eval on the first `--prompts` of benchmarks/prompts/held_out.txt of the profile's points and of what a person would
set: every method, every cache policy at several settings, and both together, with dense runs of fewer steps beside.
Prompt by prompt, and in groups that share a dense time, so that what is compared ran within minutes. Both go on where
they were stopped. A row's time is the median over prompts of its denoising over that of dense. For each row by hand the
report looks for the best point that takes no longer (up to `SAME`), and gives the paired difference with its 95 %
interval; and once more for the best that computes no more transformer calls, which no noise of a clock touches.
Appends to benchmarks/results/tuner.jsonl; published.py makes pages of the same evals.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from caching_tuning import NEED_FILE, SWEPT, WHOLE
from masks import BLOCK, FAMILIES, HERE, METRICS, PROMPTS, origin, read_records, spread

from vidaccel import stored_cache
from vidaccel.cli.eval import source_of
from vidaccel.cli.loading import identify
from vidaccel.eval import bench
from vidaccel.eval.cells import plan_cells
from vidaccel.eval.paired import compare_rows
from vidaccel.eval.record import append_line
from vidaccel.eval.settings import FEWER_STEPS, Settings
from vidaccel.eval.sources import Source
from vidaccel.eval.table import RECORDS
from vidaccel.methods import METHODS
from vidaccel.miniature import miniature_path
from vidaccel.profile import Profile
from vidaccel.tune.candidate import words

RESULTS = HERE / "results" / "tuner.jsonl"
TUNING = HERE / "prompts" / "calibration.txt"
SAME = 0.02
"""Relative difference of two times up to which they are equal."""
TUNED, HAND, EARLIER, NONE = "tuned", "by hand", "tuned before", "no point is as fast"
OWN = "dense.json"
"""A calibration that the tuner's profile holds."""
Rows = dict[str, tuple[str, str, list[dict[str, Any]]]]
DENSITIES = (0.3,)
"""Of all methods: docs/static-masks.md and docs/dynamic-masks.md have the others."""
WITH_HEADS = ("head_profile", "mixed")
BASELINES = ("oracle", "random")
"""Methods that are no settings."""
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
VALUES = {"easycache": (0.05, 0.1, 0.2, 0.4), "magcache": (0.06, 0.12, 0.24), "rehash": (0.1, 0.3),
          "teacache": (0.15, 0.5), "first_block": (0.1, 0.3), "block_profile": (0.8,)}  # fmt: skip
"""Of what `SWEPT` says of a policy."""
METRIC = "psnr"
Group = tuple[list[Any], list[Any], str | None]
"""Entries of the method axis and of the cache axis, which are crossed, and a precision."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where DIR has what of a family."""

    family: str
    steps: int
    work: Path

    @property
    def profile(self) -> Path:
        return self.work / f"{self.family}-{self.steps}.json"

    @property
    def out(self) -> Path:
        return self.work / "eval" / f"{self.family}-{self.steps}"

    @property
    def calibration(self) -> str | None:
        """The miniature's own of step caches for so many steps."""
        name = f"cache-{self.steps}.json"
        there = (miniature_path(self.family) / name).is_file()
        return f"miniature:{self.family}/{name}" if there else None

    def source(self) -> Source:
        """The miniature, loaded once for all evals."""
        made = source_of(identify(f"miniature:{self.family}"), "float32", "cpu")
        return dataclasses.replace(made, load=functools.cache(made.load), identify=functools.cache(made.identify))


def tune(place: Place, budget: str, target: str) -> None:
    """The tuner, which goes on where it was stopped; what it ends with is a result whether the target is met or not."""
    if place.profile.exists():
        return
    place.work.mkdir(parents=True, exist_ok=True)
    kept = place.work / f"{place.profile.name}.work"
    options = {"--model": f"miniature:{place.family}", "--prompts": TUNING, "--target": target, "--budget": budget,
               "--steps": place.steps, "--work": kept, "--out": place.profile}  # fmt: skip
    words = [str(each) for pair in options.items() for each in pair]
    subprocess.run([sys.executable, "-m", "vidaccel.cli", "tune", *words], check=False)
    if not place.profile.exists():
        raise SystemExit("the tuner wrote no profile")


def caches_by_hand(place: Place) -> list[dict[str, Any]]:
    """Cache policies as a person would set them; without a calibration, those that need none."""
    short = {} if place.steps >= 12 else {"min_steps": 1}
    own = {"file": place.calibration}
    swept = [{**SWEPT[name][0], SWEPT[name][1]: value, **short} for name, values in VALUES.items() for value in values]
    if place.calibration is None:
        return [each for each in swept if each["name"] not in NEED_FILE]
    counts = sorted({max(2, round(share * place.steps)) for share in SHARES})
    made = [{"name": "static", "computed_steps": count, **own, **short} for count in counts]
    made += [{"name": "ertacache", "computed_steps": count, **own, **short} for count in counts[1::2]]
    for each in swept:
        predictor = {"predictor": {"name": "fitted", **own}} if each["name"] in WHOLE else {}
        made.append({**each, **predictor, **(own if each["name"] in NEED_FILE else {})})
    return made


def methods_by_hand(place: Place) -> list[dict[str, Any]]:
    """Every method at its densities; head_profile and mixed take the miniature's own profile and its blocks."""
    found = []
    for name, cls in METHODS.items():
        fields = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if name not in BASELINES and "density" in fields:
            own = {"profile": f"miniature:{place.family}"} if name in WITH_HEADS else {"block": BLOCK}
            own = {key: value for key, value in own.items() if key in fields}
            found += [{"name": name, "density": density, **own} for density in DENSITIES]
    return found


def both_by_hand(place: Place) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The best sparse attention with caches that need no calibration of dense runs."""
    half = sorted({round(at * (place.steps - 1) / (place.steps // 2)) for at in range(place.steps // 2 + 1)})
    short = {} if place.steps >= 12 else {"min_steps": 1}
    caches = [{"name": "easycache", "threshold": 0.1, **short}, {"name": "static", "compute": half, **short}]
    profile = f"miniature:{place.family}"
    return [{"name": "head_profile", "density": density, "profile": profile} for density in (0.5, 0.3)], caches


def tuned(place: Place) -> Iterator[Group]:
    """The points of the profile, each on its own."""
    profile = Profile.load(place.profile)
    folder = place.work / "calibrations" / place.profile.stem
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in profile.calibrations.items():
        each.save(folder / f"{name}.json")
    for point in profile.points:
        settings = point.settings
        method: Any = settings["method"]
        if method != "dense":
            heads = {"profile": str(place.profile)} if method in WITH_HEADS else {}
            schedule = {"schedule": settings["schedule"]} if settings["schedule"] else {}
            method = {"name": method, **settings["options"], **heads, **schedule}
        yield [method], [_with_files(settings["cache"], folder)], settings["precision"]


def _with_files(cache: Any, folder: Path) -> Any:
    """A cache of a profile whose calibrations lie in a folder."""
    if cache is None:
        return "none"
    paths = {name: str(folder / f"{name}.json") for name in stored_cache.files_of(cache) if ":" not in name}
    return stored_cache.resolved(cache, paths)  # type: ignore[arg-type]


def groups(place: Place) -> list[Group]:
    """All that is measured."""
    points = list(tuned(place))
    alone = [cache for method, (cache,), precision in points if method == ["dense"] and precision is None]
    by_hand = [([*methods_by_hand(place)], ["none"], None), (*both_by_hand(place), None)]
    others = [each for each in points if each[0] != ["dense"] or each[2] is not None]
    caches = [*alone, *(each for each in caches_by_hand(place) if each not in alone)]
    static = [cache for cache in caches if cache["name"] == "static"]
    rest = [cache for cache in caches if cache not in static]
    return [(["dense"], static, None), (["dense"], rest, None), *others, *reversed(by_hand)]


def settings_of(place: Place, group: Group, prompts: list[str]) -> Settings:
    """A group as an eval on some prompts; with dense runs of fewer steps where the schedule is known beforehand."""
    methods, caches, precision = group
    fewer = methods == ["dense"] and all(cache["name"] == "static" for cache in caches)
    return Settings.of({"method": methods, "cache": caches, "precision": precision, "prompt": prompts,
                        "steps": place.steps, "baselines": [FEWER_STEPS] if fewer else False})  # fmt: skip


def measure(place: Place, prompts: list[str]) -> None:
    """All groups, prompt by prompt, so that those that are stopped early have rows that can be compared.

    Methods without a cache run last: at the miniatures' sizes a CPU gains no time by them, and docs have their quality
    on sixteen prompts.
    """
    source, (*cached, methods) = place.source(), groups(place)
    for prompt, group in [*itertools.product(prompts, cached), *((prompt, methods) for prompt in prompts)]:
        bench.run(source, place.out, settings_of(place, group, [prompt]), say=print)


def rows(place: Place, prompts: list[str]) -> Rows:
    """By the hash of a row: `TUNED`, `HAND` or `EARLIER`, a label, and its records."""
    source, points = place.source(), Profile.load(place.profile).points
    own = {}
    for point, group in zip(points, tuned(place), strict=True):
        cell, *_ = plan_cells([source], settings_of(place, group, prompts[:1]))
        own[cell.row] = words(dict(point.settings))
    found: Rows = {}
    for record in read_records(place.out) if (place.out / RECORDS).exists() else []:
        if record["prompt"] in prompts and not record["baseline"] and record["metrics"].get(METRIC) is not None:
            density = "" if record["requested_density"] is None else f" {record['requested_density']:g}"
            label = record["label"] + density
            # A shorter tuning into the same folder left points that the profile has no more.
            kind = (TUNED, own[record["row"]]) if record["row"] in own else (EARLIER if OWN in label else HAND, label)
            found.setdefault(record["row"], (*kind, []))[2].append(record)
    return {row: each for row, each in found.items() if len(each[2]) >= 2}


def time_of(records: list[dict[str, Any]]) -> float:
    """Median over clips of denoising, over that of dense."""
    return 1 / statistics.median((each["timing"]["denoising"] or each["timing"])["speedup"] for each in records)


def work_of(records: list[dict[str, Any]]) -> float:
    """Computed transformer calls over those of dense runs, where attention is dense; unlike seconds without noise."""
    cached = [each["cached"] for each in records if each["method"] is None or each["method"]["name"] == "dense"]
    return statistics.mean(each["computed_share"] for each in cached) if cached and all(cached) else math.inf


def compared(found: Rows, cost: Callable[[list[dict[str, Any]]], float] = time_of) -> Iterator[dict[str, Any]]:
    """For each row by hand that costs less than dense: the best point that costs no more, and the paired difference."""
    points = [(label, records) for kind, label, records in found.values() if kind == TUNED]
    for kind, label, records in found.values():
        own = cost(records)
        if kind != HAND or own >= 1 - SAME:
            continue
        line = {"row": label, "speedup": 1 / time_of(records), METRIC: mean(records), "verdict": NONE}
        rivals = [each for each in points if cost(each[1]) <= own * (1 + SAME)]
        if rivals:
            best, best_records = max(rivals, key=lambda each: mean(each[1]))
            result = compare_rows(best_records, records, METRIC)
            line |= {"point": best, "point_speedup": 1 / time_of(best_records), **vars(result)}
            line["verdict"] = result.verdict
        yield line


def mean(records: list[dict[str, Any]]) -> float:
    """Of the metric by which rows are compared."""
    return statistics.mean(each["metrics"][METRIC] for each in records)


def report(place: Place, prompts: list[str]) -> None:
    """Print tables and record them."""
    found = rows(place, prompts)
    if not found:
        raise SystemExit(f"{place.out} has no two records of a row: measure first")
    shared = {"benchmark": "tuner", "family": place.family, "steps": place.steps, "prompts": len(prompts)}
    where = origin(place.out)
    print(f"\n### {place.family}, {place.steps} steps, {len(prompts)} held-out prompts\n")
    print("| | row | n | speedup | PSNR |\n|---|---|---|---|---|")
    for kind, label, records in sorted(found.values(), key=lambda each: -time_of(each[2])):
        print(f"| {kind} | {label} | {len(records)} | {1 / time_of(records):.2f}x | {mean(records):.2f} dB |")
        metrics = {name: statistics.mean(values) for name in METRICS
                   if None not in (values := [each["metrics"].get(name) for each in records])}  # fmt: skip
        append_line(RESULTS, {**shared, "part": "row", "kind": kind, "row": label, "speedup": 1 / time_of(records),
                              "clips": len(records), **metrics, **where})  # fmt: skip
    for part, cost in (("equal time", time_of), ("equal work", work_of)):
        lines = sorted(compared(found, cost), key=lambda each: -each["speedup"])
        print(f"\nAt {part}, the best point minus each row by hand that costs less than dense:\n")
        for line in lines:
            append_line(RESULTS, {**shared, "part": part, "metric": METRIC, **line, **where})
            told = f"{spread(line)} dB by {line['point']}" if "point" in line else line["verdict"]
            print(f"- {line['row']} ({line['speedup']:.2f}x, {line[METRIC]:.2f} dB): {told}")
        counts = {verdict: sum(line["verdict"] == verdict for line in lines) for verdict in
                  ("higher", "tied", "lower", NONE)}  # fmt: skip
        print(f"\n{part}: {json.dumps(counts)}")


def main() -> None:
    """Tune, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=4, choices=range(2, 17))
    parser.add_argument("--budget", default="35m")
    parser.add_argument("--target", default="speedup>=2")
    parser.add_argument("--only", choices=("tune", "measure", "report"))
    options = parser.parse_args()
    place = Place(options.family, options.steps, options.work.absolute())
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()[: options.prompts]
    if options.only in (None, "tune"):
        tune(place, options.budget, options.target)
    if options.only in (None, "measure"):
        measure(place, prompts)
    if options.only in (None, "report"):
        report(place, prompts)


if __name__ == "__main__":
    main()
