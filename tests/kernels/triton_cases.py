"""The Triton kernel against the reference in Triton's interpreter; test_triton_interpreted.py runs this in a process.

Everything is poisoned: outputs start as NaN, and so do the keys and values that no range of the plan names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.kernels.cases import CASES, PLAN_CASES, brute_force
from vidaccel import kernels
from vidaccel.kernels import reference
from vidaccel.plan import AttentionPlan, BlockMask

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}
LSE_TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-5}
NAN = float("nan")


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # then, and only then, torch fills what it allocates with NaN
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.zeros(1).new_empty(9).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def random_mask(
    patterns: int, queries: int, keys: int, query_block: int = 64, key_block: int = 32, kept: float = 0.5
) -> BlockMask:
    """Random blocks; ragged where the blocks do not divide the lengths."""
    shape = (patterns, -(-queries // query_block), -(-keys // key_block))
    return BlockMask.from_blocks(torch.rand(shape) < kept, query_block, key_block, queries, keys)


def mask_of(rows: list[list[tuple[int, int]]], query_block: int, queries: int, keys: int) -> BlockMask:
    """One pattern with these ranges for each tile."""
    offsets = torch.tensor([0] + [len(row) for row in rows]).cumsum(0).int()[None]
    ranges = torch.tensor([each for row in rows for each in row], dtype=torch.int32).reshape(-1, 2)
    mask = BlockMask(offsets, ranges, query_block, 1, queries, keys)
    mask.validate()
    return mask


def inputs(batch: int, queries: int, keys: int, heads: int, head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(batch, tokens, heads, head_dim).to(dtype) for tokens in (queries, keys, keys)]


def distance(actual: Tensor, expected: Tensor) -> float:
    """Root mean square error relative to the root mean square."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))


def check(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, lengths: Tensor | None = None) -> None:
    """Compare output and LSE of the kernel with the reference in fp32."""
    head_dim = query.shape[-1]
    wide = (each.float() for each in (query, key, value))
    expected, expected_lse = reference.attention(
        *wide, AttentionPlan(mask), key_lengths=lengths, scale=head_dim**-0.5, return_lse=True
    )  # fmt: skip
    assert expected_lse is not None
    key, value = poison_unseen(key, mask, lengths), poison_unseen(value, mask, lengths)
    out, lse = kernels.attention(
        query, key, value, mask, key_lengths=lengths, return_lse=True, backend_name="triton"
    )  # fmt: skip
    assert out.dtype == query.dtype and out.shape == query.shape
    assert lse is not None and lse.dtype == torch.float32
    assert torch.isfinite(out).all()
    assert distance(out, expected) < TOLERANCE[query.dtype]
    assert torch.equal(lse == float("-inf"), expected_lse == float("-inf"))
    seen = expected_lse > float("-inf")
    assert distance(lse[seen], expected_lse[seen]) < LSE_TOLERANCE[query.dtype]
    assert (out.transpose(1, 2)[~seen] == 0).all()


def poison_unseen(tensor: Tensor, mask: BlockMask, lengths: Tensor | None) -> Tensor:
    """The same keys or values, with the same strides, but NaN where no query of any head attends."""
    seen = mask.to_dense().any(dim=1)
    batch, _, heads, _ = tensor.shape
    poisoned = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)
    for b in range(batch):
        for h in range(heads):
            unseen = ~seen[(b * heads + h) % mask.patterns]
            if lengths is not None:
                unseen = unseen | (torch.arange(mask.keys) >= lengths[b])
            poisoned[b, unseen, h] = NAN
    return poisoned


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("query_block", [16, 64, 128])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_ragged_random_blocks(head_dim: int, query_block: int, dtype: torch.dtype) -> None:
    tokens = 183
    mask = random_mask(2, tokens, tokens, query_block, 16)
    check(*inputs(1, tokens, tokens, 2, head_dim, dtype), mask)


@pytest.mark.parametrize("query_block", [1, 5, 48, 100, 192, 256])
def test_query_blocks_that_are_no_power_of_two_or_larger_than_a_program(query_block: int) -> None:
    queries = 33 if query_block < 16 else 401
    check(*inputs(1, queries, 97, 1, 64, torch.float32), random_mask(1, queries, 97, query_block, 16))


@pytest.mark.parametrize("patterns", [1, 3, 6])
def test_patterns_of_heads_and_rows(patterns: int) -> None:
    check(*inputs(2, 130, 150, 3, 64, torch.float32), random_mask(patterns, 130, 150, 64, 8))


def test_full_mask_is_dense_attention() -> None:
    query, key, value = inputs(1, 257, 257, 2, 128, torch.float32)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    out, _ = kernels.attention(query, key, value, BlockMask.full(257, 257), backend_name="triton")
    assert distance(out, dense.transpose(1, 2)) < 2e-6


