"""One clip by one process and by two and four: how far the clips of the miniatures differ.

    python benchmarks/equal_clips.py [--models wan hunyuanvideo cogvideox] [--processes 2 4]

Whole clips of 20 steps at 96x144 on a CPU with gloo: dense, every kind of method, every cache policy, by Ulysses; and
what a ring can compute, by a ring and by a ring of Ulysses pairs. `error` is that of the latents, relative in L2, the
worst of all processes; `same_decisions` tells whether as many calls were sparse, dense and spared. Appends JSON lines
to benchmarks/results/equal_clips.jsonl. Seconds are not measured: processes may be more than cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.parallel import cases
from tests.parallel.world import World
from vidaccel.cli.loading import identify
from vidaccel.eval import env
from vidaccel.eval.record import append_line

RESULTS = Path(__file__).parent / "results" / "equal_clips.jsonl"
PROMPT, STEPS = "a red circle moves left", 20
SMALL, FRAMES = {"height": 96, "width": 144}, {2: 17, 4: 13}
"""Frames by the number of processes, which divides their tokens."""
BLOCK = {"block": 16}
METHODS: dict[str, dict[str, Any]] = {
    "dense": {"method": "radial", "schedule": {"dense_first_steps": 1.0}},
    "radial": {"method": "radial", **BLOCK},
    "head_profile": {"method": "head_profile"},
    "nabla": {"method": "nabla", **BLOCK},
    "adaptive": {"method": "adaptive", **BLOCK},
    "semantic": {"method": "semantic", **BLOCK},
    "permuted_blocks": {"method": "permuted_blocks", **BLOCK},
    "svg": {"method": "svg", **BLOCK},
    "mixed": {"method": "mixed", "dynamic": "semantic", "resists": 0.3},
    "semantic, centroid": {"method": "semantic", "compensation": "centroid", **BLOCK},
}
WITH_HEADS, RING = ("head_profile", "mixed"), ("dense", "radial")
FILE, FITTED = "cache-20.json", "fitted"
CACHES: dict[str, dict[str, Any]] = {
    "static": {"name": "static", "file": FILE, "computed_steps": 10},
    "teacache": {"name": "teacache", "threshold": 0.2, "coefficients": (1.0, 0.0)},
    "magcache": {"name": "magcache", "file": FILE, "threshold": 0.12},
    "easycache": {"name": "easycache", "threshold": 0.1},
    "first_block": {"name": "first_block", "threshold": 0.1},
    "ertacache": {"name": "ertacache", "file": FILE, "computed_steps": 10},
    "block_profile": {"name": "block_profile", "file": FILE},
    "rehash": {"name": "rehash", "threshold": 0.3},
}
SPLITS: dict[str, dict[str, int]] = {
    "ulysses 2": {"ulysses": 2}, "ring 2": {"ring": 2}, "ulysses 4": {"ulysses": 4}, "ring 4": {"ring": 4},
    "ring 2 x ulysses 2": {"ring": 2, "ulysses": 2},
}  # fmt: skip


def settings(name: str) -> dict[str, dict[str, Any]]:
    """What runs on a miniature, by its name in the results."""
    found = {}
    for label, given in METHODS.items():
        own = {"profile": f"miniature:{name}"} if given["method"] in WITH_HEADS else {}
        found[label] = {"min_tokens": 0, **given, **own}
    for label, given in CACHES.items():
        own = {"file": f"miniature:{name}/{FILE}"} if "file" in given else {}
        found[f"cache: {label}"] = {"method": None, "cache": {**given, **own}}
    return found | {"radial, easycache": {**found["radial"], "cache": CACHES["easycache"]}}


def run(name: str, label: str, frames: int, split: dict[str, int] | None) -> tuple[torch.Tensor, dict[str, int]]:
    """In each process: the latents of a clip, and how many calls were of each kind."""
    import vidaccel

    pipe = vidaccel.load_miniature(name)
    pipe.set_progress_bar_config(disable=True)
    session = vidaccel.enable(pipe, **settings(name)[label])
    if split:
        cases.parallelised(pipe, **split)
    call = identify(f"miniature:{name}").call({"num_inference_steps": STEPS, "num_frames": frames, **SMALL})
    latents = pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="latent", **call).frames
    if not latents.isfinite().all():
        raise SystemExit(f"the clip of {name} is not finite: nothing can be compared")
    return latents, session.summary().to_dict()["calls"]


def lines(models: list[str], processes: int) -> Iterator[dict[str, Any]]:
    """A line for each model, split and setting."""
    # By the name under which the processes find it: here this file may be the main module.
    from equal_clips import run as there

    worlds, frames = {size: World(size) for size in (1, processes)}, FRAMES[processes]
    splits = {name: each for name, each in SPLITS.items() if each.get("ring", 1) * each.get("ulysses", 1) == processes}
    try:
        for name in models:
            for label in settings(name):
                expected, calls = worlds[1](there, name, label, frames, None, timeout=1200)[0]
                for split, degrees in splits.items():
                    if "ring" in degrees and label not in RING:
                        continue
                    found = worlds[processes](there, name, label, frames, degrees, timeout=1200)
                    errors = [float((each - expected).norm() / expected.norm()) for each, _ in found]
                    yield {"benchmark": "equal_clips", "model": name, "steps": STEPS, **SMALL, "num_frames": frames,
                           "setting": label, "split": split, "processes": processes, "error": max(errors),
                           "same_on_all": all(torch.equal(each, found[0][0]) for each, _ in found),
                           "same_decisions": all(each == calls for _, each in found), "calls": calls}  # fmt: skip
    finally:
        for world in worlds.values():
            world.stop()


def main() -> None:
    """Compare every case and record it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["wan", "hunyuanvideo", "cogvideox"])
    parser.add_argument("--processes", type=int, nargs="+", choices=FRAMES, default=list(FRAMES))
    given = parser.parse_args()
    where = env.provenance()
    for processes in given.processes:
        for line in lines(given.models, processes):
            append_line(RESULTS, line | where)
            told = ("model", "split", "setting", "error", "same_on_all", "same_decisions")
            print(" ".join(str(line[name]) for name in told), flush=True)


if __name__ == "__main__":
    main()
