"""The Triton kernel compiles for every GPU that has launch parameters, and well: no GPU is needed for that."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no build for this platform")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("with TRITON_INTERPRET set, kernels cannot be compiled", allow_module_level=True)

from tests.kernels.triton_compiler import (
    SHARED_KB,
    TENSOR_CORES,
    WARPGROUP_ROWS,
    Machine,
    compiled,
    launch,
    source,
)
from vidaccel.kernels.triton_table import FP8_KEYS, HEAD_DIMS, NO_INT8, TABLE, Tile, choose

ARCHITECTURES = sorted(TABLE)
NARROW_CORES = {
    "sm_80": {"int8": {"IMMA"}}, "sm_86": {"int8": {"IMMA"}}, "sm_89": {"int8": {"IMMA"}, "fp8": {"QMMA"}},
    "sm_90": {"int8": {"IGMMA"}, "fp8": {"QGMMA"}}, "sm_120": {"int8": {"IMMA"}, "fp8": {"QMMA"}},
}  # fmt: skip
"""Tensor-core instructions of few bits, where they are fast."""
PRECISE = [(architecture, precision) for architecture, kinds in NARROW_CORES.items() for precision in kinds]


@pytest.fixture(autouse=True)
def _compile_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def problems(machine: Machine, architecture: str, tile: Tile, precision: str | None = None) -> list[str]:
    """What is wrong with machine code for an architecture."""
    tensor_core = TENSOR_CORES[architecture]
    if architecture.startswith("sm_") and tile.block_q < WARPGROUP_ROWS:
        tensor_core = "HMMA"
    wanted = {tensor_core} if precision is None else NARROW_CORES[architecture][precision]
    if precision is not None and tensor_core == "HMMA":
        # Few rows: sm_90 has no warp-group products for them, and Triton multiplies e4m3 as fp16 there.
        wanted = wanted | {"IMMA"}
    found = [f"{machine.spilled} spilled with {machine.registers} registers"] if machine.spilled else []
    if not any(machine.instructions[name] for name in wanted):
        found.append(f"no {' or '.join(sorted(wanted))}")
    if machine.shared > SHARED_KB[architecture] * 1024:
        found.append(f"{machine.shared} bytes of shared memory, of {SHARED_KB[architecture]} KB")
    return found


def check(
    architecture: str, head_dim: int, tile: Tile, dtype: torch.dtype, options: bool, parts: str = "mask",
    precision: str | None = None,
) -> None:  # fmt: skip
    machine = compiled(architecture, head_dim, tile, dtype, options, parts, precision)
    assert not problems(machine, architecture, tile, precision), tile


def picked(architecture: str, head_dim: int, precision: str | None = None) -> Tile:
    """The launch parameters of a plan with long ranges."""
    return choose(architecture, head_dim, 128, 4096, precision)


@pytest.mark.parametrize("dtype, options", [(torch.bfloat16, False), (torch.float16, True)], ids=["bf16", "fp16-lse"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_long_ranges_get(architecture: str, head_dim: int, dtype: torch.dtype, options: bool) -> None:
    check(architecture, head_dim, picked(architecture, head_dim), dtype, options)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_orders_and_extra_keys(architecture: str, head_dim: int) -> None:
    check(architecture, head_dim, picked(architecture, head_dim), torch.bfloat16, True, "all")


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("architecture, precision", PRECISE)
def test_fewer_bits(architecture: str, precision: str, head_dim: int) -> None:
    tile = picked(architecture, head_dim, precision)
    check(architecture, head_dim, tile, torch.bfloat16, True, "mask", precision)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_row_of_the_table(architecture: str, head_dim: int) -> None:
    """Each with everything that a call can ask for, in its own type and in the fewest bits that it has."""
    bits = [precision for name, precision in PRECISE if name == architecture][-1:]
    for tile, precision in itertools.product(TABLE[architecture][head_dim], [None, *bits]):
        if precision != "fp8" or tile.block_k <= FP8_KEYS:
            check(architecture, head_dim, tile, torch.bfloat16, True, "all", precision)


def test_every_row_is_checked() -> None:
    for rows in TABLE.values():
        assert set(rows) == set(HEAD_DIMS)
        assert all({16, 32, 64} <= {tile.block_q for tile in tiles} for tiles in rows.values())
    assert set(TABLE) == set(SHARED_KB) == set(TENSOR_CORES) == set(NARROW_CORES) | set(NO_INT8)


def test_the_check_sees_spills_and_shared_memory() -> None:
    """Tiles that are known to be too large for a device are found to be."""
    for architecture, tile, complaint in (
        ("sm_90", Tile(128, 64, 4, 3), "spilled"),
        ("gfx942", Tile(128, 64, 4, 4), "shared memory"),
        ("sm_86", Tile(64, 32, 4, 7), "shared memory"),
    ):
        machine = compiled(architecture, 128, tile, torch.bfloat16, False)
        assert complaint in " ".join(problems(machine, architecture, tile))
    assert problems(Machine(9, 0, 0, machine.instructions), "sm_90", Tile(128, 64, 8, 3)) == ["no HGMMA"]


def test_large_tensors_are_addressed_with_64_bits() -> None:
    call = launch(64, Tile(128, 64, 8, 3), torch.bfloat16, True)
    call.arguments["q_batch"] = 1 << 40
    signature = source(call).signature
    assert (signature["q_batch"], signature["k_batch"], signature["heads"]) == ("i64", "i32", "i32")
    assert (signature["lse"], signature["scale_log2"]) == ("*fp32", "fp32")
