"""Quantised inputs in torch: what they hold, what attention over them errs, and what must not leak into them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vidaccel.kernels.quantise import (
    PRECISIONS,
    Quantised,
    dequantise,
    emulate,
    lse_shift,
    quantise,
    refuse,
    round_weights,
    valid_keys,
)

NAN, INF = float("nan"), float("inf")
BOUND = {"int8": 0.02, "fp8": 0.06}
"""Relative error of an output against fp64, inputs random normal; seen: 0.009 and 0.037."""


def inputs(
    batch: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype = torch.float32, keys: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = (tokens, keys or tokens, keys or tokens)
    query, key, value = (torch.randn(batch, each, heads, head_dim).to(dtype) for each in lengths)
    return query, key, value


def distance(actual: Tensor, expected: Tensor) -> float:
    """Root mean square error relative to the root mean square."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def exact(query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Dense attention and its log-sum-exp ``[batch, heads, tokens]`` in fp64 at the default scale."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query.double(), key.double()) * query.shape[-1] ** -0.5
    if keep is not None:
        scores = scores.masked_fill(~keep[:, :, None], -INF)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value.double()), scores.logsumexp(-1)


def emulated(
    query: Tensor, key: Tensor, value: Tensor, precision: str, keep: Tensor | None = None, **padding: Tensor
) -> tuple[Tensor, Tensor]:
    """The same as a quantised kernel computes it, by the usage in the docstring of `emulate`."""
    scale = query.shape[-1] ** -0.5
    query8, key8, value8, mean = emulate(query, key, value, precision, **padding)
    scores = torch.einsum("bqhd,bkhd->bhqk", query8, key8) * scale
    if keep is not None:
        scores = scores.masked_fill(~keep[:, :, None], -INF)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    out = torch.einsum("bhqk,bkhd->bqhd", round_weights(weights, precision), value8)
    out = out / weights.sum(-1).transpose(1, 2)[..., None]
    return out, scores.logsumexp(-1) + lse_shift(query, mean, scale)


