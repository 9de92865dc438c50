"""The kernels that choose and group compile for every GPU, and well, at the shapes of Wan 14B: no GPU is needed."""

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
from vidaccel.planning import triton_kmeans, triton_order, triton_select
from vidaccel.planning.order import Order
from vidaccel.triton_launch import Launch

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
FEWER = tuple(each for each in ARCHITECTURES if each not in ("sm_86", "sm_89"))
"""For variants: the two left out have the instructions of sm_80 and the shared memory of sm_120."""
LANES, TOKENS, CLUSTERS = 40, 75_600, 1000


@pytest.fixture(autouse=True)
def _compile_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def choices(blocks: int) -> dict[str, Launch]:
    """All kernels of `select`, with every optional argument and with none."""
    scores, rows = empty(LANES, 591, blocks), (LANES, 591)
    counts, masses = empty(*rows, dtype=torch.int32), empty(*rows)
    sizes = empty(LANES, 1, blocks, dtype=torch.int32).expand(scores.shape)
    keep = empty(1, 1, blocks, dtype=torch.bool).expand(scores.shape)
    forced, budget = empty(*scores.shape, dtype=torch.bool), empty(1, dtype=torch.int64)
    sums, rooms = empty(1, LANES * 591, 17, dtype=torch.int64), empty(1, LANES * 591, dtype=torch.int64)
    return {
        "top_k": triton_select.prepare_pick(scores, counts, None, None, None),
        "top_p": triton_select.prepare_pick(scores, counts, masses, sizes, keep),
        "costs": triton_select.prepare_costs(scores, forced, sizes, budget, sums, 28),
        "cut": triton_select.prepare_cut(scores, forced, sizes, budget, rooms),
        "cut unweighted": triton_select.prepare_cut(scores, forced, None, budget, rooms),
    }


def grouping(head_dim: int, dtype: torch.dtype) -> dict[str, Launch]:
    points = empty(1, TOKENS, LANES, head_dim, dtype=dtype)
    centroids = empty(LANES, CLUSTERS, head_dim)
    order = Order(empty(LANES, TOKENS, dtype=torch.int32), empty(LANES, CLUSTERS + 1, dtype=torch.int32))
    return {
        "assign": triton_kmeans.prepare_assign(points, centroids),
        "means": triton_kmeans.prepare_means(points, order, centroids),
        "variances": triton_kmeans.prepare_means(points, order, centroids, squared=True),
        "permute": triton_order.prepare(points, order.order, False),
        "unpermute": triton_order.prepare(points, order.order, True),
    }


def check(architecture: str, launches: dict[str, Launch]) -> None:
    for name, launch in launches.items():
        machine = machine_code(architecture, launch)
        print(architecture, name, launch.constants, machine.registers, machine.shared)  # pytest -s shows the table
        assert not machine.spilled, (name, machine.registers)
        assert machine.shared <= SHARED_KB[architecture] * 1024, (name, machine.shared)
        if name == "assign":
            assert machine.instructions[TENSOR_CORES[architecture]], machine.instructions


@pytest.mark.parametrize("blocks", [591, 4725, 8192])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_selection(architecture: str, blocks: int) -> None:
    check(architecture, choices(blocks))


@pytest.mark.parametrize(
    "head_dim, dtype", [(256, torch.float16), (128, torch.bfloat16), (96, torch.bfloat16), (64, torch.float16)], ids=str
)
@pytest.mark.parametrize("architecture", FEWER)
def test_grouping(architecture: str, head_dim: int, dtype: torch.dtype) -> None:
    check(architecture, grouping(head_dim, dtype))


def test_the_check_sees_spills() -> None:
    launch = choices(8192)["top_p"]
    launch.options["num_warps"] = 2
    with pytest.raises(AssertionError, match="top_p"):
        check("sm_90", {"top_p": launch})


def test_large_tensors_are_addressed_with_64_bits() -> None:
    launch = grouping(128, torch.bfloat16)["assign"]
    launch.arguments["p_batch"] = 1 << 40
    signature = source(launch).signature
    assert (signature["p_batch"], signature["p_token"], signature["points"]) == ("i64", "i32", "*bf16")
