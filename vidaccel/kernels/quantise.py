"""Queries, keys and values in fewer bits, and attention over them emulated in fp32.

Scores come from INT8: per token and head a symmetric scale, and keys less their mean over tokens. Adding the same
vector to every key adds the same number to every score of a query, which softmax does not see, so the shift costs
nothing, and it removes the offset that keys of video models share, which would otherwise eat the eight bits
(SageAttention, Zhang et al. 2024). Values are fp16, or e4m3 with a scale per channel (SageAttention2, Zhang et al.
2024). A scale per token rather than per block of tokens: ranges of a plan start anywhere.

What a kernel computes from a `Quantised`, all sums at least fp32 or int32::

    score   = scale * query_scale * key_scale * (query . key)      # + bias of extra keys, which are `centred`
    weight  = exp(score - maximum so far)                          # `round_weights`, before it meets the values
    out     = sum(weight * value) * value_scale / sum(weight)
    lse     = log(sum(exp(score))) + `lse_shift`
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

PRECISIONS = ("int8", "fp8")
"""Besides the inputs' own: smoothed INT8 scores with values in fp16 ("int8") or in e4m3 ("fp8")."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INT8_MAX = 127.0
E4M3_MAX = 448.0
TINY = 1e-30
"""What is smaller throughout a row or channel counts as zero, so that no scale or its inverse leaves fp32."""
WEIGHT_SHIFT = {"int8": 0, "fp8": 8}
"""Softmax weights are multiplied by 2 to this power before they are rounded: e4m3 has nothing below 2^-9."""


@dataclass(frozen=True, eq=False)
class Quantised:
    """Attention inputs in fewer bits, contiguous unless `value` is the given tensor.

    Args:
        query, key: int8 ``[batch, tokens, heads, head_dim]``; keys are less `key_mean`.
        value: fp16 or float8_e4m3fn, as `key`.
        query_scale, key_scale: fp32 ``[batch, heads, tokens]``: a row is its integers times its scale. 1 for a row of
            zeros, NaN for a row with a value that is not finite, whose integers are then zeros.
        value_scale: fp32 ``[batch, heads, head_dim]``, which the values of a channel are to be multiplied by; None for
            fp16. A NaN or infinity among e4m3 values is a NaN, and does not spoil the scale.
        key_mean: fp32 ``[batch, 1, heads, head_dim]``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    query_scale: Tensor
    key_scale: Tensor
    value_scale: Tensor | None
    key_mean: Tensor

    def centred(self, key: Tensor) -> Tensor:
        """Other keys ``[batch, groups, heads, head_dim]`` of the same softmax, in their type, less the same mean."""
        return (key.float() - self.key_mean).to(key.dtype)


def refuse(precision: str) -> None:
    """Raise ValueError for anything but one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose {', '.join(PRECISIONS)}, or None for full precision")


def quantise(
    query: Tensor, key: Tensor, value: Tensor, precision: str, *, key_lengths: Tensor | None = None,
    key_order: Tensor | None = None,
) -> Quantised:  # fmt: skip
    """Attention inputs in fewer bits; waits for no GPU.

    With Triton, queries are read once and keys twice; values are read twice for e4m3 and once for fp16, unless they are
    fp16, which are returned as they are. At 75,600 tokens and 40 heads of 128 in bf16 (774 MB a tensor), 4.6 GB are
    moved for "int8" and 5.0 GB for "fp8". Elsewhere, torch makes fp32 copies of all three.

    Args:
        query, key, value: ``[batch, tokens, heads, head_dim]`` of fp32, bf16 or fp16, any strides. A value beyond 65504
            becomes infinite in fp16: that shows, where a clipped one would be wrong unseen.
        precision: one of `PRECISIONS`.
        key_lengths: int ``[batch]``, valid keys per batch row; those at and past it are padding, which may hold NaN.
            It enters neither mean nor scales and becomes zeros, except that fp16 values stay what they were.
        key_order: int32 ``[1, heads or batch * heads, tokens]`` in which `key_lengths` counts, as in a plan; keys and
            results stay at their natural places. None if the keys that are given are in the plan's order.

    Raises:
        ValueError: unknown precision, or shapes or types that do not fit.
    """
    _check(query, key, value, precision)
    if not uses_triton(query):
        return quantise_reference(query, key, value, precision, key_lengths=key_lengths, key_order=key_order)
    kernels = importlib.import_module("vidaccel.kernels.triton_quantise")
    valid = valid_keys(key, key_lengths, key_order)
    mean = kernels.mean(key, valid)
    query8, query_scale = kernels.rows(query, None, None)
    key8, key_scale = kernels.rows(key, mean, valid)
    small, value_scale = kernels.channels(value, valid) if precision == "fp8" else (value.to(torch.float16), None)
    return Quantised(query8, key8, small, query_scale, key_scale, value_scale, mean)


