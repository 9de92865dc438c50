"""The scoring kernels compile for every GPU, and well, at the shapes of Wan 14B: no GPU is needed for that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton has no build for this platform")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("with TRITON_INTERPRET set, kernels cannot be compiled", allow_module_level=True)

from tests.kernels.triton_compiler import SHARED_KB, TENSOR_CORES, machine_code, source
from vidaccel.plan import AttentionPlan, BlockMask
from vidaccel.planning import triton_antidiagonal, triton_mass, triton_pool, triton_sampled
from vidaccel.triton_launch import Launch

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
FEWER = tuple(each for each in ARCHITECTURES if each not in ("sm_86", "sm_89"))
"""For variants: the two left out have the instructions of sm_80 and the shared memory of sm_120."""
BATCH, TOKENS, HEADS = 1, 75_600, 40
LANES = BATCH * HEADS
WITH_DOTS = ("cells", "mass", "rows")


@pytest.fixture(autouse=True)
def _compile_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launches(
    architecture: str, head_dim: int, dtype: torch.dtype, options: bool, block: int = 128
) -> dict[str, Launch]:  # fmt: skip
    """Every kernel, with all optional arguments or with none."""
    tensor = empty(BATCH, TOKENS, HEADS, head_dim, dtype=dtype)
    order, lengths = empty(LANES, TOKENS, dtype=torch.int32), empty(BATCH, dtype=torch.int32)
    order, lengths = (order, lengths) if options else (None, None)
    blocks, rows = -(-TOKENS // block), empty(64, dtype=torch.int64)
    logs = empty(11, TOKENS // 8, blocks)
    mask = BlockMask.full(TOKENS, TOKENS).to("meta")
    marks = empty(LANES if options else 1, 64, TOKENS, dtype=torch.uint8)
    out, lse = empty(3, BATCH, 64, HEADS, head_dim), empty(3, BATCH, HEADS, 64)
    tiles = empty(len(marks), 64, dtype=torch.int64)
    scale = head_dim**-0.5
    return {
        "pool": triton_pool.prepare(tensor, block, order, lengths, mean=True, similarity=options),
        "cells": triton_antidiagonal.prepare_cells(tensor, tensor, logs, 11, block, 8, scale, lengths),
        "shares": triton_antidiagonal.prepare_shares(logs, empty(11, blocks, blocks), TOKENS, block, 8),
        "mass": triton_mass.prepare(
            tensor, tensor, empty(BATCH, HEADS, TOKENS), block, block, scale, lengths, order, order,
            amd=architecture.startswith("gfx"),
        ),
        "marks": triton_sampled.prepare_marks(AttentionPlan(mask, order, order), tiles, marks, 0, 1),
        "rows": triton_sampled.prepare(
            tensor, tensor, tensor, rows, marks, range(LANES), 0, 2, out, lse, scale, lengths
        ),
    }  # fmt: skip


def check(architecture: str, some: dict[str, Launch]) -> None:
    for name, launch in some.items():
        machine = machine_code(architecture, launch)
        print(architecture, name, launch.constants, machine.registers, machine.spilled, machine.shared)
        assert not machine.spilled, (name, machine.registers)
        assert machine.shared <= SHARED_KB[architecture] * 1024, (name, machine.shared)
        if name in WITH_DOTS:
            assert machine.instructions[TENSOR_CORES[architecture]], (name, machine.instructions)


@pytest.mark.parametrize(
    "head_dim, dtype, options", [(128, torch.bfloat16, True), (64, torch.float16, False)], ids=str
)  # fmt: skip
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel(architecture: str, head_dim: int, dtype: torch.dtype, options: bool) -> None:
    check(architecture, launches(architecture, head_dim, dtype, options))


@pytest.mark.slow
@pytest.mark.parametrize(
    "head_dim, dtype, options",
    [(128, torch.float16, False), (96, torch.bfloat16, True), (96, torch.bfloat16, False), (64, torch.bfloat16, True)],
    ids=str,
)
@pytest.mark.parametrize("architecture", FEWER)
def test_every_kernel_otherwise(architecture: str, head_dim: int, dtype: torch.dtype, options: bool) -> None:
    check(architecture, launches(architecture, head_dim, dtype, options))


@pytest.mark.slow
@pytest.mark.parametrize("block", [16, 24, 64, 256])
@pytest.mark.parametrize("architecture", FEWER)
def test_other_blocks(architecture: str, block: int) -> None:
    """Several blocks in a tile, blocks that leave slots idle, and blocks of several tiles."""
    some = launches(architecture, 128, torch.bfloat16, True, block)
    check(architecture, {name: some[name] for name in ("pool", "cells", "shares", "mass")})


def test_large_tensors_are_addressed_with_64_bits() -> None:
    for launch in launches("sm_90", 128, torch.bfloat16, True).values():
        for name in launch.arguments:
            if name.endswith(("_batch", "_token", "_head")):
                launch.arguments[name] = 1 << 40
                assert source(launch).signature[name] == "i64"
