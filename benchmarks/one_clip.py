"""One clip by one process and by two: seconds of its denoising, and how far the clips differ.

    python benchmarks/one_clip.py [--models wan hunyuanvideo cogvideox] [--steps 20]

A miniature's whole denoising on a CPU with gloo, a thread for each process: dense, sparse (the shipped profile at
density 0.3), cached (`easycache`) and both, split by Ulysses and, where a pipeline calls its transformer once for each
guidance pass, with guidance on two groups. It wants a free core for each process. Appends JSON lines to
benchmarks/results/one_clip.jsonl; clips that differ by more than rounding are an error.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
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

RESULTS = Path(__file__).parent / "results" / "one_clip.jsonl"
PROMPT = "a red circle moves left"
SPARSE = {"density": 0.3, "min_tokens": 0}
SETTINGS: dict[str, dict[str, Any]] = {
    # Dense calls by our exchange, as a split model needs them.
    "dense": {"method": "radial", "schedule": {"dense_first_steps": 1.0}},
    "sparse": {"method": "head_profile", **SPARSE},
    "cache": {"method": None, "cache": "easycache"},
    "both": {"method": "head_profile", "cache": "easycache", **SPARSE},
}
WAYS = {1: ("alone",), 2: ("ulysses", "guidance")}
REPEATS = 3
HEIGHT = 192
"""Pixels: at the miniatures' own 208 the tokens do not divide by two."""
TOLERANCE = 1e-4
"""Of a whole clip, relative: rounding of 1e-7 a call grows over steps."""


def run(name: str, way: str, steps: int) -> dict[str, tuple[float, torch.Tensor]]:
    """In each process: of every setting the median seconds of a clip, after a first one, and its latents."""
    import vidaccel

    found = {}
    for label, setting in SETTINGS.items():
        pipe = vidaccel.load_miniature(name)
        pipe.set_progress_bar_config(disable=True)
        profile = {"profile": f"miniature:{name}"} if setting["method"] == "head_profile" else {}
        vidaccel.enable(pipe, **setting, **profile)
        if way == "ulysses":
            cases.parallelised(pipe, ulysses=2)
        elif way == "guidance":
            vidaccel.guidance_parallel(pipe)
        found[label] = timed(pipe, identify(f"miniature:{name}").call({"num_inference_steps": steps, "height": HEIGHT}))
    return found


def timed(pipe: Any, call: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """Seconds of a clip's denoising, text included, and the clip."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        latents = pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="latent", **call).frames
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]), latents


def lines(models: list[str], steps: int) -> Iterator[dict[str, Any]]:
    """A line for each model, way and setting."""
    # By the name under which the processes find it: here this file may be the main module.
    from one_clip import run as there

    alone: dict[str, dict[str, tuple[float, torch.Tensor]]] = {}
    for processes, ways in WAYS.items():
        world = World(processes)
        try:
            for name in models:
                for way in ways:
                    if way == "guidance" and name != "wan":
                        continue
                    found = world(there, name, way, steps, timeout=3600)[0]
                    alone.setdefault(name, found)
                    yield from (_line(name, way, steps, label, found[label], alone[name]) for label in SETTINGS)
        finally:
            world.stop()


def _line(name: str, way: str, steps: int, label: str, found: tuple[float, torch.Tensor],
          alone: dict[str, tuple[float, torch.Tensor]]) -> dict[str, Any]:  # fmt: skip
    seconds, latents = found
    expected = alone[label][1]
    error = float((latents - expected).norm() / expected.norm())
    return {
        "benchmark": "one_clip", "model": name, "steps": steps, "height": HEIGHT, "way": way, "setting": label,
        "seconds": seconds, "speedup_of_processes": alone[label][0] / seconds,
        "speedup": alone["dense"][0] / seconds, "error": error,
    }  # fmt: skip


def main() -> None:
    """Measure every case and record it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["wan", "hunyuanvideo", "cogvideox"])
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    where = env.provenance() | {"load": os.getloadavg()[0], "repeats": REPEATS}
    for line in lines(given.models, given.steps):
        append_line(RESULTS, line | where)
        print({name: line[name] for name in ("model", "way", "setting", "seconds", "speedup_of_processes", "error")})
        if line["error"] > TOLERANCE:
            raise SystemExit(f"{line['model']} {line['way']} {line['setting']}: clips differ by {line['error']:.1e}")


if __name__ == "__main__":
    main()
