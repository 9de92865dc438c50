"""One plan of two kinds of heads: static ones, and those that a dynamic method has planned for."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.patterns import Pattern, plan_of
from vidaccel.plan import AttentionPlan

KEPT = 256


@functools.lru_cache(KEPT)
def static_plan(patterns: tuple[Pattern, ...], layout: TokenLayout, block: int, device: torch.device) -> AttentionPlan:
    """The plan of static heads on a device; made once, as copying it to a GPU in each call would wait for it."""
    return plan_of(patterns, layout, block).to(device)


@functools.lru_cache(KEPT)
def _full(layout: TokenLayout, block: int, device: torch.device) -> AttentionPlan:
    """Everything, as a mask."""
    return AttentionPlan(BlockMask.full(layout.tokens, layout.tokens, block, block).to(device))


@dataclass(frozen=True, eq=False)
class Lanes:
    """Which of two plans each lane of a layer is from, and where it stands there.

    Args:
        static: bool ``[batch * heads]``, of the static plan.
        place: int64 ``[batch * heads]``: static heads are counted within a batch row, choosing ones over all of them.
    """

    static: Tensor
    place: Tensor

    def index(self, static: int, chosen: int) -> Tensor:
        """Each lane's row among `static` rows of the static plan and, after them, `chosen` ones of the other."""
        return torch.where(self.static, self.place % static, static + self.place % chosen)


@functools.lru_cache(KEPT)
def lanes_of(heads: tuple[int, ...], every: int, batch: int, device: torch.device) -> Lanes:
    """The lanes of a layer of `every` heads of which `heads` choose; made once for a device."""
    rest = [head for head in range(every) if head not in heads]
    place = [rest.index(head) if head in rest else row * len(heads) + heads.index(head)
             for row in range(batch) for head in range(every)]  # fmt: skip
    static = torch.tensor([head in rest for head in range(every)]).repeat(batch)
    return Lanes(static.to(device), torch.tensor(place).to(device))


@functools.lru_cache(KEPT)
def _heads_on(heads: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(heads, dtype=torch.int64, device=device)


def of_heads(
    heads: tuple[int, ...], query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The states ``[batch, tokens, heads, head_dim]`` of some heads; as they are where those are all."""
    if len(heads) == query.shape[2]:
        return query, key, value
    index = _heads_on(heads, query.device)
    return query.index_select(2, index), key.index_select(2, index), value.index_select(2, index)


def joined(
    patterns: tuple[Pattern, ...], heads: tuple[int, ...], own: AttentionPlan, layout: TokenLayout, block: int,
    batch: int, device: torch.device,
) -> AttentionPlan:  # fmt: skip
    """The plan of a layer whose heads `heads` have the lanes of `own`, and whose others have their pattern.

    Where `own` has groups of keys, static lanes have as many, of equal lengths in their order. Nothing waits.

    Args:
        patterns: of all heads; those of `heads` do not matter.
        heads: at least one; rising.
        own: of a method that saw these heads alone; without extra keys. Its lanes are 1, heads, or batch * heads.
        layout, block: of both plans.
        batch, device: of the call.
    """
    assert own.extra is None
    if len(heads) == len(patterns):
        return own
    rest = tuple(each for head, each in enumerate(patterns) if head not in heads)
    static = static_plan(rest, layout, block, device)
    if static.mask is None:
        if own.mask is None:
            return own
        static = _full(layout, block, device)
    own = _full(layout, block, device) if own.mask is None else own
    lanes = lanes_of(heads, len(patterns), batch, device)
    return AttentionPlan(
        _mask(static, own, lanes, batch * len(rest), batch * len(heads)),
        _rows(static.query_order, own.query_order, lanes, layout.tokens),
        _rows(static.key_order, own.key_order, lanes, layout.tokens),
        key_groups=_groups(own, lanes, layout.tokens),
    )


def _mask(static: AttentionPlan, own: AttentionPlan, lanes: Lanes, static_lanes: int, own_lanes: int) -> BlockMask:
    masks = [plan.mask for plan in (static, own) if plan.mask is not None]
    first, second = masks
    # A mask made on a GPU has room for all its lanes together; each of them is taken as often as the others.
    room = static_lanes * first.most_ranges + own_lanes // second.patterns * len(second.ranges)
    return BlockMask.join(masks, lanes.index(first.patterns, second.patterns), room)


def _rows(static: Tensor | None, own: Tensor | None, lanes: Lanes, tokens: int) -> Tensor | None:
    """An order for each lane; None where all are natural."""
    if static is None and own is None:
        return None
    natural = torch.arange(tokens, dtype=torch.int32, device=lanes.place.device)[None]
    first, second = (natural if each is None else each for each in (static, own))
    return torch.cat([first, second])[lanes.index(len(first), len(second))]


def _groups(own: AttentionPlan, lanes: Lanes, tokens: int) -> Tensor | None:
    if own.key_groups is None:
        return None
    count = own.key_groups.shape[1] - 1
    even = torch.arange(count + 1, device=own.key_groups.device) * tokens // count
    return torch.cat([even.int()[None], own.key_groups])[lanes.index(1, len(own.key_groups))]
