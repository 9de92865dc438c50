"""The Triton kernel on a GPU: its errors against fp64 attention of the same inputs, widened."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vidaccel import kernels
from vidaccel.plan import AttentionPlan, BlockMask, ExtraKeys

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
TOLERANCE = 1e-2


def exact(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output and LSE in fp64."""
    batch, _, heads, head_dim = query.shape
    query, key, value = (each.double().transpose(1, 2) for each in (query, key, value))
    pattern = torch.arange(batch * heads).view(batch, heads) % mask.patterns
    keep = mask.to_dense().to(query.device)[pattern.to(query.device)]
    if lengths is not None:
        keep = keep & (torch.arange(mask.keys, device=query.device) < lengths[:, None, None, None])
    scores = (query @ key.transpose(2, 3) * head_dim**-0.5).masked_fill(~keep, float("-inf"))
    weights = scores.softmax(-1).nan_to_num(0.0)
    return (weights @ value).transpose(1, 2), scores.logsumexp(-1)


def check(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, lengths: Tensor | None = None) -> None:
    out, lse = kernels.attention(
        query, key, value, mask, key_lengths=lengths, return_lse=True, backend_name="triton"
    )  # fmt: skip
    expected, expected_lse = exact(query, key, value, mask, lengths)
    assert lse is not None and torch.isfinite(out).all()
    assert float((out.double() - expected).norm() / expected.norm()) < TOLERANCE
    seen = expected_lse > float("-inf")
    assert torch.equal(seen, lse > float("-inf"))
    assert float((lse[seen] - expected_lse[seen]).abs().max()) < 1e-3
    assert (out.transpose(1, 2)[~seen] == 0).all()


