"""Step caching, sparse attention and both on real-size transformers with random weights: whole runs, timed.

    python benchmarks/gpu/caching.py --out caching.jsonl [--case wan-14b-720p] [--minutes 8]
    python benchmarks/gpu/caching.py --tiny --out tiny.jsonl           # tiny models, also on a CPU, in seconds

Each run is a call of diffusers' own pipeline with given text embeddings, up to the final latents. Weights are random,
so that there is speed and no quality: which steps a cache leaves out is set, not found. ``static`` computes half of
the steps, evenly spread. ``easycache`` measures and waits for the device as always, under a threshold that lets it
reuse wherever it may, one step in a row at most. Where attention is sparse, the first quarter of the steps stays dense.

After a warm-up of each variant they run in turns, dense first in each round, with which the round's others are
compared. Each run is one JSON line, written at once. What is in the file already, by this revision and on this GPU, is
not run again, and what does not fit into the time is named: the next call goes on there. Exit code 1: a run failed, or
did not do what it should.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from caching_runs import TINY, VARIANTS, WARM_STEPS, Bench, Case
from caching_table import DENSE, LABEL, SPARSE, key, table

from vidaccel.bench.budget import Budget
from vidaccel.bench.shapes import named
from vidaccel.caching.cache import FEW_STEPS
from vidaccel.eval import env
from vidaccel.eval.record import append_line
from vidaccel.report.performance import read_lines

BENCHMARK = "gpu_caching"
CASES = (
    Case("wan-1.3b", "480p", 0.6, guidance=5.0, rounds=3), Case("wan-14b", "480p", 3.6),
    Case("hunyuanvideo", "480p", 3), Case("wan-14b", "720p", 13, steps=12), Case("hunyuanvideo", "720p", 10, steps=12),
    Case("wan-1.3b", "720p", 2.5),
)  # fmt: skip
"""Most important first."""
TINY_CASES = (Case("wan", TINY, 0, 12, guidance=5.0, rounds=2), Case("hunyuanvideo", TINY, 0, 12))


def problem(found: dict[str, Any], dense: dict[str, Any]) -> str | None:
    """Why a run's time does not count; None where it does."""
    if dense["finite"] and not found["finite"]:
        return "the dense run is finite and this one is not"
    if found["cache"] and len(found["cache"]["computed_steps"]) == len(found["steps_ms"]):
        return "the cache left out no step"
    if found["sparse"] and not found["sparse"]["calls"]["sparse"]:
        return "no attention was sparse"
    return None


def in_words(error: Exception) -> str:
    """In one short line."""
    return f"{type(error).__name__}: {error}"[:500]


def runs(case: Case, options: argparse.Namespace, same: dict[str, Any], done: set[Any], budget: Budget,
         left_out: list[str]) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Lines of the runs of a case that are not done and fit into the time; names of those that do not."""
    same = {**same, "model": case.model, "size": case.size, "steps": case.steps, "guidance_scale": case.guidance,
            "frames": 4 * (case.sized(options.frames).layout.frames - 1) + 1}  # fmt: skip
    todo = [[each for each in options.variant if key({**same, "variant": each, "round": number}) not in done]
            for number in range(case.rounds)]  # fmt: skip
    if not any(todo):
        return
    # A dense run is what the others are compared with, and one of them should fit, too.
    if budget.left() < 2 * case.pass_seconds * case.passes * case.steps:
        left_out.append(case.name)
        return
    try:
        bench = Bench(case, options)
        step = bench.warm_up(DENSE)
    except Exception as error:  # such as too little memory: another model may fit
        yield {**same, "variant": DENSE, "round": 0, "failed": in_words(error)}
        return
    same |= bench.about()
    took: dict[str, float] = {DENSE: step * case.steps}
    for number, variants in enumerate(todo):
        dense: dict[str, Any] | None = None
        # Compared within one process and round: where others are left, dense runs once more.
        for variant in (DENSE, *(each for each in variants if each != DENSE)) if variants else ():
            share = 1.0 if variant == SPARSE else 0.6
            if budget.left() < took.get(variant, step * (WARM_STEPS + case.steps * share)):
                left_out.append(f"{case.name}, {variant}, round {number + 1}")
                if dense is None:
                    return
                continue
            line = {**same, "variant": variant, "round": number}
            try:
                if variant not in took:
                    bench.warm_up(variant)
                found = bench.measured(variant)
                took[variant] = found["seconds"]
            except Exception as error:
                yield {**line, "failed": in_words(error)}
                if dense is None:
                    return
                continue
            dense = dense or found
            if reason := problem(found, dense):
                yield {**line, "failed": reason}
                continue
            yield {**line, **found, "dense_seconds": dense["seconds"], "speedup": dense["seconds"] / found["seconds"]}


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with what depends on others filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [case.name for case in (*CASES, *TINY_CASES)]
    parser.add_argument("--out", type=Path, default=Path("bench-caching.jsonl"), help="JSON lines; is added to")
    parser.add_argument("--minutes", type=float, default=8.0, help="end in this time")
    parser.add_argument("--case", action="append", choices=known, help="repeatable; all by default")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="beside dense; repeatable; all by default")
    parser.add_argument("--rounds", type=int, help="runs of each variant; by default the case's")
    parser.add_argument("--steps", type=int, help=f"of a run, {FEW_STEPS} or more; by default the case's")
    parser.add_argument("--guidance", type=float, help="scale of Wan's guidance; 1 is one pass in each step")
    parser.add_argument("--frames", type=int, default=81, help="of the clip")
    parser.add_argument("--method", default="radial", help="of sparse attention")
    parser.add_argument("--density", type=float, help="0.3 by default, 0.5 with --tiny")
    parser.add_argument("--seed", type=int, default=0, help="of weights and noise")
    parser.add_argument("--git", help="revision, where the source has come without its .git")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try it and not to measure")
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < FEW_STEPS:
        parser.error(f"--steps {options.steps}: caches compute all of fewer than {FEW_STEPS} steps")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("real sizes need a GPU, and torch sees none here; --tiny tries all of it without")
    options.variant = options.variant or list(VARIANTS)
    options.density = options.density or (0.5 if options.tiny else 0.3)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for and not in the file yet; the exit code."""
    options = read_options(arguments)
    given = {name: getattr(options, name) for name in ("steps", "guidance", "rounds")}
    given = {name: value for name, value in given.items() if value is not None}
    where = env.provenance()
    where["git"] = where["git"] or options.git
    same = {"benchmark": BENCHMARK, "label": LABEL, **where, "tiny": options.tiny, "method": options.method,
            "density": options.density, "seed": options.seed}  # fmt: skip
    done = {key(line) for line in (read_lines(options.out) if options.out.exists() else ())}
    budget, left_out, failed = Budget(options.minutes), [], False
    for case in named("case", {case.name: case for case in (TINY_CASES if options.tiny else CASES)}, options.case):
        for line in runs(dataclasses.replace(case, **given), options, same, done, budget, left_out):
            append_line(options.out, line)
            failed = failed or "failed" in line
            what = line.get("failed") or f"{line['seconds']:.2f} s, {line['speedup']:.2f}x"
            print(f"{case.name}, {line['variant']}, round {line['round'] + 1}: {what}", file=sys.stderr, flush=True)
        # The next model needs the room.
        gc.collect()
        torch.cuda.empty_cache()
    if options.out.exists():
        print(table(read_lines(options.out)))
    for name in left_out:
        print(f"left out for lack of time: {name}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
