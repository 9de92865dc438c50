"""Block-sparse attention written to be obviously right: a softmax over an explicit mask, in fp32 or better."""

from __future__ import annotations

import torch
from torch import Tensor

from vidaccel.plan import BlockMask


def why_not(query: Tensor) -> str | None:
    """Every device, dtype and head dim is supported."""
    return None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    *,
    key_lengths: Tensor | None,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention over the pairs that `mask` keeps, head by head; see `vidaccel.kernels.attention`.

    Needs memory for one head's ``[queries, keys]`` scores: small grids only.
    """
    batch, queries, heads, _ = query.shape
    out = torch.empty_like(query)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=query.device)
    wide = torch.promote_types(query.dtype, torch.float32)
    allowed = mask.to_dense()
    for b in range(batch):
        for h in range(heads):
            keep = allowed[(b * heads + h) % mask.patterns]
            if key_lengths is not None:
                keep = keep & (torch.arange(mask.keys, device=query.device) < key_lengths[b])
            scores = query[b, :, h].to(wide) @ key[b, :, h].to(wide).T * scale
            scores = scores.masked_fill(~keep, float("-inf"))
            # A row without keys has no softmax: its output is zero and its log-sum-exp -inf, by convention.
            weights = torch.nan_to_num(scores.softmax(dim=-1), nan=0.0)
            out[b, :, h] = (weights @ value[b, :, h].to(wide)).to(query.dtype)
            lse[b, h] = scores.logsumexp(dim=-1).float()
    return out, lse if return_lse else None
