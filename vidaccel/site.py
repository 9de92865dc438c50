"""Where an attention call happens, and what an observer sees of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.plan import AttentionPlan


class Ranks(Protocol):
    """Processes that compute one clip, as one of them sees them: a `vidaccel.parallel.split.Group`."""

    @property
    def size(self) -> int:
        """How many there are."""

    def gather(self, tensor: Tensor, dim: int, sizes: Sequence[int] | None = None) -> Tensor:
        """The tensors of all of them behind each other."""

    def mean(self, tensor: Tensor) -> Tensor:
        """Their mean, the same on all."""


@dataclass(frozen=True, eq=False)
class Dealt:
    """The heads of one attention call where its clip is split over processes, each of which has some of them.

    Args:
        deal: the heads of each rank, ascending.
        rank: of this process among those with other heads.
        ranks: those processes.
        every: all processes of the clip; under a ring several have the same heads.
    """

    deal: tuple[tuple[int, ...], ...]
    rank: int
    ranks: Ranks
    every: Ranks

    @property
    def own(self) -> tuple[int, ...]:
        """The heads that are here, as they are numbered in the model, in the order of the call's tensors."""
        return self.deal[self.rank]

    @cached_property
    def total(self) -> int:
        """Heads of the model."""
        return sum(map(len, self.deal))

    @cached_property
    def places(self) -> Tensor:
        """Where each head of the model stands when those of all ranks follow each other: int64 ``[total]``."""
        return torch.tensor([head for heads in self.deal for head in heads]).argsort()

    @cached_property
    def plain(self) -> bool:
        """Whether they then stand in the model's order already."""
        return bool((self.places.diff() == 1).all())

    def gather(self, tensor: Tensor, dim: int) -> Tensor:
        """The values of all heads, in the model's order, on every rank.

        Args:
            tensor: of the heads here, in their order.
            dim: where the heads are; of the rest all ranks have the same shape.
        """
        return self.ordered(self.ranks.gather(tensor, dim, [len(heads) for heads in self.deal]), dim)

    def here(self, tensor: Tensor, dim: int) -> Tensor:
        """Of the values of all heads, those of the heads here, in their order."""
        return tensor.index_select(dim, self._on(tensor.device)[1])

    def ordered(self, tensor: Tensor, dim: int) -> Tensor:
        """Values of all heads in the model's order, of those that stand rank by rank."""
        return tensor if self.plain else tensor.index_select(dim, self._on(tensor.device)[0])

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`places` and `own` on a device: copied once, as a copy to a GPU would wait for it."""
        if device not in self._copies:
            self._copies[device] = self.places.to(device), torch.tensor(self.own, device=device)
        return self._copies[device]

    @cached_property
    def _copies(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over all processes of the clip, fp32, with the same bits on each.

        Ranks may differ by one in their heads: for a mean over heads give sums, and divide by the mean of the counts.
        """
        return self.every.mean(tensor)


@dataclass(frozen=True)
class Site:
    """One self-attention call of one run.

    Args:
        layer: index of the attention layer within its transformer, from 0.
        layers: attention layers of that transformer.
        step: denoising step, from 0, counted over all experts.
        steps: steps of this run, None where only a bare transformer is known.
        branch: the classifier-free guidance pass, such as "cond" and "uncond".
        expert: name of the transformer in its pipeline, such as "transformer" and "transformer_2".
        layout: the token grid of this call.
        heads: which heads the call has, where others are with other processes; None where all are here.
    """

    layer: int
    layers: int
    step: int
    steps: int | None
    branch: str
    expert: str
    layout: TokenLayout
    heads: Dealt | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class Observed:
    """One attention call as an observer sees it, once its output is there. Its tensors are the run's own: to read only.

    Args:
        site: where it happened.
        plan: what ran; a dense call has a plan without a mask.
        query, key: ``[batch, tokens, heads, head_dim]``, after normalisation and position embeddings.
        value: as the key.
        key_lengths: int ``[batch]``, valid keys of each row; None where all are.
        how: how the output came about, in words.
        heads: what the method chose for each head, see `vidaccel.methods.Method.heads_have`; None where it chose none.
    """

    site: Site
    plan: AttentionPlan
    query: Tensor
    key: Tensor
    value: Tensor
    key_lengths: Tensor | None
    how: str
    heads: tuple[Mapping[str, Any], ...] | None = None


Observer = Callable[[Observed], None]