def quantise_reference(
    query: Tensor, key: Tensor, value: Tensor, precision: str, *, key_lengths: Tensor | None = None,
    key_order: Tensor | None = None,
) -> Quantised:  # fmt: skip
    """The definition of `quantise` in torch; padding of fp16 values becomes zeros here, too."""
    _check(query, key, value, precision)
    valid = valid_keys(key, key_lengths, key_order)
    query, key, value = query.float(), _cleared(key.float(), valid), _cleared(value.float(), valid)
    count = key.shape[1] if valid is None else valid.sum(2).clamp(min=1)[:, None, :, None]
    # Any mean is exact, so what is not finite is left out of it: only queries that see such a key should show it.
    mean = key.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).sum(1, keepdim=True) / count
    query8, query_scale = _rows(query)
    key8, key_scale = _rows(_cleared(key - mean, valid))
    small, value_scale = _channels(value) if precision == "fp8" else (value.to(torch.float16), None)
    return Quantised(query8, key8, small, query_scale, key_scale, value_scale, mean)


def dequantise(quantised: Quantised) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys (less their mean) and values as fp32 ``[batch, tokens, heads, head_dim]``."""
    query = quantised.query.float() * quantised.query_scale.transpose(1, 2)[..., None]
    key = quantised.key.float() * quantised.key_scale.transpose(1, 2)[..., None]
    value = quantised.value.float()
    return query, key, value if quantised.value_scale is None else value * quantised.value_scale[:, None]


def emulate(
    query: Tensor, key: Tensor, value: Tensor, precision: str, *, key_lengths: Tensor | None = None,
    key_order: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Inputs for which plain fp32 attention computes what a quantised kernel does.

    ::

        query8, key8, value8, mean = emulate(query, key, value, "int8", key_lengths=lengths, key_order=plan.key_order)
        scores = query8 @ key8 * scale                   # of extra keys: query @ (extra.key - mean) * scale + bias
        weights = exp(scores - scores.max)
        out = round_weights(weights, "int8") @ value8 / weights.sum
        lse = log(sum(exp(scores))) + lse_shift(query, mean, scale)

    Nothing of it depends on an order: permute the results as the inputs would be. A kernel that goes through the keys
    rounds its weights against the maximum so far, not the last one: its roundings are others, of the same size.

    Args:
        query, key, value, precision, key_lengths, key_order: as for `quantise`.

    Returns:
        Queries, keys less their mean, and values after quantisation, fp32 shaped as they were, zeros in padding; and
        that mean, fp32 ``[batch, 1, heads, head_dim]``.
    """
    quantised = quantise_reference(query, key, value, precision, key_lengths=key_lengths, key_order=key_order)
    return *dequantise(quantised), quantised.key_mean


def round_weights(weights: Tensor, precision: str) -> Tensor:
    """Softmax weights as a quantised kernel multiplies them with values: rounded to fp16 or, times 256, to e4m3.

    The factor (`WEIGHT_SHIFT`) costs a kernel nothing, added to the exponent, if it divides by a sum with the same one.

    Args:
        weights: fp32 in 0 to 1, relative to the largest of their row.
        precision: one of `PRECISIONS`.
    """
    refuse(precision)
    factor = 2.0 ** WEIGHT_SHIFT[precision]
    narrow = torch.float16 if precision == "int8" else torch.float8_e4m3fn
    return (weights * factor).to(narrow).to(weights.dtype) / factor


def lse_shift(query: Tensor, key_mean: Tensor, scale: float) -> Tensor:
    """What to add to a log-sum-exp over scores of keys less their mean: ``scale * query . key_mean``.

    Apart from `quantise`, since a log-sum-exp is seldom asked for; it reads the queries once.

    Args:
        query: ``[batch, tokens, heads, head_dim]``, not quantised: the mean may be far larger than the keys less it.
        key_mean: fp32 ``[batch, 1, heads, head_dim]``.
        scale: of the scores.

    Returns:
        fp32 ``[batch, heads, tokens]``.
    """
    if uses_triton(query):
        shift: Tensor = importlib.import_module("vidaccel.kernels.triton_quantise").lse_shift(query, key_mean, scale)
        return shift
    return (query.float().transpose(1, 2) @ key_mean.float().permute(0, 2, 3, 1))[..., 0] * scale


