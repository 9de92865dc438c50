"""The kernels of `quantise` against torch in Triton's interpreter; test_quantise_triton.py runs this in a process.

Everything is poisoned: results start as NaN, and padding holds it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vidaccel.kernels import triton_quantise
from vidaccel.kernels.quantise import (
    PRECISIONS,
    dequantise,
    lse_shift,
    quantise,
    quantise_reference,
    uses_triton,
    valid_keys,
)

NAN = float("nan")


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # then, and only then, torch fills what it allocates with NaN
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.zeros(1).new_empty(9).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def inputs(batch: int, queries: int, keys: int, heads: int, head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(batch, tokens, heads, head_dim).to(dtype) for tokens in (queries, keys, keys)]


def equal(actual: Tensor, expected: Tensor) -> bool:
    """Same type, shape and bits, but for the kind of NaN."""
    same = actual.dtype == expected.dtype and actual.shape == expected.shape and actual.is_contiguous()
    return same and torch.equal(actual.float().nan_to_num(nan=1e9), expected.float().nan_to_num(nan=1e9))


def check(query: Tensor, key: Tensor, value: Tensor, precision: str, **padding: Tensor) -> None:
    """All is the same to the bit, but for the mean, whose order of summation is not, and what it moves."""
    assert uses_triton(query)
    actual = quantise(query, key, value, precision, **padding)
    expected = quantise_reference(query, key, value, precision, **padding)
    assert equal(actual.query, expected.query) and equal(actual.query_scale, expected.query_scale)
    assert actual.key_mean.shape == expected.key_mean.shape and actual.key_scale.shape == expected.key_scale.shape
    assert torch.allclose(actual.key_mean, expected.key_mean, rtol=1e-5, atol=1e-5)
    assert torch.allclose(actual.key_scale, expected.key_scale, rtol=1e-4, atol=1e-7, equal_nan=True)
    assert actual.key.dtype == torch.int8 and int((actual.key.int() - expected.key.int()).abs().max()) <= 1
    # One unit apart only where the shift put an element next to a tie.
    assert float((actual.key != expected.key).float().mean()) < 1e-3
    valid = valid_keys(key, **{"key_lengths": None, "key_order": None, **padding})
    small, wide = actual.value, expected.value
    if precision == "int8" and valid is not None:
        seen = valid.transpose(1, 2)[..., None].expand(small.shape)
        small, wide = small[seen], wide[seen]
    assert equal(small, wide) if precision == "fp8" else torch.equal(small.nan_to_num(), wide.nan_to_num())
    if precision == "fp8":
        assert actual.value_scale is not None and expected.value_scale is not None
        assert equal(actual.value_scale, expected.value_scale)
    else:
        assert actual.value_scale is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 40])
def test_against_torch(head_dim: int, precision: str, dtype: torch.dtype) -> None:
    query, key, value = inputs(2, 37, 131, 3, head_dim, dtype)
    check(query, key + 7, value, precision)


@pytest.mark.parametrize("tokens", [1, 2, 32, 33, 511, 512, 513, 1100])
def test_tokens_around_steps_and_chunks(tokens: int) -> None:
    for precision in PRECISIONS:
        check(*inputs(1, tokens, tokens, 1, 64, torch.float32), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [None, 1, 2, 4])
def test_padding(precision: str, rows: int | None) -> None:
    tokens, lengths = 150, torch.tensor([90, 1])
    query, key, value = inputs(2, 20, tokens, 2, 64, torch.float32)
    order = None if rows is None else torch.stack([torch.randperm(tokens) for _ in range(rows)]).int()
    padding = {"key_lengths": lengths} | ({} if order is None else {"key_order": order})
    valid = valid_keys(key, lengths, order)
    assert valid is not None
    for poisoned in (key, value):
        poisoned[~valid.expand(2, 2, tokens).transpose(1, 2)] = NAN
    check(query, key, value, precision, **padding)
    actual = quantise(query, key, value, precision, **padding)
    assert actual.key_scale.isfinite().all() and actual.key_mean.isfinite().all()


def test_nothing_but_padding() -> None:
    query, key, value = inputs(2, 9, 70, 2, 64, torch.float16)
    for lengths in ([0, 70], [-1, 999]):
        check(query, key, value, "fp8", key_lengths=torch.tensor(lengths))
    check(query, key * NAN, value * NAN, "fp8", key_lengths=torch.tensor([0, 0]))


def test_strided_inputs() -> None:
    fused = torch.randn(2, 77, 3, 2, 64)
    major, last = torch.randn(2, 2, 77, 64).transpose(1, 2), torch.randn(2, 77, 64, 2).transpose(2, 3)
    broadcast = torch.randn(1, 77, 2, 64).expand(2, -1, -1, -1)
    for precision in PRECISIONS:
        check(fused[:, :, 0], fused[:, :, 1], fused[:, :, 2], precision)
        check(major, last, broadcast, precision)
        check(broadcast, major.flip(1), last, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_what_is_not_finite_shows_and_spoils_nothing_else(bad: float, precision: str) -> None:
    query, key, value = inputs(1, 50, 50, 2, 64, torch.float32)
    query[0, 3, 0, 5] = key[0, 4, 1, 0] = value[0, 6, 1, 7] = bad
    check(query, key, value, precision)
    actual = quantise(query, key, value, precision)
    assert actual.query_scale[0, 0, 3].isnan() and actual.query_scale.isnan().sum() == 1
    assert actual.key_scale[0, 1, 4].isnan() and actual.key_scale.isnan().sum() == 1
    broken = ~dequantise(actual)[2].isfinite()
    assert broken[0, 6, 1, 7] and broken.sum() == 1


def test_rows_of_zeros_and_of_tiny_and_huge_values() -> None:
    query, key, value = inputs(1, 6, 6, 1, 64, torch.float32)
    for states in (query, key, value):
        states *= torch.tensor([0.0, 1e-38, 1e-30, 1.0, 1e30, 1e38])[None, :, None, None]
    check(query, key, value, "fp8")
    check(query * 0, key * 0, value * 0, "fp8")
    assert (quantise(query, key, value, "fp8").query_scale[0, 0, :2] == 1).all()


def test_e4m3_to_the_bit() -> None:
    """Every e4m3 value, every tie between two, and their neighbours in fp32, of both signs."""
    exact = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()  # 0 to 448
    ties = (exact[1:] + exact[:-1]) / 2
    points = torch.cat([exact, ties, ties.nextafter(torch.tensor(0.0)), ties.nextafter(torch.tensor(999.0))])
    points = torch.cat([points, -points, torch.tensor([NAN, -0.0])])
    value = points[None, :, None, None].expand(1, -1, 1, 16)
    launch = triton_quantise.prepare_channels(value.clone(), torch.full((1, 1, 16), 448.0), None)
    launch.run()
    assert (launch.arguments["scales"] == 1).all()
    expected = value.to(torch.float8_e4m3fn).view(torch.uint8)
    assert torch.equal(launch.arguments["out"], expected)


def test_whole_numbers_with_ties_to_even() -> None:
    query = torch.zeros(1, 1, 1, 256)
    query[0, 0, 0] = (torch.arange(256) - 128) / 2  # a largest magnitude of 64 would give another step
    query[0, 0, 0, 0] = 127
    launch = triton_quantise.prepare_rows(query, None, None)
    launch.run()
    assert torch.equal(launch.arguments["out"], query.round().to(torch.int8))


def test_shift_of_the_log_sum_exp() -> None:
    query = torch.randn(2, 77, 3, 2, 96)[:, :, 1]
    mean = torch.randn(2, 1, 2, 96) * 10
    expected = torch.einsum("bqhd,bkhd->bhq", query, mean) * 0.3
    shift = lse_shift(query, mean, 0.3)
    assert shift.dtype == torch.float32 and torch.allclose(shift, expected, atol=1e-4)


def test_strides_past_32_bits() -> None:
    """Two tokens 2^31 elements apart; the memory between them is never touched."""
    torch.use_deterministic_algorithms(False)  # nothing here may fill four gigabytes
    far = torch.empty_strided((1, 2, 2, 64), (1 << 33, 1 << 31, 64, 1), dtype=torch.float16)
    near = torch.randn(1, 2, 2, 64).half()
    far.copy_(near)
    torch.use_deterministic_algorithms(True)
    actual, scales = triton_quantise.rows(far, None, None)
    expected, expected_scales = triton_quantise.rows(near, None, None)
    assert torch.equal(actual, expected) and torch.equal(scales, expected_scales)
    assert torch.equal(triton_quantise.mean(far, None), triton_quantise.mean(near, None))
    values, value_scales = triton_quantise.channels(far, None)
    again, again_scales = triton_quantise.channels(near, None)
    assert torch.equal(values.float(), again.float()) and torch.equal(value_scales, again_scales)


def test_bf16_takes_the_torch_path_here() -> None:
    query, key, value = inputs(1, 16, 16, 1, 64, torch.bfloat16)
    assert not uses_triton(query)
    actual, expected = quantise(query, key, value, "fp8"), quantise_reference(query, key, value, "fp8")
    assert torch.equal(actual.key, expected.key) and torch.equal(actual.key_scale, expected.key_scale)
