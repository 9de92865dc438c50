"""How the output projection of a layer weighs the outputs of its heads."""

from __future__ import annotations

import torch
from torch import Tensor


def factors_of(weight: Tensor, heads: int) -> Tensor:
    """R of the QR decomposition of each head's columns: the length of R o is that of the head's part of the output.

    Args:
        weight: ``[out, heads * head_dim]`` of the output projection.

    Returns:
        fp32 ``[heads, width, head_dim]``, width the smaller of out and head_dim.
    """
    columns = weight.detach().float().unflatten(1, (heads, -1)).transpose(0, 1)
    factors: Tensor = torch.linalg.qr(columns, mode="r").R
    return factors
