"""Quality of every cache policy against the share of a run that it computes, as drawn on the pages of docs/policies.

    python benchmarks/caching_curves.py run FAMILY --work DIR    # a `vidaccel eval`, gone on with if it was stopped
    python benchmarks/caching_curves.py report --work DIR        # JSON lines

Runs of 20 steps at 96 x 144 pixels, latents, of the first prompts of benchmarks/prompts/held_out.txt. Each policy runs
at a ladder of its own setting, with what the papers give a reused step ("hold") and with what predicts it best of what
the policy takes: "fitted" to the calibration that the miniature brings along, or "taylor". Beside them stand dense runs
of as many steps as `static` computes. `report` appends to benchmarks/results/caching_curves.jsonl, means over the
prompts that all of a family's points have; benchmarks/curves.py draws it.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caching_tuning import COUNTED, SMALL, Place, counted, goes_with, key_in, key_of, share_of, swept_cache
from masks import FAMILIES, HERE, PROMPTS, evaluate, origin, read_records

from vidaccel.eval.record import append_line
from vidaccel.eval.table import RECORDS

RESULTS = HERE / "results" / "caching_curves.jsonl"
STEPS = 20
SHARES = (0.75, 0.6, 0.5, 0.4, 0.3)
LADDERS = {
    "easycache": (0.05, 0.1, 0.2, 0.4), "first_block": (0.15, 0.2, 0.3, 0.4), "rehash": (0.1, 0.15, 0.23, 0.8),
    "magcache": (0.017, 0.033, 0.063, 0.23), "block_profile": (0.25, 0.45, 0.69, 0.83),
}  # fmt: skip
"""What is swept, by policy; `COUNTED` policies are told `SHARES`."""
TEACACHE = {
    "wan": (0.6, 0.8, 1.05, 1.6), "hunyuanvideo": (0.06, 0.09, 0.12, 0.23), "cogvideox": (0.12, 0.17, 0.27, 0.43),
}  # fmt: skip
"""Its signals are of another size on each."""
FEWER = "same-compute"


def settings(place: Place) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """Policy, predictor, what it is told and the cache, of every point of every curve."""
    ladders = {"static": SHARES, "ertacache": SHARES, **LADDERS, "teacache": TEACACHE[place.family]}
    for policy, ladder in ladders.items():
        predictors = ("hold", "fitted" if goes_with(policy, "fitted") else "taylor")
        for predictor, value in itertools.product(predictors, ladder):
            make = counted if policy in COUNTED else _swept
            yield policy, predictor, value, make(policy, predictor, value, place)


def _swept(policy: str, predictor: str, value: float, place: Place) -> dict[str, Any]:
    return swept_cache(policy, predictor, value, place)


def run(place: Place, prompts: int) -> None:
    """The evals of a family: the schedules with dense runs of as many steps, then all else."""
    texts = [line for line in PROMPTS.read_text(encoding="utf-8").splitlines() if line.strip()][:prompts]
    held = [cache for policy, predictor, _, cache in settings(place) if (policy, predictor) == ("static", "hold")]
    others = [cache for policy, predictor, _, cache in settings(place) if (policy, predictor) != ("static", "hold")]
    for caches, baselines in ((held, [FEWER]), (others, False)):
        values = {"method": "dense", "quick": True, "cache": caches, "baselines": baselines, **SMALL}
        evaluate(place.folder("curves"), place.family, {"steps": STEPS, "prompt": texts, **values})


def rows(place: Place) -> Iterator[dict[str, Any]]:
    """A line for each point, in the order of the curves; dense runs of fewer steps last."""
    records = read_records(place.folder("curves"))
    by_cache: dict[str, list[dict[str, Any]]] = {}
    fewer: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        if record["baseline"]:
            fewer.setdefault(record["settings"]["num_inference_steps"], []).append(record)
        elif record["cached"]:
            by_cache.setdefault(key_in(record), []).append(record)
    wanted = [(*about, key_of(cache)) for *about, cache in settings(place)]
    prompts = set.intersection(*({each["prompt"] for each in by_cache.get(key, ())} for *_, key in wanted))
    for policy, predictor, value, key in wanted:
        about = {"policy": policy, "predictor": predictor, "value": value}
        yield {**about, "computed": share_of(_of(by_cache[key], prompts)), **_mean(_of(by_cache[key], prompts))}
    for steps, cells in sorted(fewer.items(), reverse=True):
        about = {"policy": "fewer-steps", "predictor": None, "value": steps}
        yield {**about, "computed": steps / STEPS, **_mean(_of(cells, prompts))}


def _of(cells: list[dict[str, Any]], prompts: set[str]) -> list[dict[str, Any]]:
    return [each for each in cells if each["prompt"] in prompts]


def _mean(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the latents; None where those of a prompt are identical to the full run's."""
    found = [each["metrics"]["latent_snr"] for each in cells]
    return {"prompts": len(cells), "latent_snr": None if None in found else statistics.mean(found)}


def report(work: Path) -> None:
    """Record everything that DIR holds."""
    for family in FAMILIES:
        place = Place(family, STEPS, work)
        if not (place.folder("curves") / RECORDS).exists():
            continue
        where = origin(place.folder("curves"))
        for row in rows(place):
            append_line(RESULTS, {"benchmark": "caching_curves", "family": family, "steps": STEPS, **row} | where)
            print(family, row)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "report"))
    parser.add_argument("family", choices=FAMILIES, nargs="?")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=4, choices=range(1, 5))
    options = parser.parse_args()
    if options.part == "report":
        report(options.work)
    elif options.family is None:
        parser.error("run needs a family")
    else:
        run(Place(options.family, STEPS, options.work.absolute()), options.prompts)


if __name__ == "__main__":
    main()
