"""How far two steps' tensors are apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Mean = Callable[[Tensor], Tensor]
"""The mean over all elements, as `vidaccel.caching.base.Signals.mean`."""


def here(values: Tensor) -> Tensor:
    """The mean over the elements that this process has."""
    return values.mean()


def mean_size(values: Tensor, mean: Mean = here) -> Tensor:
    """Mean absolute value over all elements, never below the smallest normal number, so that one may divide by it."""
    return mean(values.abs()).clamp_min_(torch.finfo(values.dtype).tiny)


def relative_change(new: Tensor, old: Tensor, mean: Mean = here) -> Tensor:
    """``mean|new - old| / mean|old|``, a tensor of one number and the arguments' type; 0 where nothing changed, NaN
    where one has NaN."""
    return mean((new - old).abs_()) / mean_size(old, mean)
