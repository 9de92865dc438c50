"""The custom ops that a patched layer calls, so that torch.compile sees one opaque call and never recompiles for it.

`block_sparse` takes a plan that is known beforehand, as tensors. `attention` finds out what to do at run time through a
handle, also a tensor: for plans that are made from queries and keys.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Protocol

import torch
from torch import Tensor

from vidaccel import kernels
from vidaccel.mask import BlockMask
from vidaccel.plan import AttentionPlan


class Attender(Protocol):
    """What a handle stands for."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None) -> Tensor:
        """The attention output, ``[batch, tokens, heads, head_dim]``."""


# The one process-wide registry: weak, so that it keeps nothing alive. Ids are never reused.
_ATTENDERS: weakref.WeakValueDictionary[int, Attender] = weakref.WeakValueDictionary()
_IDS = itertools.count()
# Plans by the address of their offsets: as long as a plan lives, no other tensor has that address.
_PLANS: weakref.WeakValueDictionary[int, AttentionPlan] = weakref.WeakValueDictionary()


def handle(attender: Attender) -> Tensor:
    """A handle for `attention`: int64 ``[1]`` on the CPU, valid as long as `attender` lives."""
    number = next(_IDS)
    _ATTENDERS[number] = attender
    return torch.tensor([number])


@torch.library.custom_op("vidaccel::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, handle: Tensor, key_lengths: Tensor | None = None) -> Tensor:
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
    return attender.attend(query, key, value, key_lengths).contiguous()


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, handle: Tensor, key_lengths: Tensor | None = None) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("vidaccel::block_sparse", mutates_args=())
def block_sparse(
    query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None, backend: str, offsets: Tensor,
    ranges: Tensor, query_order: Tensor | None, key_order: Tensor | None, query_block: int, key_block: int,
) -> Tensor:  # fmt: skip
    """`vidaccel.kernels.attention` with the plan as tensors, as `arguments` lists them: contiguous output alone.

    Raises:
        ValueError: as `vidaccel.kernels.attention`.
    """
    plan = _PLANS.get(offsets.data_ptr())
    if plan is None or plan.mask is None or plan.mask.ranges.data_ptr() != ranges.data_ptr():
        # A copy that some compiler made: what backends remember of a plan is then made anew in each call.
        mask = BlockMask(offsets, ranges, query_block, key_block, query.shape[1], key.shape[1])
        plan = AttentionPlan(mask, query_order, key_order)
    out, _ = kernels.attention(query, key, value, plan, key_lengths=key_lengths, backend_name=backend)
    return out.contiguous()


@block_sparse.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None, backend: str, offsets: Tensor,
    ranges: Tensor, query_order: Tensor | None, key_order: Tensor | None, query_block: int, key_block: int,
) -> Tensor:  # fmt: skip
    return query.new_empty(query.shape)


Arguments = tuple[Tensor, Tensor, Tensor | None, Tensor | None, int, int]


def arguments(plan: AttentionPlan) -> Arguments:
    """The last arguments of `block_sparse` for a plan with a mask and without extra keys.

    The op recognises the plan by these tensors for as long as it lives.
    """
    mask = plan.mask
    assert mask is not None and plan.extra is None
    _PLANS[mask.offsets.data_ptr()] = plan
    return mask.offsets, mask.ranges, plan.query_order, plan.key_order, mask.query_block, mask.key_block
