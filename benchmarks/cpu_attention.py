"""The cpu backend against dense scaled_dot_product_attention, call for call, in turns.

    [OMP_WAIT_POLICY=passive] python benchmarks/cpu_attention.py [--threads 2] [--repeats 9] [--only NAME]

Appends one JSON line per case to benchmarks/results/cpu_attention.jsonl. `speedup` is dense over sparse time, of the
medians; the first sparse call, which also plans, is `first_call_ms`. `cpu_speedup` compares the processor time of the
process. On a machine with other work, short calls are slow for a reason of their own: GNU OpenMP threads spin while
they wait for each other, and keep the core from the one that they wait for. OMP_WAIT_POLICY=passive ends that.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vidaccel import Site, TokenLayout
from vidaccel.eval import env
from vidaccel.eval.record import append_line
from vidaccel.kernels import attention
from vidaccel.methods import method
from vidaccel.plan import AttentionPlan, BlockMask

RESULTS = Path(__file__).parent / "results" / "cpu_attention.jsonl"
SEED = 0
HEADS, HEAD_DIM = 4, 64
MINIATURE = TokenLayout(13, 9, 13)


def band(tokens: int, block: int, kept: int) -> BlockMask:
    """Exactly `kept` blocks in every row: around the diagonal, moved inside at the ends."""
    count = tokens // block
    index = torch.arange(count)
    first = (index - kept // 2).clamp(0, count - kept)[:, None]
    return BlockMask.from_blocks(((index >= first) & (index < first + kept))[None], block, block, tokens, tokens)


def scattered(tokens: int, block: int, density: float, patterns: int) -> BlockMask:
    """Random blocks, another choice in every pattern."""
    count = -(-tokens // block)
    blocks = torch.rand(patterns, count, count, generator=torch.Generator().manual_seed(SEED)) < density
    return BlockMask.from_blocks(blocks, block, block, tokens, tokens)


def radial(**options: object) -> BlockMask:
    """The radial mask of the miniature pipelines' grid."""
    site = Site(0, 1, 0, None, "cond", "transformer", MINIATURE)
    mask = method("radial", "wan", block=16, **options).plan(None, None, None, site, {}).mask
    assert mask is not None
    return mask


CASES: dict[str, tuple[torch.dtype, Callable[[], BlockMask]]] = {
    "band 0.25 bf16": (torch.bfloat16, lambda: band(8192, 128, 16)),
    "band 0.25 fp32": (torch.float32, lambda: band(8192, 128, 16)),
    "band 0.09 bf16": (torch.bfloat16, lambda: band(8192, 128, 6)),
    "band 0.09 fp32": (torch.float32, lambda: band(8192, 128, 6)),
    "scattered 128-blocks per head 0.25 bf16": (torch.bfloat16, lambda: scattered(8192, 128, 0.25, HEADS)),
    "scattered 64-blocks per head 0.25 bf16": (torch.bfloat16, lambda: scattered(8192, 64, 0.25, HEADS)),
    "scattered 64-blocks per head 0.25 fp32": (torch.float32, lambda: scattered(8192, 64, 0.25, HEADS)),
    "miniature radial fp32": (torch.float32, radial),
    "miniature radial split 16 fp32": (torch.float32, lambda: radial(split=16)),
    "miniature radial density 0.2 fp32": (torch.float32, lambda: radial(density=0.2)),
    "miniature scattered 16-blocks per head 0.25 fp32": (
        torch.float32, lambda: scattered(MINIATURE.tokens, 16, 0.25, HEADS),
    ),
}  # fmt: skip


