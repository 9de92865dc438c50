"""Predicted against measured: exchanged bytes and seconds of a pass that processes share.

    python benchmarks/parallel_scaling.py [--processes 1 2] [--density 0.25]

A pass of the Wan miniature on a clip twice as wide, dense and by `radial`, split by Ulysses over processes
with gloo, a thread each. Bytes are counted where torch.distributed is called and must be exactly those that
`vidaccel.scale.sent` counts. Seconds are predicted by `vidaccel.scale.predict` with the rates that one process reaches
and the bandwidth that gloo reaches in an exchange of the same size, and by the shipped cost model of CPUs.

`cpu_seconds` is the CPU time of the slowest process, which other work on the machine does not lengthen much; `seconds`
is the clock, for a machine that has a free core for each process. More processes than cores are labelled. Appends
JSON lines to benchmarks/results/parallel_scaling.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.parallel import cases
from tests.parallel.world import World
from vidaccel.costs import default_for
from vidaccel.eval import env
from vidaccel.eval.record import append_line
from vidaccel.eval.sizes import ModelSize
from vidaccel.layout import TokenLayout
from vidaccel.scale import Assumed, Degrees, Dense, Machine, predict, sent
from vidaccel.scale.chosen import attention_of
from vidaccel.scale.machine import Link

RESULTS = Path(__file__).parent / "results" / "parallel_scaling.jsonl"
GRID, TEXT, BLOCK = (12, 9, 26), 32, 16
REPEATS = 5
FP32 = 4
COSTS = default_for("cpu")


def made() -> tuple[Any, dict[str, Any], ModelSize]:
    """The Wan miniature's transformer, a call of it at its own size, and what a prediction knows of it."""
    import vidaccel

    transformer = vidaccel.load_miniature("wan").transformer
    config = transformer.config
    frames, height, width = (count * patch for count, patch in zip(GRID, config.patch_size, strict=True))
    call = {
        "hidden_states": torch.randn(1, config.in_channels, frames, height, width),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, TEXT, config.text_dim),
    }
    size = ModelSize(
        "miniature:wan", "wan", TokenLayout(*GRID), config.num_attention_heads, config.attention_head_dim,
        config.num_layers, 1, hidden=config.ffn_dim, cross_tokens=TEXT,
        out=config.out_channels * math.prod(config.patch_size),
    )  # fmt: skip
    return transformer, call, size


@contextlib.contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Bytes that this process sends to others inside the block, by collective."""
    from torch import distributed
    from torch.distributed import _functional_collectives as functional

    found = {"exchange": 0, "output": 0}
    exchange, gather = distributed.all_to_all_single, functional.all_gather_tensor

    def exchanging(out: Any, packed: Any, received: list[int], going: list[int], group: Any = None) -> Any:
        own = going[distributed.get_rank(group)]
        found["exchange"] += (sum(going) - own) * packed.element_size()
        return exchange(out, packed, received, going, group=group)

    def gathering(tensor: Any, gather_dim: int, group: Any, tag: str = "") -> Any:
        found["output"] += tensor.nbytes * (distributed.get_world_size() - 1)
        return gather(tensor, gather_dim, group, tag)

    with mock.patch.object(distributed, "all_to_all_single", exchanging), \
            mock.patch.object(functional, "all_gather_tensor", gathering):  # fmt: skip
        yield found


def bandwidth(elements: int) -> float:
    """Bytes a second that this process sends in an exchange of so many numbers."""
    from torch import distributed

    ranks, share = distributed.get_world_size(), elements // distributed.get_world_size()
    packed = torch.randn(share * ranks)
    out, times = torch.empty_like(packed), []
    for _ in range(REPEATS + 1):
        distributed.barrier()
        start = time.perf_counter()
        distributed.all_to_all_single(out, packed)
        times.append(time.perf_counter() - start)
    return share * (ranks - 1) * FP32 / statistics.median(times[1:])


def run(ranks: int, density: float | None) -> dict[str, Any]:
    """In each process: seconds of a pass on the clock and of the CPU, of its attention in one, and bytes sent.

    In the first two steps of a run processes also compare what they were given.
    """
    import vidaccel
    from vidaccel.schedule import Schedule

    transformer, call, size = made()
    if ranks > 1:
        cases.parallelised(transformer, ulysses=ranks)
    # Dense calls, too, go by our exchange.
    schedule = Schedule(1.0 if density is None else 0, 0, 0)
    vidaccel.enable(transformer, "radial", min_tokens=0, density=density, block=BLOCK, schedule=schedule,
                    num_inference_steps=REPEATS + 3)  # fmt: skip
    passes = []
    for step in range(REPEATS + 3):
        call["timestep"] = torch.tensor([900 - 100 * step])
        with counted() as bytes_sent:
            start, cpu = time.perf_counter(), time.process_time()
            cases.forward(transformer, call)
            passes.append((time.perf_counter() - start, time.process_time() - cpu))
    seconds, cpu_seconds = (statistics.median(each) for each in zip(*passes[3:], strict=True))
    moved = sent(size, Degrees(1, 1, ranks), 0, FP32).heads // size.layers // FP32
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, **bytes_sent, "attention": _attention(size),
            "bandwidth": bandwidth(moved) if ranks > 1 else None, "size": size}  # fmt: skip


@torch.no_grad()
def _attention(size: ModelSize) -> float:
    """CPU seconds of a pass's dense attention, of all heads."""
    states = [torch.randn(1, size.heads, size.layout.tokens, size.head_dim) for _ in range(3)]
    times = []
    for _ in range(REPEATS + 1):
        start = time.process_time()
        torch.nn.functional.scaled_dot_product_attention(*states)
        times.append(time.process_time() - start)
    return statistics.median(times[1:]) * size.layers