def valid_keys(key: Tensor, key_lengths: Tensor | None, key_order: Tensor | None) -> Tensor | None:
    """Which keys are no padding, at their natural places: bool ``[batch, 1 or heads, tokens]``, or None for all.

    Raises:
        ValueError: lengths or an order that do not fit the keys.
    """
    batch, tokens, heads, _ = key.shape
    if key_lengths is None:
        return None
    if key_lengths.shape != (batch,):
        raise ValueError(f"key_lengths is one number per batch row, [{batch}], got {list(key_lengths.shape)}")
    valid = torch.arange(tokens, device=key.device) < key_lengths.to(key.device)[:, None, None]
    if key_order is None:
        return valid
    if key_order.ndim != 2 or key_order.shape[1] != tokens or len(key_order) not in (1, heads, batch * heads):
        raise ValueError(f"key_order is [1, {heads} or {batch * heads}, {tokens}], got {list(key_order.shape)}")
    lanes = 1 if len(key_order) == 1 else heads
    order = key_order.to(key.device).long().view(-1, lanes, tokens).expand(batch, lanes, tokens)
    places = torch.zeros(order.shape, dtype=torch.bool, device=key.device)
    return places.scatter_(2, order, valid.expand_as(order))


def uses_triton(states: Tensor) -> bool:
    """Whether `quantise` runs as Triton kernels: on CUDA and ROCm and, but for bf16, with ``TRITON_INTERPRET=1``."""
    if os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y"):
        return states.dtype in (torch.float32, torch.float16) and _installed()
    return states.device.type == "cuda" and states.dtype in DTYPES and _installed()


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _check(query: Tensor, key: Tensor, value: Tensor, precision: str) -> None:
    """Refuse what has no quantised form."""
    refuse(precision)
    if query.ndim != 4 or 0 in query.shape or 0 in key.shape or query.dtype not in DTYPES:
        raise ValueError(
            f"queries to quantise are float32, bfloat16 or float16 [batch, tokens, heads, head_dim] without an empty "
            f"dimension, and keys alike, got {query.dtype} {list(query.shape)} and {list(key.shape)}"
        )
    for name, tensor in (("key", key), ("value", value)):
        expected = (len(query), *key.shape[1:2], *query.shape[2:])
        if tensor.shape != expected or (tensor.dtype, tensor.device) != (query.dtype, query.device):
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, the query needs {query.dtype} "
                f"{list(expected)} on {query.device}"
            )


def _cleared(states: Tensor, valid: Tensor | None) -> Tensor:
    """States with zeros in padding."""
    return states if valid is None else states.masked_fill(~valid.transpose(1, 2)[..., None], 0.0)


def _scales(largest: Tensor, steps: float) -> tuple[Tensor, Tensor]:
    """The scale by which `steps` stands for `largest`, and its inverse; 1 and 0 where there is nothing but zeros."""
    empty = largest < TINY
    # A number over a tensor is a reciprocal and a product in torch: two roundings, where the kernels have one.
    inverse = torch.full_like(largest, steps) / largest
    return torch.where(empty, 1.0, largest / steps), torch.where(empty, 0.0, inverse)


def _rows(states: Tensor) -> tuple[Tensor, Tensor]:
    """INT8 of fp32 ``[batch, tokens, heads, head_dim]``, and scales ``[batch, heads, tokens]``."""
    largest = states.abs().amax(-1, keepdim=True)
    finite = largest.isfinite()
    scale, inverse = _scales(largest, INT8_MAX)
    scale = torch.where(finite, scale, torch.nan)
    whole = torch.where(finite, states * inverse, 0.0).round().to(torch.int8)
    return whole, scale[..., 0].transpose(1, 2).contiguous()


def _channels(states: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 of fp32 ``[batch, tokens, heads, head_dim]``, and scales ``[batch, heads, head_dim]``."""
    finite = states.isfinite()
    largest = torch.where(finite, states.abs(), 0.0).amax(1, keepdim=True)
    scale, inverse = _scales(largest, E4M3_MAX)
    # e4m3 has no infinity, and conversions differ in what they make of one.
    return torch.where(finite, states * inverse, torch.nan).to(torch.float8_e4m3fn), scale[:, 0]