def relative_error(out: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> float:
    """Frobenius error of `out` against fp64 softmax over the explicit mask of each head, a slice of rows at a time."""
    difference = norm = 0.0
    rows = range(0, mask.queries, 1024)
    for head in range(HEADS):
        pattern = head % mask.patterns
        keep = BlockMask(
            mask.offsets[pattern : pattern + 1] - mask.offsets[pattern, 0],
            mask.ranges[mask.offsets[pattern, 0] : mask.offsets[pattern, -1]],
            mask.query_block, mask.key_block, mask.queries, mask.keys,
        ).to_dense()[0]  # fmt: skip
        q, k, v = (each[0, :, head].double() for each in (query, key, value))
        for part in (slice(start, start + 1024) for start in rows):
            scores = (q[part] @ k.T * HEAD_DIM**-0.5).masked_fill_(~keep[part], float("-inf"))
            expected = scores.softmax(dim=1).nan_to_num_() @ v
            difference += float((out[0, part, head].double() - expected).square().sum())
            norm += float(expected.square().sum())
    return (difference / norm) ** 0.5


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds by the clock and of processor time of one call."""
    clock, cpu = time.perf_counter(), time.process_time()
    call()
    return (time.perf_counter() - clock) * 1e3, (time.process_time() - cpu) * 1e3


def measure(name: str, repeats: int) -> dict[str, object]:
    """One case, dense and sparse in turns with the order swapped each time, on fresh inputs."""
    dtype, build = CASES[name]
    mask = build()
    generator = torch.Generator().manual_seed(SEED)

    def draw() -> Iterator[Tensor]:
        return (torch.randn(1, mask.queries, HEADS, HEAD_DIM, generator=generator).to(dtype) for _ in range(3))

    query, key, value = draw()
    start = time.perf_counter()
    out, _ = attention(query, key, value, mask, backend_name="cpu")
    first_call = (time.perf_counter() - start) * 1e3
    error = relative_error(out, query, key, value, mask)
    times: dict[str, list[tuple[float, float]]] = {"dense": [], "sparse": []}
    for turn in range(repeats + 1):
        query, key, value = draw()
        heads_first = [each.transpose(1, 2) for each in (query, key, value)]
        calls = [
            ("dense", lambda q=heads_first: scaled_dot_product_attention(*q)),
            ("sparse", lambda q=query, k=key, v=value: attention(q, k, v, mask, backend_name="cpu")),
        ]
        for side, call in calls if turn % 2 else calls[::-1]:
            times[side].append(timed(call))
    clock = {side: sorted(wall for wall, _ in pairs[1:]) for side, pairs in times.items()}
    cpu = {side: statistics.median(used for _, used in pairs[1:]) for side, pairs in times.items()}
    figures = {side: dict(zip(("min", "median", "max"), (all_[0], statistics.median(all_), all_[-1]), strict=True))
               for side, all_ in clock.items()}  # fmt: skip
    return {
        "case": name, "tokens": mask.queries, "heads": HEADS, "head_dim": HEAD_DIM, "dtype": str(dtype),
        "block": mask.key_block, "patterns": mask.patterns, "repeats": repeats,
        "density": AttentionPlan(mask).density(TokenLayout(1, 1, mask.queries)).density,
        "dense_ms": figures["dense"], "sparse_ms": figures["sparse"], "first_call_ms": first_call,
        "speedup": figures["dense"]["median"] / figures["sparse"]["median"],
        "speedup_of_minima": figures["dense"]["min"] / figures["sparse"]["min"],
        "cpu_speedup": cpu["dense"] / cpu["sparse"], "relative_error": error,
    }  # fmt: skip


def main() -> None:
    """Measure all cases, or those whose name contains `--only`, and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", default="", help="part of a case's name")
    options = parser.parse_args()
    names = [name for name in CASES if options.only in name]
    if not names or options.threads < 1 or options.repeats < 1:
        parser.error(f"needs a positive number of threads and repeats, and a case of: {', '.join(CASES)}")
    torch.set_num_threads(options.threads)
    where = {"seed": SEED, **env.provenance()}
    for name in names:
        load = os.getloadavg()[0]
        line = {"benchmark": "cpu_attention", **measure(name, options.repeats), "load_before": load,
                "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"), **where}  # fmt: skip
        append_line(RESULTS, line)
        dense, sparse = line["dense_ms"]["median"], line["sparse_ms"]["median"]
        print(f"{name}: density {line['density']:.3f}, dense {dense:.1f} ms, sparse {sparse:.1f} ms, "
              f"{line['speedup']:.2f}x (minima {line['speedup_of_minima']:.2f}x, processor time "
              f"{line['cpu_speedup']:.2f}x), error {line['relative_error']:.1e}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
