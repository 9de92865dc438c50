"""The parts of benchmarks/gpu/kernels.py that run without a GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vidaccel.kernels import reference
from vidaccel.plan import BlockMask

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu" / "kernels.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks are not part of the source distribution")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_kernels_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], cwd=ROOT, capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""})  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip().splitlines()[-1] == "this benchmark needs a CUDA or ROCm GPU; torch sees none"


@pytest.mark.parametrize("kind", ["band", "scattered"])
def test_flex_attention_gets_the_same_blocks(benchmark: ModuleType, kind: str) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    shape = benchmark.Shape(tokens=1111, heads=3, head_dim=64)
    blocks = benchmark.block_map(kind, shape, 128, 0.4)
    mask = BlockMask.from_blocks(blocks, 128, 128, shape.tokens, shape.tokens)
    query, key, value = (torch.randn(1, shape.tokens, shape.heads, shape.head_dim) for _ in range(3))
    flex_mask = benchmark.flex_mask(blocks, 128, shape.tokens)
    assert torch.equal(flex_mask.to_dense()[0].bool(), blocks)
    out = flex_attention(*(each.transpose(1, 2) for each in (query, key, value)), block_mask=flex_mask)
    expected, _ = reference.attention(query, key, value, mask, key_lengths=None, scale=64**-0.5, return_lse=False)
    torch.testing.assert_close(out.transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_work_and_error_are_counted_from_the_mask(benchmark: ModuleType) -> None:
    shape = benchmark.Shape(tokens=301, heads=2, head_dim=64)
    mask = BlockMask.from_blocks(benchmark.block_map("scattered", shape, 64, 0.5), 64, 64, 301, 301)
    assert benchmark.pairs(mask, shape.heads) == int(mask.to_dense().sum())
    assert benchmark.pairs(BlockMask.full(301, 301), shape.heads) == 2 * 301**2

    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return reference.attention(query, key, value, mask, key_lengths=None, scale=0.125, return_lse=False)[0]

    inputs = benchmark.fresh_inputs(shape, torch.float32, "cpu")[0]
    assert benchmark.error(run, inputs, mask) < 1e-6
    assert benchmark.error(lambda *each: run(*each) * 1.02, inputs, mask) == pytest.approx(0.02, rel=1e-3)


def test_densities_are_those_asked_for(benchmark: ModuleType) -> None:
    shape = benchmark.SHAPES["cogvideox-5b"]
    for kind in ("band", "scattered"):
        for density in (0.1, 0.25):
            share = float(benchmark.block_map(kind, shape, 128, density).float().mean())
            assert share == pytest.approx(density, abs=0.01)
