"""What surrounds the Triton kernel: reasons, launch parameters, order of work, errors. Nothing here runs a kernel."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidaccel import triton_launch
from vidaccel.kernels import triton, triton_table
from vidaccel.kernels.triton import Work, prepare
from vidaccel.kernels.triton_table import HEAD_DIMS, TABLE, Tile, choose, row
from vidaccel.plan import AttentionPlan, BlockMask

ROOT = Path(__file__).resolve().parent.parent.parent
TILE = Tile(64, 64, 4, 2)


@pytest.fixture()
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let meta tensors stand for ones on an sm_90 GPU with Triton installed."""
    monkeypatch.setattr(triton_launch, "interpreted", lambda: False)
    monkeypatch.setattr(triton, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(triton, "_import_problem", lambda: None)


class Query:
    """As much of a query as `why_not` looks at."""

    def __init__(self, device: str = "cuda:0", dtype: torch.dtype = torch.bfloat16, head_dim: int = 128) -> None:
        self.device, self.dtype, self.shape = torch.device(device), dtype, torch.Size([1, 8, 2, head_dim])


@pytest.mark.usefixtures("on_gpu")
def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(**changes: object) -> str | None:
        return triton.why_not(Query(**changes))  # type: ignore[arg-type]

    assert reason() is None
    assert reason(dtype=torch.float16, head_dim=64) is None
    assert reason(device="cpu") == "it needs a CUDA or ROCm GPU, the query is on cpu"
    assert reason(dtype=torch.float32) == "it has bfloat16 and float16, not float32"
    assert reason(head_dim=80) == "it has head dims 64, 96, 128, not 80"
    assert reason(head_dim=96) is None
    for architecture in ("sm_75", "gfx1100"):
        monkeypatch.setattr(triton, "architecture", lambda device, name=architecture: name)
        assert f"no kernel for {architecture}; it needs sm_80, sm_86" in str(reason())


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    "architecture, int8, fp8",
    [
        ("sm_80", None, "sm_80 multiplies no e4m3 in tensor cores; fp8 needs sm_89"), ("sm_89", None, None),
        ("sm_90", None, None), ("sm_120", None, None), ("sm_103", "INT8 products of an older kind", "an older kind"),
        ("gfx942", "spills registers", "multiplies no e4m3"),
    ],
)  # fmt: skip
def test_precisions(monkeypatch: pytest.MonkeyPatch, architecture: str, int8: str | None, fp8: str | None) -> None:
    monkeypatch.setattr(triton, "architecture", lambda device: architecture)
    for precision, reason in (("int8", int8), ("fp8", fp8)):
        said = triton.why_not(Query(), precision)  # type: ignore[arg-type]
        assert said is None if reason is None else reason in str(said)


def test_interpreter_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton, "_import_problem", lambda: None)
    assert triton.why_not(torch.empty(1, 8, 2, 64)) is None
    assert triton.why_not(torch.empty(1, 8, 2, 64, dtype=torch.float16)) is None
    assert "not bfloat16" in str(triton.why_not(torch.empty(1, 8, 2, 64, dtype=torch.bfloat16)))


def test_without_triton_the_reason_says_so() -> None:
    code = """
import sys, torch
sys.modules["triton"] = None  # an import of it now fails
from vidaccel import triton_launch
from vidaccel.kernels import triton
triton_launch.interpreted = lambda: True
print(triton.why_not(torch.empty(1, 8, 2, 64)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Triton cannot be imported (import of triton halted")


def test_a_query_on_the_cpu_does_not_import_the_kernel() -> None:
    code = """
import sys, torch
from vidaccel.kernels import triton
assert triton.why_not(torch.empty(1, 8, 2, 64)) is not None
print("vidaccel.kernels.triton_kernel" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    "architecture, expected",
    [
        ("sm_80", "sm_80"), ("sm_87", "sm_86"), ("sm_89", "sm_89"), ("sm_90", "sm_90"), ("sm_103", "sm_100"),
        ("sm_110", "sm_100"), ("sm_121", "sm_120"), ("sm_75", None), ("gfx942", "gfx942"), ("gfx950", "gfx942"),
        ("gfx90a", "gfx942"), ("gfx1201", None),
    ],
)  # fmt: skip
def test_rows(architecture: str, expected: str | None) -> None:
    assert row(architecture) == expected


@pytest.mark.parametrize(
    "query_block, block_q",
    [(1, 16), (16, 16), (32, 32), (48, 64), (64, 64), (100, 128), (128, 128), (256, 128)],
)
def test_rows_per_program_fit_the_plan(query_block: int, block_q: int) -> None:
    """Powers of two are met exactly; of other sizes, a part of the rows of a program may be idle."""
    for architecture in TABLE:
        for head_dim in HEAD_DIMS:
            rows = TABLE[architecture][head_dim]
            most = max(tile.block_q for tile in rows)
            assert choose(architecture, head_dim, query_block, 4096).block_q == min(block_q, most)


@pytest.mark.parametrize("length, block_k", [(16, 32), (32, 32), (64, 64), (100, 128), (128, 128), (4000, 128)])
def test_steps_fit_the_ranges(length: int, block_k: int) -> None:
    """A step of 128 keys for a range of 16 would mask seven eighths of its work."""
    assert choose("sm_90", 64, 128, length).block_k == block_k


def test_e4m3_takes_shorter_steps() -> None:
    assert choose("sm_90", 64, 128, 4096).block_k == 128
    assert choose("sm_90", 64, 128, 4096, "fp8").block_k == 64


