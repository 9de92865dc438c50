"""What `enable` costs when every step stays dense: stock and enabled generations of the miniature, in turns.

    python benchmarks/overhead.py [--pairs 20] [--steps 3]

Appends one JSON line to benchmarks/results/overhead.jsonl. The ratio is enabled over stock time, the median over pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from diffusers import WanPipeline

import vidaccel
from vidaccel.eval import env
from vidaccel.eval.record import append_line
from vidaccel.miniature import generation_defaults

RESULTS = Path(__file__).parent / "results" / "overhead.jsonl"
DENSE = {"dense_first_steps": 1.0}


def generate(pipe: WanPipeline, settings: dict) -> float:
    """Seconds of one generation, without decoding."""
    start = time.perf_counter()
    pipe(
        "a red circle moves left over a checkerboard",
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **settings,
    )
    return time.perf_counter() - start


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    pipe = vidaccel.load_miniature("wan")
    pipe.set_progress_bar_config(disable=True)
    settings = generation_defaults("wan") | {"num_inference_steps": options.steps}
    generate(pipe, settings)
    stock, enabled = [], []
    for pair in range(options.pairs):
        # Which of the two comes first alternates, so that a drift of the machine favours neither.
        for side in ("stock", "enabled") if pair % 2 else ("enabled", "stock"):
            if side == "stock":
                stock.append(generate(pipe, settings))
                continue
            with vidaccel.enable(pipe, "radial", block=16, min_tokens=0, schedule=DENSE):
                enabled.append(generate(pipe, settings))
    ratios = [fast / slow for fast, slow in zip(enabled, stock, strict=True)]
    line = {
        "benchmark": "overhead", **env.provenance(), "seed": 0, "pairs": options.pairs,
        "steps": options.steps, "stock_s": stock, "enabled_s": enabled, "ratio_median": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4),
    }  # fmt: skip
    append_line(RESULTS, line)
    print(json.dumps({key: line[key] for key in ("ratio_median", "ratio_quartiles", "pairs", "steps")}))


if __name__ == "__main__":
    main()