def largest_error(quantised: Quantised, query: Tensor, key: Tensor, value: Tensor) -> list[float]:
    """The largest errors of q, k and v, each in units of what its type may err."""
    query8, key8, value8 = dequantise(quantised)
    half_steps = (quantised.query_scale / 2, quantised.key_scale / 2)
    found = [
        float(((actual - given.float()).abs() / half.transpose(1, 2)[..., None]).max())
        for actual, given, half in zip((query8, key8 + quantised.key_mean), (query, key), half_steps, strict=True)
    ]
    # fp16 keeps 11 bits, e4m3 4; below their normal numbers both have equal steps.
    relative, absolute = (2**-11, 2.0**-25) if quantised.value_scale is None else (2**-4, 2.0**-10)
    floor = absolute if quantised.value_scale is None else absolute * quantised.value_scale[:, None]
    return [*found, float(((value8 - value.float()).abs() / (value.float().abs() * relative + floor)).max())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_element_is_within_half_a_step(precision: str, dtype: torch.dtype) -> None:
    query, key, value = inputs(2, 57, 3, 40, dtype, keys=131)
    quantised = quantise(query, key + 5, value, precision)
    assert max(largest_error(quantised, query, key + 5, value)) <= 1.001
    assert quantised.query.dtype == quantised.key.dtype == torch.int8
    assert int(quantised.query.abs().amax(-1).min()) == int(quantised.key.abs().amax(-1).min()) == 127
    assert quantised.query.shape == query.shape and quantised.key.shape == key.shape == quantised.value.shape
    assert quantised.query_scale.shape == (2, 3, 57) and quantised.key_scale.shape == (2, 3, 131)
    assert quantised.key_mean.shape == (2, 1, 3, 40)
    assert quantised.key_mean.dtype == quantised.query_scale.dtype == quantised.key_scale.dtype == torch.float32
    if precision == "int8":
        assert quantised.value.dtype == torch.float16 and quantised.value_scale is None
    else:
        assert quantised.value.dtype == torch.float8_e4m3fn and quantised.value_scale is not None
        assert quantised.value_scale.shape == (2, 3, 40) and quantised.value_scale.dtype == torch.float32
        assert (quantised.value.float().abs().amax(1) == 448).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tokens, head_dim", [(512, 64), (512, 128), (301, 96), (33, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_on_random_inputs(precision: str, tokens: int, head_dim: int, dtype: torch.dtype) -> None:
    query, key, value = inputs(1, tokens, 2, head_dim, dtype)
    (out, lse), (expected, expected_lse) = emulated(query, key, value, precision), exact(query, key, value)
    error = distance(out, expected)
    assert 1e-4 < error < BOUND[precision]  # no error at all would mean that nothing was rounded
    assert float((lse - expected_lse).abs().max()) < 0.02


def video_like(tokens: int, heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """As seen in video transformers: a few channels of the keys are far from zero and the same in all tokens."""
    query, key, value = inputs(1, tokens, heads, head_dim)
    offset = torch.randn(heads, head_dim) * torch.where(torch.rand(heads, head_dim) < 0.1, 20.0, 1.0)
    return query, key + offset, value


def unsmoothed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over INT8 queries and keys whose mean is left where it is."""
    mirrored = quantise(key, key, value, "int8")  # as queries, keys are quantised without their mean
    query8 = dequantise(quantise(query, key, value, "int8"))[0]
    return exact(query8, dequantise(mirrored)[0], value)[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_smoothing_makes_offset_keys_as_good_as_others(precision: str) -> None:
    query, key, value = video_like(512, 3, 64)
    (out, lse), (expected, expected_lse) = emulated(query, key, value, precision), exact(query, key, value)
    assert distance(out, expected) < BOUND[precision]
    # The scores are large here, and so is their log-sum-exp: without the shift it would be tens away.
    assert float(expected_lse.abs().max()) > 10
    assert float((lse - expected_lse).abs().max()) < 0.02
    assert distance(unsmoothed(query, key, value), expected) > 5 * 0.009


def test_smoothing_is_exact() -> None:
    """The shift alone changes no softmax: in fp64 the keys and the keys less their mean agree to the last bits."""
    query, key, value = (each.double() for each in video_like(100, 2, 32))
    mean = key.mean(1, keepdim=True)
    (out, lse), (centred, centred_lse) = exact(query, key, value), exact(query, key - mean, value)
    assert distance(centred, out) < 1e-13
    assert distance(centred_lse + lse_shift(query, mean, 32**-0.5), lse) < 1e-6


@pytest.mark.parametrize("precision", PRECISIONS)
def test_extra_keys_share_the_shift(precision: str) -> None:
    """Keys left in their own type enter the same softmax once they are less the same mean."""
    query, key, value = video_like(256, 2, 64)
    extra_key, extra_value = key[:, :16] + 0.1, value[:, :16] * 2
    expected, _ = exact(query, torch.cat([key, extra_key], 1), torch.cat([value, extra_value], 1))
    query8, key8, value8, mean = emulate(query, key, value, precision)
    centred = quantise(query, key, value, precision).centred(extra_key)
    assert torch.equal(centred, extra_key - mean)
    scores = torch.cat([torch.einsum("bqhd,bkhd->bhqk", query8, key8),
                        torch.einsum("bqhd,bkhd->bhqk", query, centred)], -1) / 8  # fmt: skip
    out = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), torch.cat([value8, extra_value], 1))
    assert distance(out, expected) < BOUND[precision]


def test_rows_of_one_value_and_of_zeros() -> None:
    query, key, value = (torch.zeros(1, 4, 1, 8) for _ in range(3))
    query[0, 1], query[0, 2], query[0, 3] = 3.0, -1e-35, -2e30
    quantised = quantise(query, key + 7, value, "fp8")
    assert quantised.query[0, :, 0, 0].tolist() == [0, 127, 0, -127]
    assert quantised.query_scale[0, 0].tolist() == pytest.approx([1.0, 3 / 127, 1.0, 2e30 / 127])
    # Keys that are all the same carry nothing but their mean.
    assert not quantised.key.any() and (quantised.key_scale == 1).all() and (quantised.key_mean == 7).all()
    assert quantised.value_scale is not None and (quantised.value_scale == 1).all()
    assert not quantised.value.float().any()


def test_one_token() -> None:
    query, key, value = inputs(1, 1, 2, 64)
    for precision in PRECISIONS:
        out, lse = emulated(query, key, value, precision)
        assert distance(out, value) < 1e-3  # alone, a value is the largest of its channel and is kept
        expected = torch.einsum("bqhd,bkhd->bhq", query, key) / 8
        assert torch.allclose(lse, expected, atol=1e-5)


def test_strided_inputs_are_quantised_as_their_copies() -> None:
    """Slices of a fused projection, head-major storage, a head dim that is not dense, a broadcast batch."""
    fused = torch.randn(2, 35, 3, 2, 64)
    query, key = fused[:, :, 1], torch.randn(2, 2, 35, 64).transpose(1, 2)
    value = torch.randn(1, 35, 64, 2).transpose(2, 3).expand(2, -1, -1, -1)
    assert not any(each.is_contiguous() for each in (query, key, value))
    for precision in PRECISIONS:
        strided = quantise(query, key, value, precision)
        copied = quantise(query.contiguous(), key.contiguous(), value.contiguous(), precision)
        for name in ("query", "key", "value", "query_scale", "key_scale", "key_mean"):
            assert torch.equal(getattr(strided, name).float(), getattr(copied, name).float()), name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_shows_and_spoils_nothing_else(precision: str, bad: float) -> None:
    query, key, value = inputs(1, 20, 2, 16)
    clean = quantise(query, key, value, precision)
    query[0, 3, 0, 5] = key[0, 4, 1, 0] = value[0, 6, 1, 7] = bad
    dirty = quantise(query, key, value, precision)
    for name, where in (("query_scale", (0, 0, 3)), ("key_scale", (0, 1, 4))):
        broken = getattr(dirty, name).isnan()
        assert broken[where] and broken.sum() == 1
    assert not dirty.query[0, 3, 0].any() and not dirty.key[0, 4, 1].any()
    broken = ~dirty.value.float().isfinite()
    assert broken[0, 6, 1, 7] and broken.sum() == 1
    if dirty.value_scale is not None and clean.value_scale is not None:
        assert torch.allclose(dirty.value_scale, clean.value_scale, rtol=0.8)
        assert dirty.value_scale.isfinite().all()
    # Attention over all keys: the bad query is lost, the bad key loses its head, the bad value its channel.
    out, _ = emulated(query, key, value, precision)
    assert out[0, 3, 0].isnan().all() and out[0, :, 1].isnan().all()
    assert torch.cat([out[0, :3, 0], out[0, 4:, 0]]).isfinite().all()


def test_a_value_that_fp16_cannot_hold_becomes_infinite() -> None:
    query, key, value = inputs(1, 5, 1, 8, torch.bfloat16)
    value[0, 2, 0, 1] = -1e5
    assert quantise(query, key, value, "int8").value[0, 2, 0, 1] == -INF
    fp8 = quantise(query, key, value, "fp8")
    assert distance(dequantise(fp8)[2][0, 2, 0, 1], torch.tensor(-1e5)) < 0.01


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [None, 1, 3, 6])
def test_padding_is_as_if_it_were_not_there(precision: str, rows: int | None) -> None:
    """NaN and infinities past the lengths, in the order in which they count."""
    batch, heads, tokens, lengths = 2, 3, 40, torch.tensor([25, 31])
    query, key, value = inputs(batch, tokens, heads, 16)
    key += 10
    order = None if rows is None else torch.stack([torch.randperm(tokens) for _ in range(rows)]).int()
    keep = valid_keys(key, lengths, order)
    assert keep is not None
    keep = keep.expand(batch, heads, tokens)
    for lane in range(batch * heads):
        b, h = divmod(lane, heads)
        by_position = torch.arange(tokens) if order is None else order[lane % len(order)].long()
        assert keep[b, h].nonzero()[:, 0].tolist() == sorted(by_position[: lengths[b]].tolist())
    poisoned_key, poisoned_value = key.clone(), value.clone()
    for poisoned in (poisoned_key, poisoned_value):
        poisoned[~keep.transpose(1, 2)] = NAN
        poisoned[:, 7][~keep[:, :, 7]] = INF
    padding = {"key_lengths": lengths} | ({} if order is None else {"key_order": order})
    quantised = quantise(query, poisoned_key, poisoned_value, precision, **padding)
    assert quantised.key_scale.isfinite().all() and quantised.key_mean.isfinite().all()
    for b in range(batch):
        for h in range(heads):
            kept = keep[b, h]
            alone = quantise(query[b : b + 1, :, h : h + 1], key[b : b + 1, kept, h : h + 1],
                             value[b : b + 1, kept, h : h + 1], precision)  # fmt: skip
            assert torch.allclose(quantised.key_mean[b, 0, h], alone.key_mean[0, 0, 0], atol=1e-5)
            assert int((quantised.key[b, kept, h].int() - alone.key[0, :, 0].int()).abs().max()) <= 1
            assert torch.allclose(quantised.key_scale[b, h, kept], alone.key_scale[0, 0], rtol=1e-4)
            assert torch.equal(quantised.value[b, kept, h].float(), alone.value[0, :, 0].float())
            if quantised.value_scale is not None and alone.value_scale is not None:
                assert torch.equal(quantised.value_scale[b, h], alone.value_scale[0, 0])
    assert not quantised.key[~keep.transpose(1, 2)].any() and (quantised.key_scale[~keep] == 1).all()
    out, lse = emulated(query, poisoned_key, poisoned_value, precision, keep, **padding)
    expected, expected_lse = exact(query, key, value, keep)
    assert distance(out, expected) < BOUND[precision]
    assert float((lse - expected_lse).abs().max()) < 0.05


def test_nothing_but_padding() -> None:
    query, key, value = inputs(2, 9, 2, 8)
    quantised = quantise(query, key * NAN, value * NAN, "fp8", key_lengths=torch.tensor([0, -4]))
    assert not quantised.key.any() and not quantised.key_mean.any() and not quantised.value.float().any()
    assert (quantised.key_scale == 1).all()


def test_weights_are_rounded_as_the_precision_says() -> None:
    weights = torch.tensor([1.0, 0.3, 1e-3, 2e-5, 1e-8, 0.0])
    fp16, e4m3 = round_weights(weights, "int8"), round_weights(weights, "fp8")
    assert torch.equal(fp16, weights.half().float())
    assert [float(each) for each in e4m3] == [1.0, 80 / 256, 0.25 / 256, 3 * 2**-9 / 256, 0, 0]
    # Without the factor, all below a thousandth of the largest weight would be gone.
    assert not weights[3:].to(torch.float8_e4m3fn).float().any()


def test_unknown_precisions() -> None:
    assert [refuse(each) for each in PRECISIONS] == [None, None]
    query, key, value = inputs(1, 4, 1, 8)
    for call in (lambda: refuse("int4"), lambda: quantise(query, key, value, "int4"),
                 lambda: round_weights(query, "int4")):  # fmt: skip
        with pytest.raises(ValueError, match="unknown precision 'int4'; choose int8, fp8"):
            call()


def test_inputs_that_do_not_fit() -> None:
    query, key, value = inputs(2, 6, 2, 8)
    for call, message in (
        (lambda: quantise(query, key, value[:, :5], "int8"), r"value is .* \[2, 5, 2, 8\].*needs .* \[2, 6, 2, 8\]"),
        (lambda: quantise(query, key.half(), value, "int8"), "key is torch.float16"),
        (lambda: quantise(query[:, :0], key, value, "int8"), "empty dimension"),
        (lambda: quantise(query.double(), key.double(), value.double(), "fp8"), "got torch.float64"),
        (lambda: quantise(query, key, value, "int8", key_lengths=torch.tensor([3])), r"\[2\], got \[1\]"),
        (
            lambda: valid_keys(key, torch.tensor([3, 3]), torch.zeros(3, 6, dtype=torch.int32)),
            r"\[1, 2 or 4, 6\], got \[3, 6\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_scale_of_scores_is_free() -> None:
    """The shift of the log-sum-exp goes with the scale of the scores."""
    query, key, _ = inputs(1, 10, 2, 16)
    mean = key.mean(1, keepdim=True)
    expected = 0.37 * torch.einsum("bqhd,bkhd->bhq", query, mean)
    assert torch.allclose(lse_shift(query, mean, 0.37), expected, atol=1e-5)
    assert math.isclose(float(lse_shift(query, mean, 0.74).sum()), 2 * float(expected.sum()), rel_tol=1e-3)
