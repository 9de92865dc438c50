"""Errors, then times, of the Triton kernel and its peers on a GPU: ``python benchmarks/gpu/kernels.py``.

Prints one JSON line per measurement (and appends it to --out), progress to standard error. Peers: PyTorch's dense
attention by its cuDNN and flash backends, the faster of which is "dense", and compiled FlexAttention with those blocks;
one whose error against fp64 is too large is not timed, and the exit code is 1; it is 2 if there is no GPU.

Sparse work is counted exactly, 4 * head_dim FLOP per attended pair. efficiency = that rate over the rate of dense.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidaccel.eval import env
from vidaccel.kernels import triton as backend
from vidaccel.kernels.triton_table import Tile, choose
from vidaccel.plan import BlockMask

TOLERANCE = 1e-2
ROTATION = 3
"""Sets of inputs that calls take in turn, so that none finds its own in the cache."""
Inputs = tuple[Tensor, Tensor, Tensor]
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """Self-attention of one model at one resolution."""

    tokens: int
    heads: int
    head_dim: int


SHAPES = {
    "wan-1.3b-480p": Shape(32_760, 12, 128),
    "wan-14b-720p": Shape(75_600, 40, 128),
    "hunyuanvideo-720p": Shape(119_056, 24, 128),
    "cogvideox-5b": Shape(17_776, 48, 64),
    "cogvideox1.5-5b": Shape(45_106, 48, 64),
}


def block_map(kind: str, shape: Shape, block: int, density: float) -> Tensor:
    """The blocks kept, bool ``[heads, blocks, blocks]``: a band shared by all heads, or random blocks of each head."""
    count = -(-shape.tokens // block)
    index = torch.arange(count)
    distance = (index[:, None] - index[None, :]).abs()
    if kind == "band":
        share = [float((distance <= width).float().mean()) for width in range(count)]
        width = min(range(count), key=lambda each: abs(share[each] - density))
        return (distance <= width).expand(shape.heads, -1, -1).contiguous()
    kept = torch.rand(shape.heads, count, count).argsort(-1) < round(density * count)
    return kept | (distance == 0)


def flex_mask(blocks: Tensor, block: int, tokens: int) -> Any:
    """FlexAttention's BlockMask of the same blocks, all of them full, so that it masks none."""
    from torch.nn.attention.flex_attention import BlockMask as FlexMask

    counts = blocks.sum(-1, dtype=torch.int32)[None]
    indices = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True).int()[None]

    def keep(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return blocks[head, query // block, key // block]

    none = torch.zeros_like(counts), torch.zeros_like(indices)
    return FlexMask.from_kv_blocks(*none, counts, indices, BLOCK_SIZE=block, mask_mod=keep,
                                   seq_lengths=(tokens, tokens))  # fmt: skip


def sdpa(name: str) -> Kernel:
    """Dense attention by one backend of `scaled_dot_product_attention`."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}[name]

    def run(*inputs: Tensor) -> Tensor:
        with sdpa_kernel(chosen):
            out = torch.nn.functional.scaled_dot_product_attention(*(each.transpose(1, 2) for each in inputs))
        return out.transpose(1, 2)

    return run


def flex(mask: Any) -> Kernel:
    """Compiled FlexAttention: what a user would write without vidaccel."""
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()  # each mask compiles anew; past a limit of compilations, torch would silently run it eagerly
    compiled = torch.compile(flex_attention, dynamic=False)

    def run(*inputs: Tensor) -> Tensor:
        return compiled(*(each.transpose(1, 2) for each in inputs), block_mask=mask).transpose(1, 2)

    return run


def ours(mask: BlockMask, tile: Tile) -> Kernel:
    """The Triton kernel with given launch parameters."""

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        launch = backend.prepare(query, key, value, mask, key_lengths=None, scale=query.shape[-1] ** -0.5,
                                 return_lse=False, tile=tile)  # fmt: skip
        launch.run()
        return launch.arguments["out"]

    return run


def error(run: Kernel, inputs: Inputs, mask: BlockMask) -> float:
    """Relative Frobenius error against fp64 on the first, middle and last tile of the first and last head."""
    out = run(*inputs)
    query, key, value = inputs
    squares, total = 0.0, 0.0
    for head, tile in itertools.product({0, query.shape[2] - 1}, {0, mask.tiles // 2, mask.tiles - 1}):
        rows = slice(tile * mask.query_block, min((tile + 1) * mask.query_block, mask.queries))
        pattern = mask.offsets[head % mask.patterns].tolist()
        ranges = mask.ranges[pattern[tile] : pattern[tile + 1]].tolist()
        keys = torch.cat([torch.arange(*each, device=query.device) for each in ranges])
        scores = query[0, rows, head].double() @ key[0, keys, head].double().T * query.shape[-1] ** -0.5
        exact = scores.softmax(-1) @ value[0, keys, head].double()
        squares += float((out[0, rows, head].double() - exact).square().sum())
        total += float(exact.square().sum())
    return (squares / total) ** 0.5


def pairs(mask: BlockMask, heads: int) -> int:
    """Attended query-key pairs of one batch row."""
    tile = mask.row_of_range() % mask.tiles
    rows = ((tile + 1) * mask.query_block).clamp(max=mask.queries) - tile * mask.query_block
    lengths = (mask.ranges[:, 1] - mask.ranges[:, 0]).long()
    return int((rows * lengths).sum()) * heads // mask.patterns


def fresh_inputs(shape: Shape, dtype: torch.dtype, device: str) -> list[Inputs]:
    """Random, never zeros: those run faster."""
    size = (1, shape.tokens, shape.heads, shape.head_dim)
    return [tuple(torch.randn(size, device=device).to(dtype) for _ in range(3)) for _ in range(ROTATION)]  # type: ignore[misc]


def milliseconds(run: Kernel, inputs: list[Inputs]) -> list[float]:
    """20th, 50th and 80th percentile."""
    from triton.testing import do_bench

    turns = itertools.cycle(inputs)
    return list(do_bench(lambda: run(*next(turns)), warmup=200, rep=1000, quantiles=[0.2, 0.5, 0.8]))


def measure(run: Kernel, inputs: list[Inputs], mask: BlockMask, work: float) -> dict[str, Any]:
    """Error, and unless it is too large times and rate; or what went wrong."""
    try:
        relative = error(run, inputs[0], mask)
        if not relative < TOLERANCE:
            return {"error": relative, "failed": f"error over {TOLERANCE}, not timed"}
        low, median, high = milliseconds(run, inputs)
    except Exception as problem:  # a peer that this GPU or this version does not have must not end the run
        return {"failed": f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"}
    return {"error": relative, "p20_ms": low, "p50_ms": median, "p80_ms": high, "tflops": work / median / 1e9}


def tiles(architecture: str, head_dim: int, block: int, sweep: bool) -> Iterator[Tile]:
    """The launch parameters of the table, and with `sweep` others around them."""
    chosen = choose(architecture, head_dim, block)
    yield chosen
    if sweep:
        others = itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
        yield from (tile for tile in itertools.starmap(Tile, others) if tile != chosen and tile.block_q <= block)


def cases(options: argparse.Namespace, shape: Shape, inputs: list[Inputs]) -> Iterator[dict[str, Any]]:
    """The measurements of one shape: dense peers first, then each plan."""
    full = BlockMask.full(shape.tokens, shape.tokens).to(options.device)
    dense_work = 4.0 * shape.head_dim * pairs(full, shape.heads)
    dense: list[dict[str, Any]] = []
    for name in ("cudnn", "flash"):
        dense.append({"implementation": f"sdpa-{name}", "plan": "dense", "density": 1.0}
                     | measure(sdpa(name), inputs, full, dense_work))  # fmt: skip
        yield dense[-1]
    rates = [each["tflops"] for each in dense if "tflops" in each]
    gpu = backend.architecture(inputs[0][0].device)
    for kind, density in itertools.product(options.plan, options.density):
        blocks = block_map(kind, shape, options.block, density)
        mask = BlockMask.from_blocks(blocks, options.block, options.block, shape.tokens, shape.tokens)
        work = 4.0 * shape.head_dim * pairs(mask, shape.heads)
        mask = mask.to(options.device)
        peer = flex(flex_mask(blocks.to(options.device), options.block, shape.tokens))
        runs: list[tuple[dict[str, Any], Kernel]] = [({"implementation": "flex"}, peer)]
        for tile in tiles(gpu, shape.head_dim, options.block, options.sweep):
            runs.append(({"implementation": "vidaccel", "tile": vars(tile)}, ours(mask, tile)))
        for names, run in runs:
            result = names | {"plan": kind, "density": work / dense_work} | measure(run, inputs, mask, work)
            if rates and "tflops" in result:
                result["efficiency"] = result["tflops"] / max(rates)
                result["speedup_over_dense"] = dense_work / max(rates) / 1e9 / result["p50_ms"]
            yield result


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["wan-1.3b-480p", "wan-14b-720p", "cogvideox-5b"])
    parser.add_argument("--plan", nargs="+", choices=["band", "scattered"], default=["band", "scattered"])
    parser.add_argument("--density", nargs="+", type=float, default=[0.1, 0.25, 0.5, 1.0])
    parser.add_argument("--block", type=int, default=128, help="tokens of a block, of queries and of keys")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--sweep", action="store_true", help="time other launch parameters, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the lines to this file")
    return parser.parse_args()


def main() -> int:
    options = parse()
    if not torch.cuda.is_available():
        print("this benchmark needs a CUDA or ROCm GPU; torch sees none", file=sys.stderr)
        return 2
    options.device = "cuda"
    where = {"gpu": env.device()["gpu"], "versions": env.versions(), "git": env.git_revision(), "seed": options.seed}
    wrong = 0
    for name in options.shape:
        torch.manual_seed(options.seed)
        shape = SHAPES[name]
        inputs = fresh_inputs(shape, getattr(torch, options.dtype), options.device)
        common = {"shape": name, **vars(shape), "dtype": options.dtype, "block": options.block} | where
        for result in cases(options, shape, inputs):
            line = json.dumps(result | common | {"time": datetime.now(timezone.utc).isoformat(timespec="seconds")})
            print(line, flush=True)
            print(name, {key: result[key] for key in result if key != "tile"}, file=sys.stderr)
            if options.out:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            wrong += result["implementation"] == "vidaccel" and "failed" in result and not options.sweep
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