def test_candidates_hold_the_row_and_fit_the_plan() -> None:
    for architecture, head_dim in itertools.product(TABLE, HEAD_DIMS):
        for query_block in (16, 64, 128):
            tiles = triton_table.candidates(architecture, head_dim, query_block)
            assert choose(architecture, head_dim, query_block, 4096) in tiles
            assert len(set(tiles)) == len(tiles) and all(tile.block_q <= query_block for tile in tiles)
    assert triton_table.candidates("sm_70", 64, 128) == ()


def test_unknown_architecture_is_an_error() -> None:
    with pytest.raises(ValueError, match="no launch parameters for sm_70; there are for sm_80"):
        choose("sm_70", 64, 128, 128)


def test_heaviest_tiles_come_first_and_neighbours_stay_together() -> None:
    counts = torch.tensor([[1, 40, 39, 2, 0], [40, 1, 1, 20, 40]])
    blocks = torch.arange(40) < counts[..., None]
    mask = BlockMask.from_blocks(blocks, 16, 8, 80, 320)
    order = Work.of(mask).order.tolist()
    assert sorted(order) == list(range(10))
    assert order[:4] == [1, 5, 9, 2], "equal work keeps its order; 39 blocks are a class below 40"
    assert order[4] == 8 and set(order[5:]) == {0, 3, 4, 6, 7}


def test_order_of_a_mask_without_ranges() -> None:
    mask = BlockMask.from_blocks(torch.zeros(2, 3, 4, dtype=torch.bool), 16, 16, 48, 64)
    assert Work.of(mask).order.tolist() == list(range(6))


def test_work_is_kept_with_the_mask_and_goes_with_it() -> None:
    mask = BlockMask.full(64, 64)
    assert Work.of(mask) is Work.of(mask)
    before = len(triton._WORK)
    del mask
    gc.collect()
    assert len(triton._WORK) == before - 1


def launch(query: torch.Tensor, mask: BlockMask | None = None, tile: Tile = TILE, **changes: object) -> triton.Launch:
    options: dict[str, object] = {"key": query, "value": query, "key_lengths": None, "scale": 0.1, "return_lse": False}
    mask = mask or BlockMask.full(query.shape[1], query.shape[1])
    return prepare(query, plan=AttentionPlan(mask), tile=tile, **{**options, **changes})  # type: ignore[arg-type]


def test_strided_inputs_are_not_copied() -> None:
    fused = torch.randn(2, 70, 3, 4, 64)
    arguments = launch(fused[:, :, 0], key=fused[:, :, 1], value=fused[:, :, 2]).arguments
    assert arguments["key"].data_ptr() == fused[:, :, 1].data_ptr()
    assert [arguments[name] for name in ("k_batch", "k_token", "k_head")] == [70 * 768, 768, 64]
    assert [arguments[name] for name in ("o_batch", "o_token", "o_head")] == [70 * 256, 256, 64]


def test_what_the_kernel_cannot_address_is_copied() -> None:
    sparse_dims = torch.randn(1, 70, 2, 128)[..., ::2]
    assert launch(sparse_dims).arguments["query"].stride(-1) == 1
    far_tokens = torch.empty_strided((1, 70, 1, 64), (64, triton.MAX_TOKEN_STRIDE + 1, 64, 1), device="meta")
    mask = BlockMask.full(70, 70).to("meta")
    assert launch(far_tokens, mask).arguments["q_token"] == 64


def test_grid_covers_every_part_of_every_tile() -> None:
    query = torch.empty(2, 300, 3, 64, device="meta")
    assert launch(query, BlockMask.full(300, 300, query_block=128).to("meta")).grid == (2 * 3 * 3 * 2,)
    assert launch(query, BlockMask.full(300, 300, query_block=100).to("meta")).grid == (2 * 3 * 3 * 2,)
    assert launch(query, BlockMask.full(300, 300, query_block=16).to("meta")).grid == (2 * 3 * 19,)


def test_an_empty_batch_launches_nothing() -> None:
    query, mask = torch.empty(0, 64, 2, 64), BlockMask.full(64, 64)
    out, lse = triton.attention(
        query, query, query, AttentionPlan(mask), key_lengths=None, scale=1.0, return_lse=True
    )  # fmt: skip
    assert out.shape == query.shape and lse is not None and lse.shape == (0, 2, 64)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scale": -1.0}, "scale=-1.0 is not a positive finite number"),
        ({"scale": float("nan")}, "scale=nan is not a positive finite number"),
    ],
)
def test_errors(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launch(torch.zeros(1, 64, 2, 64), **changes)


def test_the_kernel_has_the_parameters_of_a_launch() -> None:
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    from vidaccel.kernels.triton_kernel import block_sparse_forward

    call = launch(torch.zeros(1, 64, 2, 64))
    assert {*call.arguments, *call.constants} == set(block_sparse_forward.arg_names)


def test_a_quantised_launch_holds_bits_and_scales() -> None:
    query = torch.randn(1, 64, 2, 96)
    plain, int8, fp8 = (launch(query, precision=precision) for precision in (None, "int8", "fp8"))
    assert plain.key_mean is None and plain.arguments["query_scale"] is None and plain.constants["SHIFT"] == 0
    assert int8.arguments["key"].dtype == torch.int8 and int8.arguments["value"].dtype == torch.float16
    assert int8.arguments["key_scale"].shape == (1, 2, 64) and int8.arguments["value_scale"] is None
    assert fp8.arguments["value"].dtype == torch.float8_e4m3fn and fp8.arguments["value_scale"].shape == (1, 2, 96)
    assert fp8.constants["SHIFT"] == 8 and fp8.key_mean is not None and fp8.arguments["out"].dtype == torch.float32
    assert (fp8.constants["HEAD"], fp8.constants["TAIL"]) == (64, 32)


def test_table_covers_the_head_dims() -> None:
    assert all(set(rows) == set(triton_table.HEAD_DIMS) for rows in TABLE.values())
