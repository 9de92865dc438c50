"""Two partial results over disjoint keys as one: what ring attention and text/video splits need.

Softmax over a union of keys is the sum of the parts weighted by ``exp(lse)``, as in the blockwise attention of Liu,
Zaharia and Abbeel, "Ring Attention" (2023).
"""

from __future__ import annotations

import torch
from torch import Tensor


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """The attention output over the keys of both parts, of which no key is in both.

    Args:
        out_a, out_b: ``[batch, tokens, heads, head_dim]``, each normalised over its own keys.
        lse_a, lse_b: their log-sum-exp, fp32 ``[batch, heads, tokens]``, natural logarithm; ``-inf`` for rows without
            keys, whose output counts for nothing, whatever it holds.

    Returns:
        Output in the type of `out_a`, and fp32 log-sum-exp. A row without keys in both gives zeros and ``-inf``. The
        memory is one fp32 output and its two parts.

    Raises:
        ValueError: shapes that do not fit together.
    """
    batch, tokens, heads, _ = out_a.shape
    if out_a.shape != out_b.shape or not lse_a.shape == lse_b.shape == (batch, heads, tokens):
        raise ValueError(
            f"partial results to merge are outputs [batch, tokens, heads, head_dim] of one shape and log-sum-exps "
            f"{[batch, heads, tokens]}, got {list(out_a.shape)}, {list(out_b.shape)}, {list(lse_a.shape)} and "
            f"{list(lse_b.shape)}"
        )
    lse = torch.logaddexp(lse_a, lse_b)
    return (_weighted(out_a, lse_a, lse) + _weighted(out_b, lse_b, lse)).to(out_a.dtype), lse


def _weighted(out: Tensor, part: Tensor, whole: Tensor) -> Tensor:
    """A part's output times its share of the softmax, fp32."""
    share = torch.where(part == -torch.inf, 0.0, torch.exp(part - whole)).transpose(1, 2)[..., None]
    # A part without keys may hold anything, NaN too, and NaN times zero is NaN.
    return torch.where(share == 0.0, 0.0, out.float() * share)
