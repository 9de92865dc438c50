"""The coefficients of the cost model on this machine: ``[OMP_WAIT_POLICY=passive] python benchmarks/costs.py``.

Appends JSON lines to benchmarks/results/costs.jsonl, with how far the fitted model is from the times that it was fitted
to (`median_error`, `largest_error`, relative). docs/costs.md says what the coefficients mean.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from vidaccel.costs import measure
from vidaccel.costs.fit import fitted, misses
from vidaccel.eval import env
from vidaccel.eval.record import append_line

RESULTS = Path(__file__).parent / "results" / "costs.jsonl"
HEADS, HEAD_DIM = 4, 64
CASES = (
    (torch.float32, 64, 4096),
    (torch.float32, 16, 1521),
    (torch.bfloat16, 64, 4096),
)
"""dtype, block and tokens; 1,521 tokens in blocks of 16 are a miniature's."""


def measured(dtype: torch.dtype, block: int, tokens: int) -> dict[str, object]:
    """Coefficients of one case, and how well they fit."""
    samples, dense = measure.times(torch.device("cpu"), dtype, HEADS, HEAD_DIM, block, tokens)
    model = fitted(samples, dense, HEADS, HEAD_DIM, "benchmarks/costs.py")
    return {
        "device_type": "cpu", "dtype": str(dtype).removeprefix("torch."), "heads": HEADS, "block": block,
        "tokens": tokens, "coefficients": model.to_dict(), **misses(model, samples, dense, HEADS),
        "dense_seconds": [list(each) for each in dense],
    }  # fmt: skip


def main() -> None:
    """Measure all cases and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    where = {"seed": measure.SEED, "repeats": measure.REPEATS, **env.provenance()}
    for case in CASES:
        load = os.getloadavg()[0]
        line = {"benchmark": "costs", **measured(*case), "load_before": load,
                "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"), **where}  # fmt: skip
        append_line(RESULTS, line)
        print(line["dtype"], line["block"], line["tokens"], line["coefficients"], line["median_error"],
              line["largest_error"], flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
