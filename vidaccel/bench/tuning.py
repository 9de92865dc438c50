"""A sweep over the Triton kernel's launch parameters at one shape: offline, for its table, never at a user's call."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from vidaccel.bench import plans
from vidaccel.bench.attention import Board, measured
from vidaccel.bench.peers import Kernel, Peer
from vidaccel.bench.shapes import Shape
from vidaccel.plan import AttentionPlan

Make = Callable[[AttentionPlan, Tensor], Kernel]
QUERY_BLOCKS = (128, 64)
DENSITY = 0.2


def lines(board: Board, shape: Shape) -> Iterator[dict[str, Any]]:
    """Every candidate of the table for this GPU, for random plans of each query block; then the fastest once more."""
    if board.device.type != "cuda":
        yield {"case": "tuning", "shape": shape.name, "query_block": 0, "row": "",
               "skipped": f"the Triton kernel does not run on {board.device}"}  # fmt: skip
        return
    backend, table = (importlib.import_module(f"vidaccel.kernels.{name}") for name in ("triton", "triton_table"))
    architecture = backend.architecture(board.device)
    for query_block in QUERY_BLOCKS:
        tiles = table.candidates(architecture, shape.head_dim, query_block)
        made = {repr(tile): _launcher(backend, tile) for tile in tiles}
        for line in sweep(board, shape, query_block, made):
            yield {"architecture": architecture, **line}


def sweep(board: Board, shape: Shape, query_block: int, candidates: Mapping[str, Make]) -> Iterator[dict[str, Any]]:
    """Each candidate by its row, over one plan; then the fastest of those that passed their check, marked so."""
    plan = plans.make("random", shape, DENSITY, board.device, block=query_block, seed=board.seed)
    found, timed = plan.density(shape.layout), []
    for row, make in candidates.items():
        line = {"case": "tuning", "shape": shape.name, "head_dim": shape.head_dim, "query_block": query_block,
                "row": row, **measured(Peer("vidaccel", make), board.inputs(shape), plan, shape.dense_flop,
                                       found)}  # fmt: skip
        timed.append(line)
        yield line
    good = [line for line in timed if "p50_ms" in line]
    if good:
        yield {**min(good, key=lambda line: float(line["p50_ms"])), "fastest_of": len(good)}


def _launcher(backend: Any, tile: Any) -> Make:
    """Makes the kernel with given launch parameters."""

    def make(plan: AttentionPlan, query: Tensor) -> Kernel:
        def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            launch = backend.prepare(query, key, value, plan, key_lengths=None, scale=query.shape[-1] ** -0.5,
                                     return_lse=False, tile=tile)  # fmt: skip
            launch.run()
            out: Tensor = launch.arguments["out"]
            return out

        return run

    return make
