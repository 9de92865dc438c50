"""Launch parameters of the Triton kernel, per architecture, head dim and length of the plan's ranges.

No row has been timed yet. They were chosen by compiling: nothing spills in any variant, tensor cores are used and
shared memory fits the smallest device of a row; tests/kernels/test_triton_compile.py holds every row to that.
docs/kernels.md has the registers and the shared memory of each, and of those turned down. `vidaccel bench kernels
--part tuning` times `candidates` on a GPU and prints the rows that win.
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


HEAD_DIMS = (64, 96, 128)

TABLE: dict[str, dict[int, tuple[Tile, ...]]] = {
    "sm_80": {
        64: (Tile(128, 64, 8, 3), Tile(128, 32, 8, 3), Tile(64, 64, 4, 3), Tile(32, 64, 4, 2), Tile(16, 32, 4, 2)),
        96: (Tile(128, 32, 8, 4), Tile(64, 32, 4, 3), Tile(32, 32, 4, 3), Tile(16, 32, 4, 3)),
        128: (Tile(128, 32, 8, 4), Tile(64, 32, 8, 3), Tile(32, 64, 4, 3), Tile(16, 32, 4, 3)),
    },
    "sm_86": {
        64: (Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 3), Tile(16, 32, 4, 3)),
        96: (Tile(128, 32, 8, 3), Tile(64, 32, 4, 2), Tile(32, 32, 4, 3), Tile(16, 32, 4, 4)),
        128: (Tile(128, 32, 8, 3), Tile(64, 32, 8, 2), Tile(32, 64, 4, 3), Tile(16, 32, 4, 2)),
    },
    "sm_90": {
        64: (Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(128, 32, 8, 3), Tile(64, 64, 4, 3), Tile(32, 128, 4, 2),
             Tile(16, 64, 4, 2)),
        96: (Tile(128, 64, 8, 3), Tile(128, 32, 8, 3), Tile(64, 64, 4, 3), Tile(32, 32, 4, 3), Tile(16, 64, 4, 3)),
        128: (Tile(128, 64, 8, 3), Tile(128, 32, 8, 3), Tile(64, 64, 4, 3), Tile(32, 64, 4, 3), Tile(16, 64, 4, 3)),
    },
    "sm_100": {
        64: (Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(128, 32, 8, 3), Tile(64, 64, 4, 3), Tile(32, 64, 4, 3),
             Tile(16, 64, 4, 3)),
        96: (Tile(128, 64, 8, 3), Tile(128, 32, 8, 3), Tile(64, 64, 4, 3), Tile(32, 32, 4, 3), Tile(16, 64, 4, 3)),
        128: (Tile(128, 64, 8, 3), Tile(128, 32, 8, 3), Tile(64, 64, 4, 3), Tile(32, 64, 4, 3), Tile(16, 64, 4, 3)),
    },
    "gfx942": {
        64: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(32, 64, 4, 2), Tile(16, 64, 4, 2)),
        96: (Tile(64, 64, 4, 2), Tile(32, 64, 4, 2), Tile(16, 64, 4, 2)),
        128: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(32, 64, 4, 2), Tile(16, 64, 4, 2)),
    },
}  # fmt: skip
"""Rows of the kinds of GPU that differ; see `row`."""

# 99 KB of shared memory and mma.sync, as on sm_86.
TABLE["sm_89"] = TABLE["sm_120"] = TABLE["sm_86"]

NO_INT8 = {
    "sm_100": "gets INT8 products of an older kind (IMMA) from Triton, which are slower than its bf16 ones",
    "gfx942": "spills registers in the INT8 kernel",
}
"""Rows whose GPUs have no fast path for INT8 scores, and why: what the compiler showed."""

EXTRA_KEYS = 32
"""Most extra keys of a step: with more, the second loop spills on gfx942."""

FP8_KEYS = 64
"""Most keys of a step with e4m3 values, whose products need an accumulator of their own."""

LOADING_ROWS = 48
"""What loading keys costs a program, in query rows of work. An estimate: it only weighs idle rows against programs."""
LOADING_KEYS = 16
"""What a step costs beside its keys, in keys. An estimate: it only weighs masked keys against steps."""


def row(architecture: str) -> str | None:
    """The row of `TABLE` for an architecture such as ``"sm_90"`` or ``"gfx942"``; None if there is none.

    A CUDA architecture without a row of its own takes the nearest below, CDNA GPUs (gfx9) share one.
    """
    if architecture.startswith("gfx"):
        return "gfx942" if architecture.startswith("gfx9") else None
    below = [name for name in TABLE if name.startswith("sm_") and int(name[3:]) <= int(architecture[3:])]
    return max(below, key=lambda name: int(name[3:]), default=None)


def choose(
    architecture: str, head_dim: int, query_block: int, range_length: int, precision: str | None = None
) -> Tile:  # fmt: skip
    """The launch parameters for a plan, on an architecture that has a `row`.

    Any `query_block` works: a tile is cut into programs of at most 128 rows, and rows past its end stay idle. So does
    any range: its last step masks the keys past its end.

    Args:
        architecture, head_dim: of the call.
        query_block: rows of a tile of the plan.
        range_length: mean length of its ranges, or what is known of it.
        precision: of the call.
    """
    name = row(architecture)
    if name is None:
        raise ValueError(f"no launch parameters for {architecture}; there are for {', '.join(TABLE)} and successors")

    fitting = [tile for tile in TABLE[name][head_dim] if precision != "fp8" or tile.block_k <= FP8_KEYS]

    def cost(tile: Tile) -> float:
        rows = -(-query_block // tile.block_q) * (tile.block_q + LOADING_ROWS)
        return rows * (-(-range_length // tile.block_k) * (tile.block_k + LOADING_KEYS))

    return min(fitting, key=cost)


def candidates(architecture: str, head_dim: int, query_block: int) -> tuple[Tile, ...]:
    """Launch parameters worth timing for plans with that query block: the row's own, and others beside each.

    Not all of them compile without spills, which timing shows.
    """
    name = row(architecture)
    if name is None:
        return ()
    most = max(16, query_block)
    own = [tile for tile in TABLE[name][head_dim] if tile.block_q <= most]
    beside = [Tile(tile.block_q, keys, warps, stages) for tile in own if tile.block_q >= 64
              for keys in (32, 64, 128) for warps in (4, 8) for stages in (2, 3, 4)]  # fmt: skip
    return tuple(dict.fromkeys([*own, *beside]))
