"""From tokens to query, key and value, in the ways that several models share; modules are called, for LoRA and
offloading."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def in_heads(attn: Any, states: Tensor, *layers: Any) -> tuple[Tensor, ...]:
    """What each layer makes of tokens ``[batch, tokens, dim]``: ``[batch, tokens, heads, head_dim]``."""
    return tuple(layer(states).unflatten(2, (attn.heads, -1)) for layer in layers)


def normalised(norm: Any, states: Tensor) -> Tensor:
    """Through a norm, if there is one."""
    out: Tensor = states if norm is None else norm(states)
    return out


def project(attn: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value ``[batch, tokens, heads, head_dim]``, normalised over all heads at once, as Wan has them."""
    if getattr(attn, "fused_projections", False):
        query, key, value = attn.to_qkv(states).chunk(3, dim=-1)
    else:
        query, key, value = attn.to_q(states), attn.to_k(states), attn.to_v(states)
    # One after the other, so that no more than one is there twice: 0.8 GB less of Wan 14B at 720p.
    query = attn.norm_q(query)
    key = attn.norm_k(key)
    query, key, value = (each.unflatten(2, (attn.heads, -1)) for each in (query, key, value))
    return query, key, value
