"""Rotary embeddings that several models share."""

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
    return rotate_pairs(states, *(each.to(states.device)[None, :, None] for each in (cosine, sine)))


def rotate_after(states: Tensor, text: int, rotary: Rotary) -> Tensor:
    """The first `text` tokens as they are, then the video tokens, rotated."""
    return torch.cat([states[:, :text], rotate(states[:, text:], *rotary)], dim=1)


def rotate_pairs(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding over interleaved pairs of the last axis in fp32.

    Args:
        states: of any shape.
        cosine, sine: broadcast to it, with each frequency twice in a row.
    """
    even, odd = states[..., 0::2].float(), states[..., 1::2].float()
    out = torch.empty_like(states)
    out[..., 0::2] = even * cosine[..., 0::2] - odd * sine[..., 0::2]
    out[..., 1::2] = odd * cosine[..., 1::2] + even * sine[..., 1::2]
    return out


def rotate_promoted(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """The same in the type that states and cosines promote to, as Wan has it."""
    even, odd = states.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = cosine[..., 0::2], sine[..., 1::2]
    out = torch.empty_like(states)
    out[..., 0::2] = even * cosine - odd * sine
    out[..., 1::2] = even * sine + odd * cosine
    return out
