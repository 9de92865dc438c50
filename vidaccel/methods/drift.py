"""Whether keys have changed since a plan was made: a signal that costs one pass over them and makes nothing wait.

The signal is ``|m' - m| / |m|`` over the means m of blocks of keys, all heads of a call together. It is copied to the
CPU while the device works on, and read at the next look, a step later: by then it has long arrived.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidaccel.planning import pool
from vidaccel.site import Dealt

BLOCK = 256
MEANS, SIGNAL = "drift_means", "drift_signal"


def check_drift(limit: Any, refresh: int) -> None:
    """Refuse what is no limit; None is one not given.

    Raises:
        ValueError: not a number above 0, or plans that are made anew at every step in any case.
    """
    number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    if limit is not None and not (number and limit > 0):
        raise ValueError(f"drift {limit!r} is not a number above 0")
    if limit is not None and refresh == 1:
        raise ValueError(f"drift {limit!r} can do nothing where every step has a new plan: give a refresh above 1")


def drifted(
    limit: float | None, key: Tensor, state: dict[str, Any], *, renew: bool, heads: Dealt | None = None
) -> bool:
    """Whether the keys of the last look had changed by more than `limit`; and look at these.

    Args:
        limit: None never looks.
        key: ``[batch, tokens, heads, head_dim]``.
        state: of the layer; keeps what it is measured against, and the signal that is on its way.
        renew: a plan is made now whatever the answer: these keys are what later ones are measured against.
        heads: those that are here, of keys whose other heads other processes have, and which all answer alike.
    """
    if limit is None:
        return False
    means = pool.block_mean(key, BLOCK)
    signal = state.pop(SIGNAL, None)
    moved = signal is not None and signal.value() > limit
    if renew or moved or MEANS not in state:
        state[MEANS] = means
    else:
        state[SIGNAL] = _Signal(_norm(means - state[MEANS], heads) / _norm(state[MEANS], heads).clamp(min=1e-30))
    return moved


def _norm(values: Tensor, heads: Dealt | None) -> Tensor:
    """Over all heads; where other processes have some, but for a factor that is the same for all values."""
    norm = values.norm()
    return norm if heads is None else heads.mean(norm.float().square()).sqrt()


class _Signal:
    """A number on its way to the CPU."""

    def __init__(self, number: Tensor) -> None:
        cuda = number.device.type == "cuda"
        self._number = number.to("cpu", non_blocking=True)
        self._event = torch.cuda.Event() if cuda else None
        if self._event is not None:
            self._event.record()

    def value(self) -> float:
        if self._event is not None:
            self._event.synchronize()
        return float(self._number)
