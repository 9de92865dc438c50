"""The one custom op that a patched attention layer calls.

It is opaque to torch.compile and finds out what to do at run time through a handle, a tensor, so that a compiled block
is one graph that never recompiles over layers and steps.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Protocol

import torch
from torch import Tensor


class Attender(Protocol):
    """What a handle stands for."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention output, ``[batch, tokens, heads, head_dim]``."""


# The one process-wide registry: weak, so that it keeps nothing alive, and ids are never reused.
_ATTENDERS: weakref.WeakValueDictionary[int, Attender] = weakref.WeakValueDictionary()
_IDS = itertools.count()


def handle(attender: Attender) -> Tensor:
    """A handle for `attention`: int64 ``[1]`` on the CPU, valid as long as `attender` lives."""
    number = next(_IDS)
    _ATTENDERS[number] = attender
    return torch.tensor([number])


@torch.library.custom_op("vidaccel::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, handle: Tensor) -> Tensor:
    """Attention as the object behind `handle` decides: ``[batch, tokens, heads, head_dim]`` in and out, contiguous.

    Raises:
        RuntimeError: the object is gone.
    """
    attender = _ATTENDERS.get(int(handle))
    if attender is None:
        raise RuntimeError(
            "this attention layer belongs to a vidaccel session that no longer exists; call disable, then enable, on "
            "the pipeline that owns it now"
        )
    return attender.attend(query, key, value).contiguous()


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, handle: Tensor) -> Tensor:
    return query.new_empty(query.shape)
