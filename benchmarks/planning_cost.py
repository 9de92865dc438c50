"""What choosing costs beside attending, by method: ``python benchmarks/planning_cost.py``; see docs/dynamic-masks.md.

Counted at the shapes of real models, where a method plans on tensors without contents: floating-point operations of
its products as a share of dense attention's, and the bytes that its operations read and write at most. Measured on the
CPU for one head of CogVideoX-5b's grid (``--measure``, a quiet machine): milliseconds of a plan and of dense attention.
Methods have their defaults for Wan and a new plan in every step. Appends JSON lines to
benchmarks/results/planning_cost.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from vidaccel.bench.planning_cost import chosen, counted, timed
from vidaccel.bench.shapes import Shape
from vidaccel.eval import env
from vidaccel.eval.record import append_line
from vidaccel.layout import TokenLayout
from vidaccel.methods import METHODS, Method

RESULTS = Path(__file__).parent / "results" / "planning_cost.jsonl"
SHAPES = (
    Shape("wan-14b-480p", TokenLayout(21, 30, 52), 40, 128),
    Shape("wan-14b-720p", TokenLayout(21, 45, 80), 40, 128),
)
MEASURED = Shape("cogvideox-5b-one-head", TokenLayout(13, 30, 45), 1, 64)
READS = ("svg", "neighborhood", "meansim")
"""Methods of which the references read contents, so that they are counted on the CPU, one head of random numbers."""


def cases() -> dict[str, Method]:
    """Every method that plans while a model runs, and `semantic` as it plans beside the compensation."""
    made = {name: METHODS[name].for_family("wan", **_every_step(name)) for name in chosen()}
    return {**made, "semantic+centroid": made["semantic"].compensated("centroid")}


def _every_step(name: str) -> dict[str, Any]:
    fields = {item.name for item in dataclasses.fields(METHODS[name])}  # type: ignore[arg-type]
    return {"refresh": 1} if "refresh" in fields else {}


def count(name: str, method: Method, shape: Shape) -> dict[str, Any]:
    """A line of counts."""
    found = counted(method, shape, "cpu" if name in READS else "meta")
    return {"benchmark": "planning_cost", "part": "counted", "method": name, "shape": shape.name,
            "tokens": shape.tokens, "heads": shape.heads, "share_of_dense": found.share,
            "gigabytes_moved": found.moved / 1e9, "tflop": found.flop / 1e12}  # fmt: skip


def measure(name: str, method: Method) -> dict[str, Any]:
    """A line of times."""
    return {"benchmark": "planning_cost", "part": "measured", "method": name, "shape": MEASURED.name,
            "tokens": MEASURED.tokens, "heads": MEASURED.heads, **timed(method, MEASURED)}  # fmt: skip


def main() -> None:
    """Count, or measure, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    where = env.provenance()
    for name, method in cases().items():
        lines = [measure(name, method)] if options.measure else [count(name, method, shape) for shape in SHAPES]
        for line in lines:
            append_line(RESULTS, line | where)
            more = f"{line['plan_ms']:.0f} ms" if options.measure else f"{line['gigabytes_moved']:.1f} GB"
            print(f"{line['shape']} {name}: {line['share_of_dense']:.4f} of dense, {more}", flush=True)


if __name__ == "__main__":
    main()
