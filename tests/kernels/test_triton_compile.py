"""The Triton kernel compiles for every GPU that has launch parameters, and well: no GPU is needed for that."""

from __future__ import annotations

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
from vidaccel.kernels.triton_table import HEAD_DIMS, TABLE, Tile, choose

ARCHITECTURES = sorted(TABLE)
SMALL_BLOCKS = (64, 32, 16)


@pytest.fixture(autouse=True)
def _compile_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def problems(machine: Machine, architecture: str, tile: Tile) -> list[str]:
    """What is wrong with machine code for an architecture."""
    tensor_core = TENSOR_CORES[architecture]
    if architecture.startswith("sm_") and tile.block_q < WARPGROUP_ROWS:
        tensor_core = "HMMA"
    found = [f"{machine.spilled} spilled with {machine.registers} registers"] if machine.spilled else []
    if not machine.instructions[tensor_core]:
        found.append(f"no {tensor_core}")
    if machine.shared > SHARED_KB[architecture] * 1024:
        found.append(f"{machine.shared} bytes of shared memory, of {SHARED_KB[architecture]} KB")
    return found


def check(architecture: str, head_dim: int, query_block: int, dtype: torch.dtype, options: bool) -> None:
    tile = choose(architecture, head_dim, query_block)
    assert tile.block_q == query_block
    machine = compiled(architecture, head_dim, tile, dtype, options)
    assert not problems(machine, architecture, tile), tile


@pytest.mark.parametrize("dtype, options", [(torch.bfloat16, False), (torch.float16, True)], ids=["bf16", "fp16-lse"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_large_blocks(architecture: str, head_dim: int, dtype: torch.dtype, options: bool) -> None:
    check(architecture, head_dim, 128, dtype, options)


@pytest.mark.parametrize("dtype, options", [(torch.bfloat16, True), (torch.float16, False)], ids=["bf16-lse", "fp16"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("architecture", ["sm_90", "sm_100", "gfx942"])
def test_large_blocks_the_other_way_round(
    architecture: str, head_dim: int, dtype: torch.dtype, options: bool
) -> None:  # fmt: skip
    """Data-centre GPUs have rows of their own, close to 255 registers: all four variants."""
    check(architecture, head_dim, 128, dtype, options)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_small_blocks(architecture: str, head_dim: int) -> None:
    for query_block in SMALL_BLOCKS:
        check(architecture, head_dim, query_block, torch.bfloat16, True)


def test_every_row_is_checked() -> None:
    for rows in TABLE.values():
        assert set(rows) == set(HEAD_DIMS)
        assert all([tile.block_q for tile in tiles] == [128, *SMALL_BLOCKS] for tiles in rows.values())
    assert set(TABLE) == set(SHARED_KB) == set(TENSOR_CORES)


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