def test_ranges_of_any_length_and_position() -> None:
    rows = [[(0, 1)], [(298, 299)], [(5, 6), (7, 8), (9, 138)], [(0, 64), (65, 193)], [(1, 299)]]
    rows.append([(0, 128), (171, 299)])
    check(*inputs(1, 95, 299, 2, 64, torch.float32), mask_of(rows, 16, 95, 299))


def test_tiles_without_keys() -> None:
    rows = [[], [(3, 40)], [], [], [(0, 1), (39, 40)], []]
    check(*inputs(2, 90, 40, 2, 64, torch.float16), mask_of(rows, 16, 90, 40))


def test_no_keys_at_all() -> None:
    query, key, value = inputs(1, 40, 40, 2, 64, torch.float32)
    mask = mask_of([[], [], []], 16, 40, 40)
    out, lse = kernels.attention(query, key * NAN, value * NAN, mask, return_lse=True, backend_name="triton")
    assert lse is not None
    assert (out == 0).all() and (lse == float("-inf")).all()


@pytest.mark.parametrize("head_dim", [64, 96])
def test_key_lengths(head_dim: int) -> None:
    """In the middle of a range, at its start, none valid, more than there are."""
    mask = random_mask(1, 70, 200, 32, 40, kept=0.7)
    for lengths in ([200, 131], [40, 1], [0, 1000]):
        check(*inputs(2, 70, 200, 2, head_dim, torch.float32), mask, torch.tensor(lengths))


def test_negative_key_length_is_no_keys() -> None:
    check(*inputs(1, 32, 64, 1, 64, torch.float32), BlockMask.full(32, 64), torch.tensor([-3], dtype=torch.int32))


def test_strided_inputs() -> None:
    """Slices of fused projections, head-major storage, a broadcast batch, and a head dim that is not dense."""
    mask = random_mask(2, 77, 77, 16, 16)
    fused = torch.randn(2, 77, 3, 2, 64)
    check(fused[:, :, 0], fused[:, :, 1], fused[:, :, 2], mask)
    query, key, value = (torch.randn(2, 2, 77, 64).transpose(1, 2) for _ in range(3))
    check(query, key, value, mask)
    check(query, torch.randn(1, 77, 2, 64).expand(2, -1, -1, -1).clone(), value, mask)
    check(torch.randn(2, 77, 64, 2).transpose(2, 3), key, torch.randn(2, 77, 2, 128)[..., ::2], mask)


def test_broadcast_batch_is_read_in_place() -> None:
    query, key, value = inputs(1, 50, 50, 2, 64, torch.float32)
    several = [each.expand(3, -1, -1, -1) for each in (query, key, value)]
    mask = random_mask(1, 50, 50, 16, 16)
    once, _ = kernels.attention(query, key, value, mask, backend_name="triton")
    thrice, _ = kernels.attention(*several, mask, backend_name="triton")
    assert torch.equal(thrice, once.expand(3, -1, -1, -1))