def inputs(batch: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    return [torch.randn(batch, tokens, heads, head_dim, device=DEVICE).to(dtype) for _ in range(3)]


def random_mask(patterns: int, tokens: int, query_block: int, key_block: int, kept: float = 0.4) -> BlockMask:
    shape = (patterns, -(-tokens // query_block), -(-tokens // key_block))
    return BlockMask.from_blocks(torch.rand(shape) < kept, query_block, key_block, tokens, tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("query_block", [16, 32, 64, 128, 100, 256])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_ragged_random_blocks(head_dim: int, query_block: int, dtype: torch.dtype) -> None:
    check(*inputs(2, 1533, 3, head_dim, dtype), random_mask(3, 1533, query_block, 64))


@pytest.mark.parametrize("key_block", [1, 24, 128])
@pytest.mark.parametrize("patterns", [1, 4, 8])
def test_patterns_and_key_blocks(patterns: int, key_block: int) -> None:
    check(*inputs(2, 777, 4, 128), random_mask(patterns, 777, 128, key_block))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_key_lengths_and_poison(head_dim: int) -> None:
    """Valid keys per row; what lies past them is NaN and must not matter."""
    query, key, value = inputs(3, 1000, 2, head_dim)
    lengths = torch.tensor([1000, 333, 0], device=DEVICE)
    mask = random_mask(1, 1000, 64, 40)
    poisoned = [each.clone() for each in (key, value)]
    for row, length in enumerate(lengths.tolist()):
        for each, clean in zip(poisoned, (key, value), strict=True):
            each[row, length:] = float("nan")
            clean[row, length:] = 0
    out, _ = kernels.attention(query, *poisoned, mask, key_lengths=lengths, backend_name="triton")
    expected, _ = kernels.attention(query, key, value, mask, key_lengths=lengths, backend_name="triton")
    assert torch.equal(out, expected)
    check(query, key, value, mask, lengths)


def test_rows_without_keys() -> None:
    mask = random_mask(2, 515, 128, 128, kept=0.2)
    check(*inputs(1, 515, 2, 64), mask)
    check(*inputs(1, 515, 2, 64), BlockMask.from_blocks(torch.zeros(1, 5, 5, dtype=torch.bool), 128, 128, 515, 515))


def test_fused_projections_are_read_in_place() -> None:
    fused = torch.randn(2, 901, 3, 4, 128, device=DEVICE).bfloat16()
    check(fused[:, :, 0], fused[:, :, 1], fused[:, :, 2], random_mask(4, 901, 128, 64))


def test_same_input_same_output() -> None:
    query, key, value = inputs(1, 2000, 8, 128)
    mask = random_mask(8, 2000, 128, 64)
    first, _ = kernels.attention(query, key, value, mask, backend_name="triton")
    for _ in range(3):
        again, _ = kernels.attention(query, key, value, mask, backend_name="triton")
        assert torch.equal(again, first)


def test_addresses_past_two_to_the_31() -> None:
    """A batch whose last row lies past 2^31 elements."""
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free GPU memory")
    whole = torch.randn(3, 700_000, 8, 128, device=DEVICE, dtype=torch.bfloat16)  # 2.15e9 elements
    tail = whole[:, -513:]
    check(tail, tail, tail, random_mask(1, 513, 128, 64))
    short = BlockMask.full(513, 700_000)
    out, _ = kernels.attention(tail, whole, whole, short, backend_name="triton")
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (tail, whole, whole)))
    assert float((out.double() - dense.transpose(1, 2).double()).norm() / dense.double().norm()) < TOLERANCE


@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_orders_and_extra_keys(head_dim: int) -> None:
    """Against the composed cpu backend, which gathers and merges."""
    query, key, value = inputs(2, 1001, 3, head_dim)
    mask = random_mask(3, 1001, 128, 64, kept=0.2)
    order = torch.rand(6, 1001, device=DEVICE).argsort(1).int()
    means = torch.randn(2, 70, 3, head_dim, device=DEVICE).bfloat16()
    bias = torch.randn(3, mask.tiles, 70, device=DEVICE)
    bias[:, 1] = float("-inf")
    plan = AttentionPlan(mask.to(DEVICE), order, order.flip(0), ExtraKeys(means, means, bias))
    lengths = torch.tensor([1001, 700], device=DEVICE)
    out, lse = kernels.attention(query, key, value, plan, key_lengths=lengths, return_lse=True, backend_name="triton")
    wide = [each.float().cpu() for each in (query, key, value)]
    extra = ExtraKeys(means.float().cpu(), means.float().cpu(), bias.cpu())
    expected, expected_lse = kernels.attention(
        *wide, AttentionPlan(mask, order.cpu(), order.flip(0).cpu(), extra), key_lengths=lengths.cpu(), return_lse=True,
        backend_name="cpu",
    )  # fmt: skip
    assert lse is not None and expected_lse is not None
    assert float((out.float().cpu() - expected).norm() / expected.norm()) < TOLERANCE
    assert float((lse.cpu() - expected_lse).abs().nan_to_num(0.0).max()) < 1e-2


@pytest.mark.parametrize("precision, tolerance", [("int8", 3e-2), ("fp8", 8e-2)])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_fewer_bits(head_dim: int, precision: str, tolerance: float) -> None:
    query, key, value = inputs(1, 1533, 4, head_dim)
    key = key + 4 * torch.randn(1, 1, 4, head_dim, device=DEVICE).bfloat16()
    if reason := kernels.backend("triton").why_not(query, precision):
        pytest.skip(reason)
    mask = random_mask(4, 1533, 128, 64)
    out, lse = kernels.attention(
        query, key, value, mask, return_lse=True, precision=precision, backend_name="triton"
    )  # fmt: skip
    expected, expected_lse = exact(query, key, value, mask, None)
    assert lse is not None
    assert float((out.double() - expected).norm() / expected.norm()) < tolerance
    assert float((lse - expected_lse).abs().max()) < 0.2


def test_a_mask_made_on_the_gpu_has_slack_and_equals_one_made_on_the_cpu() -> None:
    query, key, value = inputs(1, 1000, 2, 64)
    blocks = torch.rand(2, 8, 16) < 0.3
    made = [BlockMask.from_blocks(blocks.to(device), 128, 64, 1000, 1000) for device in (DEVICE, "cpu")]
    assert len(made[0].ranges) > len(made[1].ranges)
    outs = [kernels.attention(query, key, value, mask, backend_name="triton")[0] for mask in made]
    assert float((outs[0] - outs[1]).abs().max()) < 1e-2


def test_auto_takes_triton() -> None:
    assert kernels.choose("auto", inputs(1, 16, 1, 64)[0]) == "triton"
