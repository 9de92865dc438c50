"""Block-sparse attention written to be obviously right: a softmax over an explicit mask, in fp32 or better."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidaccel.kernels import quantise
from vidaccel.plan import AttentionPlan


def why_not(query: Tensor, precision: str | None = None) -> str | None:
    """Every device, dtype, head dim and precision is supported."""
    return None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    key_lengths: Tensor | None,
    scale: float,
    return_lse: bool,
    precision: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention by `plan`, head by head; see `vidaccel.kernels.attention`.

    Needs memory for one head's ``[queries, keys]`` scores: small grids only.
    """
    if precision is not None:
        return _quantised(query, key, value, plan, key_lengths, scale, return_lse, precision)
    inputs = Inputs(query, key, value, query, plan.extra.key if plan.extra else None)
    return _heads(inputs, plan, key_lengths, scale, return_lse, None, query.dtype)


@dataclass(frozen=True)
class Inputs:
    """What scores are made of: of the keys with `query`, of the extra keys with `extra_query`."""

    query: Tensor
    key: Tensor
    value: Tensor
    extra_query: Tensor
    extra_key: Tensor | None


def _quantised(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, key_lengths: Tensor | None, scale: float,
    return_lse: bool, precision: str,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The same on inputs rounded to fewer bits; see `vidaccel.kernels.quantise.emulate`."""
    rounded = quantise.emulate(query, key, value, precision, key_lengths=key_lengths, key_order=plan.key_order)
    query8, key8, value8, mean = rounded
    extra_key = (plan.extra.key.float() - mean).to(query.dtype) if plan.extra else None
    inputs = Inputs(query8, key8, value8, query, extra_key)
    out, lse = _heads(inputs, plan, key_lengths, scale, return_lse, precision, query.dtype)
    return out, lse if lse is None else lse + quantise.lse_shift(query, mean, scale)


def _heads(
    inputs: Inputs, plan: AttentionPlan, key_lengths: Tensor | None, scale: float, return_lse: bool,
    precision: str | None, dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Head by head: output in `dtype` and log-sum-exp."""
    query, key, value = inputs.query, inputs.key, inputs.value
    batch, _, heads, _ = query.shape
    out = torch.empty_like(query, dtype=dtype)
    lse = torch.empty(batch, heads, query.shape[1], dtype=torch.float32, device=query.device)
    for lane in range(batch * heads):
        b, h = divmod(lane, heads)
        rows, columns = _order(plan.query_order, lane, query), _order(plan.key_order, lane, key)
        keep = _kept(plan, lane, None if key_lengths is None else key_lengths[b])
        scores = (_wide(query[b, rows, h]) @ _wide(key[b, columns, h]).T * scale).masked_fill(~keep, float("-inf"))
        values = _wide(value[b, columns, h])
        if plan.extra is not None:
            assert inputs.extra_key is not None
            extra = _wide(inputs.extra_query[b, rows, h]) @ _wide(inputs.extra_key[b, :, h]).T * scale
            scores = torch.cat([scores, extra + _bias(plan, lane)], dim=1)
            values = torch.cat([values, _wide(plan.extra.value[b, :, h])])
        out[b, rows, h] = (_softmax(scores, precision) @ values).to(dtype)
        lse[b, h, rows] = scores.logsumexp(dim=-1).float()
    return out, lse if return_lse else None


def _softmax(scores: Tensor, precision: str | None) -> Tensor:
    """Softmax over the last dimension; zeros, by convention, for a row without keys, which has none."""
    if precision is None:
        return torch.nan_to_num(scores.softmax(dim=-1), nan=0.0)
    largest = scores.amax(dim=-1, keepdim=True)
    weights = torch.where(largest == -torch.inf, 0.0, torch.exp(scores - largest))
    return quantise.round_weights(weights, precision) / weights.sum(dim=-1, keepdim=True).clamp(min=1.0)


def _wide(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _order(order: Tensor | None, lane: int, states: Tensor) -> Tensor:
    """Token of each position of the plan's sequence."""
    return torch.arange(states.shape[1], device=states.device) if order is None else order[lane % len(order)].long()


def _kept(plan: AttentionPlan, lane: int, length: Tensor | None) -> Tensor:
    """Whether a position attends to a position, ``[queries, keys]``."""
    assert plan.mask is not None
    keep = plan.mask.to_dense()[lane % plan.mask.patterns]
    return keep if length is None else keep & (torch.arange(plan.mask.keys, device=keep.device) < length)


def _bias(plan: AttentionPlan, lane: int) -> Tensor:
    """The bias of the extra keys for every row, ``[queries, groups]``."""
    assert plan.mask is not None and plan.extra is not None
    bias = plan.extra.bias[lane % len(plan.extra.bias)]
    return bias.repeat_interleave(plan.mask.query_block, dim=0)[: plan.mask.queries]
