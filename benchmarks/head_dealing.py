"""Heads dealt by cost against contiguous slices: ``[OMP_WAIT_POLICY=passive] python benchmarks/head_dealing.py``.

Predicted, by the shipped cost model of CPUs: every layer and band of steps of the miniatures' profiles, at the budgets
that they come with and at half of the density, over 2 and 4 processes. Predicted and measured: layers of 16 and 24
heads of skewed densities, over 2, 4 and 8 processes.

Measured is the attention of each process's heads alone, one process's after the other in this one process, in turns: on
two cores, processes at the same time would measure how they share the cores. `--cpu` times the process's CPU time and
not the clock, for a machine that does other work. Appends JSON lines to benchmarks/results/head_dealing.jsonl.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vidaccel import Site, TokenLayout, kernels
from vidaccel.costs import default_for
from vidaccel.eval import env
from vidaccel.eval.record import append_line
from vidaccel.methods import method
from vidaccel.methods.head_profile import HeadProfile
from vidaccel.miniature import available
from vidaccel.parallel.deal import Deal, deal, imbalance, plain
from vidaccel.patterns import at_density, plan_of
from vidaccel.patterns.bands import Band
from vidaccel.plan import AttentionPlan

RESULTS = Path(__file__).parent / "results" / "head_dealing.jsonl"
LAYOUT, BLOCK, HEAD_DIM = TokenLayout(13, 18, 18), 64, 64
SKEWS = {
    "a quarter dense": lambda draw, heads: [1.0] * (heads // 4) + [0.1] * (heads - heads // 4),
    "lognormal": lambda draw, heads: [min(1.0, 0.25 * draw.lognormvariate(0, 0.8)) for _ in range(heads)],
}
REPEATS = 7
COSTS = default_for("cpu")


def profiles() -> Iterator[dict[str, Any]]:
    """Predicted imbalance of each layer and band of the miniatures' profiles."""
    for name in available():
        budget = method("head_profile", name, profile=f"miniature:{name}")
        half = getattr(budget, "density", None)
        for density in [None] if half is None else [None, half / 2]:
            chosen = budget if density is None else method(
                "head_profile", name, profile=f"miniature:{name}", density=density)  # fmt: skip
            assert isinstance(chosen, HeadProfile)
            yield {"part": "profile", "profile": f"miniature:{name}", "density": chosen.density,
                   **_profile(chosen)}  # fmt: skip


def _profile(chosen: HeadProfile) -> dict[str, Any]:
    """Mean and greatest imbalance over layers and bands, by processes."""
    table, layout = chosen.sizes.tables[0], TokenLayout.parse(chosen.sizes.grids[0].partition(" ")[0])
    found: dict[str, Any] = {"grid": str(layout)}
    for ranks in (2, 4):
        pairs = []
        for expert, (layers, heads) in table.shapes().items():
            for step in range(20):
                for layer in range(layers):
                    plan = chosen.plan(None, None, None, Site(layer, layers, step, 20, "", expert, layout), {})
                    costs = COSTS.by_head(plan, heads)
                    pairs.append((imbalance(costs, plain(heads, ranks)), imbalance(costs, deal(costs, ranks))))
        simple, dealt = zip(*pairs, strict=True)
        found[f"{ranks} processes"] = {"plain": statistics.mean(simple), "plain_most": max(simple),
                                       "dealt": statistics.mean(dealt), "dealt_most": max(dealt)}  # fmt: skip
    return found


def skewed(kind: str, heads: int) -> AttentionPlan:
    """A band for each head, of densities that are far apart."""
    densities = SKEWS[kind](random.Random(heads), heads)
    bands = {each: at_density(Band.scaled, LAYOUT, BLOCK, each)[0] for each in set(densities)}
    return plan_of([bands[each] for each in densities], LAYOUT, BLOCK)


def measured(kind: str, heads: int, ranks: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds of each process's heads, sliced and dealt, with what was predicted of them."""
    plan = skewed(kind, heads)
    costs = COSTS.by_head(plan, heads, HEAD_DIM)
    deals = {"plain": plain(heads, ranks), "dealt": deal(costs, ranks)}
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, LAYOUT.tokens, heads, HEAD_DIM, generator=generator) for _ in range(3)]
    seconds = {name: _turns(each, states, plan, clock) for name, each in deals.items()}
    line: dict[str, Any] = {"part": "measured", "skew": kind, "heads": heads, "ranks": ranks, "tokens": LAYOUT.tokens,
                            "density": float(plan.video_densities(LAYOUT).mean())}  # fmt: skip
    for name, each in deals.items():
        times = seconds[name]
        line[name] = {"predicted": imbalance(costs, each), "measured": max(times) / statistics.mean(times),
                      "slowest_ms": max(times) * 1e3}  # fmt: skip
    return line


@torch.no_grad()
def _turns(dealt: Deal, states: Sequence[torch.Tensor], plan: AttentionPlan, clock: Callable[[], float]) -> list[float]:
    """Seconds of each process's heads, one after the other, in turns; the least of all turns, as noise only adds."""
    parts = [([each[:, :, list(heads)].contiguous() for each in states], plan.of_heads(heads, states[0].shape[2]))
             for heads in dealt]  # fmt: skip
    times: list[list[float]] = [[] for _ in parts]
    for turn in range(REPEATS + 1):
        for rank, (inputs, own) in enumerate(parts):
            start = clock()
            kernels.attention(*inputs, own)
            if turn:
                times[rank].append(clock() - start)
    return [min(each) for each in times]


def main() -> None:
    """Predict, measure, and record it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cpu", action="store_true", help="CPU time, for a machine that does other work")
    clock = time.process_time if parser.parse_args().cpu else time.perf_counter
    where = env.provenance() | {"clock": clock.__name__, "load": os.getloadavg()[0]}
    for line in profiles():
        append_line(RESULTS, {"benchmark": "head_dealing", **line, **where})
        print(line)
    for kind in SKEWS:
        for heads in (16, 24):
            for ranks in (2, 4, 8):
                line = measured(kind, heads, ranks, clock)
                append_line(RESULTS, {"benchmark": "head_dealing", **line, **where})
                print(line)


if __name__ == "__main__":
    main()
