"""Launch parameters of the Triton kernel, per architecture and head dim.

No row has been timed yet. They were chosen by compiling: nothing spills, tensor cores are used and shared memory fits
the smallest device of a row; tests/kernels/test_triton_compile.py holds every row to that. docs/kernels.md has the
registers and the shared memory of each, and of those turned down.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """How one program works: query rows, keys per step, warps, and steps whose loads are in flight."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int


HEAD_DIMS = (64, 128)

TABLE: dict[str, dict[int, tuple[Tile, ...]]] = {
    "sm_80": {
        64: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(32, 64, 4, 3), Tile(16, 64, 4, 3)),
        128: (Tile(128, 32, 8, 4), Tile(64, 32, 4, 4), Tile(32, 32, 4, 4), Tile(16, 64, 4, 3)),
    },
    "sm_86": {
        64: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(32, 64, 4, 3), Tile(16, 32, 4, 3)),
        128: (Tile(128, 32, 8, 3), Tile(64, 32, 4, 2), Tile(32, 32, 4, 3), Tile(16, 32, 4, 3)),
    },
    "sm_90": {
        64: (Tile(128, 128, 8, 3), Tile(64, 64, 4, 3), Tile(32, 64, 4, 3), Tile(16, 64, 4, 3)),
        128: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(32, 64, 4, 3), Tile(16, 64, 4, 3)),
    },
    "sm_100": {
        64: (Tile(128, 128, 8, 3), Tile(64, 64, 4, 3), Tile(32, 64, 4, 3), Tile(16, 64, 4, 3)),
        128: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(32, 64, 4, 3), Tile(16, 64, 4, 3)),
    },
    "gfx942": {
        64: (Tile(128, 64, 4, 2), Tile(64, 64, 4, 2), Tile(32, 64, 4, 2), Tile(16, 64, 4, 2)),
        128: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(32, 64, 4, 2), Tile(16, 64, 4, 2)),
    },
}
"""Rows of the kinds of GPU that differ; see `row`."""

# 99 KB of shared memory and mma.sync, as on sm_86.
TABLE["sm_89"] = TABLE["sm_120"] = TABLE["sm_86"]

LOADING_ROWS = 48
"""What loading keys costs a program, in query rows of work. An estimate: it only weighs idle rows against programs."""


def row(architecture: str) -> str | None:
    """The row of `TABLE` for an architecture such as ``"sm_90"`` or ``"gfx942"``; None if there is none.

    A CUDA architecture without a row of its own takes the nearest below, CDNA GPUs (gfx9) share one.
    """
    if architecture.startswith("gfx"):
        return "gfx942" if architecture.startswith("gfx9") else None
    below = [name for name in TABLE if name.startswith("sm_") and int(name[3:]) <= int(architecture[3:])]
    return max(below, key=lambda name: int(name[3:]), default=None)


def choose(architecture: str, head_dim: int, query_block: int) -> Tile:
    """The launch parameters for a plan with `query_block` rows per tile, on an architecture that has a `row`.

    Any `query_block` works: a tile is cut into programs of at most 128 rows, and rows past its end stay idle.
    """
    name = row(architecture)
    if name is None:
        raise ValueError(f"no launch parameters for {architecture}; there are for {', '.join(TABLE)} and successors")
    return min(TABLE[name][head_dim], key=lambda tile: -(-query_block // tile.block_q) * (tile.block_q + LOADING_ROWS))
