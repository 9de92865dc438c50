"""The kernels of `quantise`: in Triton's interpreter, in a process of its own, and compiled for absent GPUs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton has no build for this platform")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("with TRITON_INTERPRET set, kernels cannot be compiled", allow_module_level=True)

from tests import interpreted
from tests.kernels.triton_compiler import SHARED_KB, machine_code, source
from vidaccel.kernels import triton_quantise
from vidaccel.triton_launch import Launch

CASES = Path(__file__).with_name("triton_quantise_cases.py")
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
FEWER = tuple(each for each in ARCHITECTURES if each not in ("sm_86", "sm_89"))
"""For variants: the two left out have the instructions of sm_80 and the shared memory of sm_120."""
MOST_REGISTERS = 128
"""Half of what a thread may have: with four warps a multiprocessor then holds at least four programs."""


@pytest.fixture(autouse=True)
def _compile_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.slow
def test_kernels_against_torch_in_the_interpreter() -> None:
    interpreted.all_pass(CASES)


def launches(head_dim: int, dtype: torch.dtype, padded: bool) -> dict[str, Launch]:
    """All launches at the shapes of a Wan 14B call, two batch rows, on the meta device."""
    states = torch.empty(2, 75_600, 40, head_dim, dtype=dtype, device="meta")
    valid = torch.empty(2, 40, 75_600, dtype=torch.bool, device="meta") if padded else None
    mean, largest = (torch.empty(2, *shape, head_dim, device="meta") for shape in ((1, 40), (40,)))
    return {
        "mean": triton_quantise.prepare_reduction(states, valid, maximum=False),
        "largest": triton_quantise.prepare_reduction(states, valid, maximum=True),
        "query": triton_quantise.prepare_rows(states, None, None),
        "key": triton_quantise.prepare_rows(states, mean, valid),
        "value": triton_quantise.prepare_channels(states, largest, valid),
        "shift": triton_quantise.prepare_shift(states, mean),
    }


def check(architecture: str, dtype: torch.dtype, head_dim: int, padded: bool) -> None:
    for name, launch in launches(head_dim, dtype, padded).items():
        machine = machine_code(architecture, launch)
        assert machine.spilled == 0, (name, machine.registers)
        assert machine.registers <= MOST_REGISTERS, (name, machine.registers)
        assert machine.shared <= SHARED_KB[architecture] * 1024, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_without_spills(architecture: str) -> None:
    check(architecture, torch.bfloat16, 128, True)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FEWER)
def test_other_variants_compile_without_spills(architecture: str) -> None:
    check(architecture, torch.float16, 64, False)
    check(architecture, torch.float32, 128, True)
    check(architecture, torch.bfloat16, 96, False)


def test_tokens_are_read_16_bytes_at_a_time() -> None:
    """These kernels wait for memory: narrow loads would be their whole cost."""
    for name, launch in launches(128, torch.bfloat16, False).items():
        text = machine_code("gfx942", launch).instructions
        assert text["global_load_dwordx4"] + text["buffer_load_dwordx4"] > 0, (name, text)


def test_grids_cover_every_token_once() -> None:
    for name, launch in launches(128, torch.bfloat16, False).items():
        step = launch.constants.get("CHUNK", launch.constants["BLOCK_T"])
        assert launch.grid[1] == 80 and (launch.grid[0] - 1) * step < 75_600 <= launch.grid[0] * step, name


def test_large_strides_are_64_bits() -> None:
    states = torch.empty_strided((1, 2, 2, 64), (1 << 33, 1 << 31, 64, 1), dtype=torch.bfloat16, device="meta")
    launch = triton_quantise.prepare_rows(states, None, None)
    signature = source(launch).signature
    assert (signature["s_batch"], signature["s_token"], signature["s_head"]) == ("i64", "i64", "i32")


def test_results_are_contiguous_whatever_the_inputs_are() -> None:
    states: Tensor = torch.empty(2, 4, 100, 64, device="meta").transpose(1, 2)
    launch = triton_quantise.prepare_rows(states, None, None)
    assert launch.arguments["out"].is_contiguous() and launch.arguments["scales"].shape == (2, 4, 100)
    assert triton_quantise.prepare_channels(states, torch.empty(2, 4, 64), None).arguments["out"].is_contiguous()
