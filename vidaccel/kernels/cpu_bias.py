"""How the cpu backend hides keys from rows of a dense call, and how it moves memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

HIDDEN = -1e30
"""Bias of a pair that is not attended. Finite, since a block of rows that sees only -inf first is NaN in some versions;
every row of a run has a key, so that these weights end as exact zeros."""


def array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The memory of a tensor for NumPy to move, in one thread.

    PyTorch shares even a small copy among its threads, and on a machine with other work it then waits for one that is
    not running: on two busy cores that doubled the time of a call of the miniature's size.
    """
    return (tensor.detach().view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor.detach()).numpy()


@dataclass(frozen=True)
class Bias:
    """What hides keys from rows: fp32 ``[count, tiles, keys]``, or ``[count, 1, keys]`` with `tile` 0 for all rows."""

    values: Tensor
    tile: int
    rows: int

    @property
    def elements(self) -> int:
        """What `per_row` needs of its scratch buffer."""
        return self.values.numel() * self.tile

    def per_row(self, scratch: Tensor) -> Tensor:
        """As the operator adds it to the scores, in the scratch buffer's type: ``[count, 1, rows or 1, keys]``."""
        if not self.tile:
            return self.values.to(scratch.dtype)[:, None]
        count, tiles, keys = self.values.shape
        wide = scratch[: self.elements].view(count, tiles, self.tile, keys)
        np.copyto(array(wide), array(self.values[:, :, None]))
        return wide.view(count, 1, tiles * self.tile, keys)[:, :, : self.rows]