def machine(size: ModelSize, one: dict[str, Any], reached: float) -> Machine:
    """One whose rates are those that one process reached, with the bandwidth of the exchange."""
    from vidaccel.scale.predict import linear_flop

    pairs = Dense().load(size, Degrees(), COSTS).greatest * 4 * size.head_dim
    attention, linear = pairs / one["attention"], linear_flop(size, Degrees()) / (one["cpu_seconds"] - one["attention"])
    peak = max(attention, linear)
    link = Link("gloo", reached / 1e9, "measured")
    return Machine(peak / 1e12, link, link, 8, Assumed(attention / peak, linear / peak, 1.0, 0.0))


def lines(processes: list[int], density: float) -> Iterator[dict[str, Any]]:
    """A line for each number of processes, dense and sparse."""
    # By the name under which the processes find it: here this file may be the main module.
    from parallel_scaling import run as there

    first: dict[str, Any] = {}
    for ranks in processes:
        world = World(ranks)
        try:
            for given in (None, density):
                found = world(there, ranks, given, timeout=1800)
                first = first or found[0]
                yield _line(found, ranks, given, first)
        finally:
            world.stop()


def _line(found: list[dict[str, Any]], ranks: int, density: float | None, first: dict[str, Any]) -> dict[str, Any]:
    size, degrees = found[0]["size"], Degrees(1, 1, ranks)
    there = machine(size, first, found[0]["bandwidth"] or 1e12)
    attention = Dense() if density is None else attention_of("radial", size, {"density": density, "block": BLOCK})
    told = predict(size, degrees, there, attention, COSTS)
    traffic = [sent(size, degrees, rank, FP32) for rank in range(ranks)]
    return {
        "benchmark": "parallel_scaling", "model": size.model, "tokens": size.layout.tokens, "processes": ranks,
        "oversubscribed": ranks > len(os.sched_getaffinity(0)), "density": density,
        "exchange_bytes": [each["exchange"] for each in found],
        "exchange_bytes_predicted": [each.attention for each in traffic],
        "output_bytes": [each["output"] for each in found], "output_bytes_predicted": [each.output for each in traffic],
        "seconds": max(each["seconds"] for each in found), "seconds_predicted": told.seconds * size.passes,
        "cpu_seconds": max(each["cpu_seconds"] for each in found),
        "cpu_seconds_predicted": told.linear + told.attention,
        "exchange_seconds_predicted": told.exchange, "gloo_gb_s": (found[0]["bandwidth"] or 0) / 1e9,
    }  # fmt: skip


def main() -> None:
    """Measure every case and record it; an exchange that moves other bytes than counted is an error."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--density", type=float, default=0.25)
    given = parser.parse_args()
    if given.processes[0] != 1:
        parser.error("--processes starts with 1, whose rates the others are predicted from")
    where = env.provenance() | {"load": os.getloadavg()[0]}
    for line in lines(given.processes, given.density):
        append_line(RESULTS, line | where)
        print({name: value for name, value in line.items() if name != "versions"})
        for what in ("exchange_bytes", "output_bytes"):
            if line[what] != line[f"{what}_predicted"]:
                raise SystemExit(f"{what}: {line[what]} measured, {line[f'{what}_predicted']} counted")


if __name__ == "__main__":
    main()