def test_lse_is_optional_and_changes_nothing() -> None:
    query, key, value = inputs(1, 100, 100, 2, 64, torch.float16)
    mask = random_mask(1, 100, 100, 32, 16)
    without, none = kernels.attention(query, key, value, mask, backend_name="triton")
    out, lse = kernels.attention(query, key, value, mask, return_lse=True, backend_name="triton")
    assert none is None and lse is not None
    assert torch.equal(without, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_large_scores(dtype: torch.dtype) -> None:
    """Scores far past the range of exp: only differences from the maximum may be exponentiated."""
    query, key, value = inputs(1, 64, 200, 1, 64, dtype)
    check(query * 20, key * 20, value, random_mask(1, 64, 200, 32, 16))


def test_scale() -> None:
    query, key, value = inputs(1, 40, 60, 1, 64, torch.float32)
    mask = random_mask(1, 40, 60, 16, 16, kept=0.8)
    out, _ = kernels.attention(query, key, value, mask, scale=0.3, backend_name="triton")
    expected, _ = kernels.attention(query, key, value, mask, scale=0.3, backend_name="reference")
    assert distance(out, expected) < 2e-6


def test_many_tiles_in_another_order() -> None:
    """Work that rises from tile to tile, so that the order of the programs is far from that of the tiles."""
    blocks = torch.ones(2, 20, 20, dtype=torch.bool).tril()
    blocks[1] = blocks[1].flip(0)
    check(*inputs(2, 311, 311, 2, 64, torch.float32), BlockMask.from_blocks(blocks, 16, 16, 311, 311))


def test_bf16_is_refused_in_the_interpreter() -> None:
    query, key, value = inputs(1, 16, 16, 1, 64, torch.bfloat16)
    with pytest.raises(ValueError, match="interpreter.*float32 and float16, not bfloat16"):
        kernels.attention(query, key, value, BlockMask.full(16, 16), backend_name="triton")


@pytest.mark.parametrize("head_dim", [64, 96])
@pytest.mark.parametrize("name", PLAN_CASES)
def test_orders_and_extra_keys(name: str, head_dim: int) -> None:
    case = dataclasses.replace(PLAN_CASES[name], head_dim=head_dim)
    query, key, value = case.inputs()
    out, lse = kernels.attention(query, key, value, case.plan(), key_lengths=case.key_lengths, scale=0.1,
                                 return_lse=True, backend_name="triton")  # fmt: skip
    expected, expected_lse = brute_force(case, query, key, value, 0.1)
    assert lse is not None and distance(out, expected) < 2e-6
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


# The interpreter loses a carry when it rounds to e4m3, 1.2 % of the weight on average; torch and GPUs do not.
@pytest.mark.parametrize("precision, tolerance", [("int8", 2e-3), ("fp8", 8e-2)])
@pytest.mark.parametrize("name", [*PLAN_CASES, "key lengths", "empty rows"])
def test_fewer_bits(name: str, precision: str, tolerance: float) -> None:
    case = dataclasses.replace({**PLAN_CASES, **CASES}[name], head_dim=64)
    call = {"key_lengths": case.key_lengths, "scale": 0.1, "return_lse": True, "precision": precision}
    query, key, value = case.inputs(torch.float16)
    key = key + 2.0  # an offset that all keys share: the LSE must have it back
    plan = case.plan(torch.float16)
    out, lse = kernels.attention(query, key, value, plan, backend_name="triton", **call)  # type: ignore[arg-type]
    expected, expected_lse = kernels.attention(query, key, value, plan, backend_name="reference", **call)  # type: ignore[arg-type]
    assert lse is not None and expected_lse is not None
    assert distance(out, expected) < tolerance
    torch.testing.assert_close(lse, expected_lse, rtol=1e-3, atol=1e-3)


def test_fewer_bits_with_a_tail_of_the_head_dim() -> None:
    query, key, value = inputs(1, 130, 130, 2, 96, torch.float16)
    mask, call = random_mask(2, 130, 130), {"precision": "int8", "return_lse": True}
    out, lse = kernels.attention(query, key, value, mask, backend_name="triton", **call)  # type: ignore[arg-type]
    expected, expected_lse = kernels.attention(query, key, value, mask, backend_name="reference", **call)  # type: ignore[arg-type]
    assert distance(out, expected) < 2e-3
    torch.testing.assert_close(lse, expected_lse, rtol=1e-3, atol=1e-3)


def test_a_query_that_is_not_finite_shows_in_its_row_alone() -> None:
    query, key, value = inputs(1, 64, 64, 1, 64, torch.float32)
    query[0, 7, 0, 3] = NAN
    for precision in (None, "int8"):
        mask = BlockMask.full(64, 64)
        out, _ = kernels.attention(query, key, value, mask, precision=precision, backend_name="triton")
        assert out[0, 7].isnan().all() and torch.isfinite(out[0, torch.arange(64) != 7]).all()


@pytest.mark.parametrize("gathered", [False, True])
def test_addresses_past_two_to_the_31(gathered: bool) -> None:
    """Views whose tokens, heads or batch rows lie more than 2^31 elements apart, of memory that is never touched."""
    torch.use_deterministic_algorithms(False)  # it would fill all of that memory
    far, tokens = (1 << 31) + 1024, 40
    try:
        storage = torch.empty(2 * far, dtype=torch.float16)
    except RuntimeError as problem:
        pytest.skip(f"no {4 * far >> 30} GiB of address space: {problem}")
    near = inputs(2, tokens, tokens, 2, 64, torch.float16)
    apart = {"batch": (far, 128, 64), "head": (64, 128, far)}
    order = torch.randperm(tokens).int()[None] if gathered else None
    plan = AttentionPlan(random_mask(1, tokens, tokens, 16, 16), order, order)
    expected, _ = kernels.attention(*near, plan, backend_name="reference")
    for batch, token, head in apart.values():
        views = []
        for place, each in enumerate(near):
            view = storage[place * 8192 :].as_strided(each.shape, (batch, token, head, 1))
            views.append(view.copy_(each))
        out, _ = kernels.attention(*views, plan, backend_name="triton")
        assert distance(out, expected) < 2e-3
    token_far = storage.as_strided((1, 2, 1, 64), (0, far, 0, 1)).copy_(near[0][:1, :2, :1])
    out, _ = kernels.attention(token_far, token_far, token_far, BlockMask.full(2, 2), backend_name="triton")
    expected, _ = kernels.attention(*(near[0][:1, :2, :1],) * 3, BlockMask.full(2, 2), backend_name="reference")
    assert distance(out, expected) < 2e-3
