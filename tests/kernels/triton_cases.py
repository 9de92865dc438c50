"""The Triton kernel against the reference in Triton's interpreter; test_triton_interpreted.py runs this in a process.

Everything is poisoned: outputs start as NaN, and so do the keys and values that no range of the plan names.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vidaccel import kernels
from vidaccel.kernels import reference
from vidaccel.plan import BlockMask

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
        *wide, mask, key_lengths=lengths, scale=head_dim**-0.5, return_lse=True
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
@pytest.mark.parametrize("head_dim", [64, 128])
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


@pytest.mark.parametrize("head_dim", [64, 128])
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
    expected, _ = reference.attention(query, key, value, mask, key_lengths=None, scale=0.3, return_lse=False)
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
