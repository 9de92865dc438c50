"""Rotary embedding as HunyuanVideo and CogVideoX have it."""

from __future__ import annotations

import torch
from torch import Tensor

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine, fp32 ``[video tokens, head_dim]``, each frequency twice in a row."""


def rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding over interleaved pairs in fp32, as HunyuanVideo and CogVideoX have it.

    Args:
        states: ``[batch, tokens, heads, head_dim]``.
        cosine, sine: ``[tokens, head_dim]``, each frequency twice in a row.
    """
    cosine, sine = (each.to(states.device)[None, :, None] for each in (cosine, sine))
    even, odd = states[..., 0::2].float(), states[..., 1::2].float()
    out = torch.empty_like(states)
    out[..., 0::2] = even * cosine[..., 0::2] - odd * sine[..., 0::2]
    out[..., 1::2] = odd * cosine[..., 1::2] + even * sine[..., 1::2]
    return out
