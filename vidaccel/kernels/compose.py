"""Orders and extra keys for backends that execute a bare mask: by gathers, a partial result and a merge."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from vidaccel.kernels.merge import merge
from vidaccel.mask import BlockMask
from vidaccel.plan import AttentionPlan, ExtraKeys, index_of


class Run(Protocol):
    """Attention over a bare mask, as a backend computes it."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, *, key_lengths: Tensor | None, scale: float,
        return_lse: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Output like `query`, and fp32 log-sum-exp ``[batch, heads, queries]`` if `return_lse`."""


def composed(
    run: Run, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, *, key_lengths: Tensor | None,
    scale: float, return_lse: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Attention by `plan`, with `run` for its mask; see `vidaccel.kernels.attention`.

    Costs a copy of whatever has an order and, with extra keys, the scores of one head's queries against them.
    """
    mask = plan.mask
    assert mask is not None
    if plan.plain:
        return run(query, key, value, mask, key_lengths=key_lengths, scale=scale, return_lse=return_lse)
    query, key, value = (
        permuted(query, plan.query_order), permuted(key, plan.key_order), permuted(value, plan.key_order)
    )  # fmt: skip
    wants_lse = return_lse or plan.extra is not None
    out, lse = run(query, key, value, mask, key_lengths=key_lengths, scale=scale, return_lse=wants_lse)
    if plan.extra is not None:
        assert lse is not None
        out, lse = merge(out, lse, *extra_attention(query, plan.extra, mask.query_block, scale))
    out = restored(out, plan.query_order)
    if lse is None or not return_lse:
        return out, None
    return out, restored(lse.transpose(1, 2)[..., None], plan.query_order)[..., 0].transpose(1, 2).contiguous()


def permuted(states: Tensor, order: Tensor | None) -> Tensor:
    """States ``[batch, tokens, heads, width]`` in the plan's order; themselves if there is none."""
    return states if order is None else states.gather(1, index_of(order, states))


def restored(states: Tensor, order: Tensor | None) -> Tensor:
    """States in the plan's order back at their own places; themselves if there is none."""
    return states if order is None else torch.empty_like(states).scatter_(1, index_of(order, states), states)


def extra_attention(query: Tensor, extra: ExtraKeys, query_block: int, scale: float) -> tuple[Tensor, Tensor]:
    """Attention over the extra keys alone, head by head: output like `query` and fp32 log-sum-exp."""
    batch, queries, heads, _ = query.shape
    out = torch.empty_like(query)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=query.device)
    wide = torch.promote_types(query.dtype, torch.float32)
    for lane in range(batch * heads):
        b, h = divmod(lane, heads)
        bias = extra.bias[lane % len(extra.bias)].repeat_interleave(query_block, dim=0)[:queries]
        scores = query[b, :, h].to(wide) @ extra.key[b, :, h].to(wide).T * scale + bias
        # A row that sees no group has no softmax: zeros, and a log-sum-exp of -inf, by convention.
        weights = torch.nan_to_num(scores.softmax(dim=-1), nan=0.0)
        out[b, :, h] = (weights @ extra.value[b, :, h].to(wide)).to(query.dtype)
        lse[b, h] = scores.logsumexp(dim=-1).float()
    return out, lse
