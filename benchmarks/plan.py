"""Time and memory of building radial plans at the sizes of real models: ``python benchmarks/plan.py``.

Each grid runs in a process of its own, so that its peak of resident memory is its own. Appends JSON lines to
benchmarks/results/plan.jsonl.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "plan.jsonl"
CASES = (
    ("wan", "21x30x52", 0, {}),
    ("wan", "21x45x80", 0, {}),
    ("wan", "21x45x80", 0, {"density": 0.25}),
    ("hunyuanvideo", "33x45x80", 256, {}),
    ("hunyuanvideo", "33x45x80", 256, {"density": 0.25}),
)


def measure(family: str, grid: str, text_after: int, options: dict) -> dict:
    """Seconds of the second of two plans, and MiB of memory that both needed beyond what a first small one left."""
    from vidaccel import Site, TokenLayout
    from vidaccel.methods import method

    def build(layout: TokenLayout, options: dict) -> tuple[float, object]:
        start = time.perf_counter()
        site = Site(0, 1, 0, None, "cond", "transformer", layout)
        plan = method("radial", family, **options).plan(None, None, None, site, {})
        return time.perf_counter() - start, plan.density(layout)

    build(TokenLayout(13, 30, 45), {})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    layout = TokenLayout.parse(grid, text_after=text_after)
    build(layout, options)
    seconds, density = build(layout, options)
    return {
        "benchmark": "plan", "family": family, "grid": str(layout), "options": options, "seconds": seconds,
        "extra_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, **vars(density),
    }  # fmt: skip


def main() -> None:
    """Measure every case and record it."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(*CASES[int(sys.argv[1])])))
        return
    from vidaccel.eval import env
    from vidaccel.eval.record import append_line

    where = env.provenance()
    for index in range(len(CASES)):
        run = subprocess.run([sys.executable, __file__, str(index)], check=True, capture_output=True, text=True)
        line = json.loads(run.stdout) | where
        append_line(RESULTS, line)
        figures = f"{line['seconds']:.3f} s, {line['extra_mib']:.1f} MiB"
        print(line["family"], line["grid"], line["options"], figures)


if __name__ == "__main__":
    main()
