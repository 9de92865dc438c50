"""How far two steps' tensors are apart."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_size(values: Tensor) -> Tensor:
    """Mean absolute value over all elements, never below the smallest normal number, so that one may divide by it."""
    return values.abs().mean().clamp_min_(torch.finfo(values.dtype).tiny)


def relative_change(new: Tensor, old: Tensor) -> Tensor:
    """``mean|new - old| / mean|old|``, a tensor of one number and the arguments' type; 0 where nothing changed, NaN
    where one has NaN."""
    return (new - old).abs_().mean() / mean_size(old)
