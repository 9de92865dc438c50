"""The heads of a layer that choose their keys, and which of them are here where a clip is split over processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

from torch import Tensor

from vidaccel.methods.joined import of_heads
from vidaccel.plan import AttentionPlan
from vidaccel.site import Dealt, Site

Each = TypeVar("Each")


class Choosing:
    """Some heads of a layer, as a dynamic method sees them: as though there were no others.

    Where a clip is split, each process plans for those that it has, and they agree as on all heads of a layer. Where a
    process would have none, it could not join in that: then each gets the queries, keys and values of all of them,
    which are few, and all make the same plan.

    Args:
        heads: those that choose, by their numbers in the model; rising.
        site: of the call.
    """

    def __init__(self, heads: tuple[int, ...], site: Site) -> None:
        self.heads = heads
        self._dealt = site.heads
        self._whole = site

    @cached_property
    def here(self) -> tuple[int, ...]:
        """Where they stand among the heads of this process; rising."""
        return self.heads if self._dealt is None else _places(self._dealt.own, self.heads)

    @cached_property
    def site(self) -> Site:
        """Of the call, with these heads alone."""
        return replace(self._whole, heads=None if self._gathers else self._deal)

    def of(self, every: Sequence[Each]) -> tuple[Each, ...]:
        """Of what all heads of the model have, that of all heads here."""
        return tuple(every) if self._dealt is None else tuple(every[head] for head in self._dealt.own)

    def states(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the method sees of the states ``[batch, tokens, heads here, head_dim]``."""
        own = of_heads(self.here, query, key, value)
        if not self._gathers:
            return own
        assert self._deal is not None
        query, key, value = (self._deal.gather(each.contiguous(), 2) for each in own)
        return query, key, value

    def cut(self, plan: AttentionPlan, batch: int) -> AttentionPlan:
        """Of what the method planned for what it saw, the plan of those that are here, of which there are some."""
        if not self._gathers:
            return plan
        assert self._deal is not None
        return plan.of_heads(self._deal.own, len(self.heads), batch)

    @cached_property
    def _deal(self) -> Dealt | None:
        """Which of them each process has, numbered among themselves."""
        if self._dealt is None:
            return None
        deal = tuple(_places(self.heads, own) for own in self._dealt.deal)
        return Dealt(deal, self._dealt.rank, self._dealt.ranks, self._dealt.every)

    @property
    def _gathers(self) -> bool:
        return self._deal is not None and not all(self._deal.deal)


def _places(among: tuple[int, ...], heads: tuple[int, ...]) -> tuple[int, ...]:
    """Where those of `heads` that are in `among` stand there."""
    return tuple(place for place, head in enumerate(among) if head in heads)
