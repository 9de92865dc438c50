"""What attention costs the costliest of the processes that share it, by the cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vidaccel.costs import DEFAULT_BLOCK, CostModel, Counts
from vidaccel.eval.sizes import ModelSize
from vidaccel.parallel.deal import deal, plain
from vidaccel.plan import AttentionPlan
from vidaccel.scale.degrees import Degrees, tokens_of


@dataclass(frozen=True)
class Load:
    """Pairs of one pass, all layers together, in the time of dense ones.

    Args:
        greatest: of the process that has the most, layer by layer: all wait for it.
        mean: of all processes.
        plain: as `greatest`, with heads in contiguous slices.
    """

    greatest: float
    mean: float
    plain: float

    @property
    def imbalance(self) -> float:
        """How much longer the layers take than if they were even."""
        return self.greatest / self.mean

    @property
    def plain_imbalance(self) -> float:
        """The same with heads in contiguous slices."""
        return self.plain / self.mean


class Attention(Protocol):
    """Attention of all layers of a pass."""

    @property
    def density(self) -> float:
        """Share of the video pairs that is computed."""

    @property
    def no_ring(self) -> str | None:
        """Why it cannot go round a ring; None where it can."""

    def load(self, size: ModelSize, degrees: Degrees, costs: CostModel) -> Load:
        """What each process has of it."""


@dataclass(frozen=True)
class Dense:
    """Dense attention."""

    density: float = 1.0
    no_ring: str | None = None

    def load(self, size: ModelSize, degrees: Degrees, costs: CostModel) -> Load:
        """What each process has of it."""
        scale = costs.head_dim / size.head_dim
        return _even(size, degrees, 1.0, scale * costs.dense_call)


@dataclass(frozen=True)
class Even:
    """Sparse attention of which only the density is known: all heads and all stretches alike.

    Args:
        density: of its pairs.
        no_ring: why it cannot go round a ring; None where it can.
        block: tile size in tokens.
    """

    density: float
    no_ring: str | None = None
    block: int = DEFAULT_BLOCK

    def load(self, size: ModelSize, degrees: Degrees, costs: CostModel) -> Load:
        """What each process has of it."""
        counts = Counts.expected(size.layout.tokens, self.density, self.block)
        scale = costs.head_dim / size.head_dim
        return _even(size, degrees, costs.share(counts, head_dim=size.head_dim), scale * costs.per_call)


@dataclass(frozen=True)
class Planned:
    """Sparse attention by the plans of a static method.

    Args:
        plans: of each layer.
        density: video density, mean over them.
        no_ring: why it cannot go round a ring; None where it can.
    """

    plans: Sequence[AttentionPlan]
    density: float
    no_ring: str | None = None

    def load(self, size: ModelSize, degrees: Degrees, costs: CostModel) -> Load:
        """What each process has of it; heads are dealt by their costs, layer by layer."""
        call = costs.head_dim / size.head_dim * costs.per_call * degrees.ring
        made: dict[int, Load] = {}
        for plan in self.plans:
            if id(plan) not in made:
                made[id(plan)] = _dealt(_stretches(plan, size, degrees, costs), degrees, call)
        loads = [made[id(plan)] for plan in self.plans]
        return Load(*(sum(getattr(each, name) for each in loads) for name in ("greatest", "mean", "plain")))


def _even(size: ModelSize, degrees: Degrees, share: float, call: float) -> Load:
    """Of heads and rows that all cost `share` of dense ones."""
    tokens = size.layout.tokens
    video, text = size.layout.video_tokens, tokens - size.layout.video_tokens
    rows = sum(tokens_of(video, degrees.ranks)[: degrees.ulysses])
    # In a ring, text rows meet a rank's own video keys, and those of the text at its first rank.
    pairs = rows * tokens + (text * (rows + text) if degrees.ring > 1 else text * tokens)
    most = -(-size.heads // degrees.ulysses)
    greatest = most * share * pairs + degrees.ring * call
    mean = size.heads * share * float(tokens) ** 2 / degrees.ranks + degrees.ring * call
    return Load(greatest * size.layers, mean * size.layers, greatest * size.layers)


def _stretches(plan: AttentionPlan, size: ModelSize, degrees: Degrees, costs: CostModel) -> Tensor:
    """Pairs of each stretch of the video and each head: float64 ``[ring, heads]``."""
    layout = size.layout
    if plan.mask is None:
        rows = torch.full((1, layout.tokens), float(layout.tokens), dtype=torch.float64)
    else:
        tiles = costs.by_tile(plan, size.head_dim)
        rows = tiles.repeat_interleave(plan.mask.query_block, dim=1)[:, : layout.tokens] / plan.mask.query_block
        # The last tile costs what it does however few rows it has.
        rows *= (tiles.sum(1) / rows.sum(1))[:, None]
    text = rows[:, : layout.video_start].sum(1) + rows[:, layout.video_end :].sum(1)
    sizes = tokens_of(layout.video_tokens, degrees.ranks)
    spans = [sum(sizes[at : at + degrees.ulysses]) for at in range(0, degrees.ranks, degrees.ulysses)]
    video = [each.sum(1) for each in rows[:, layout.video_start : layout.video_end].split(spans, dim=1)]
    return torch.stack([each + text / degrees.ring for each in video]).expand(-1, size.heads)


def _dealt(stretches: Tensor, degrees: Degrees, call: float) -> Load:
    """One layer: its heads dealt by what they cost in all stretches together."""
    whole: list[float] = stretches.sum(0).tolist()
    greatest, simple = (
        max(float(stretches[:, list(heads)].sum(1).max()) for heads in dealt)
        for dealt in (deal(whole, degrees.ulysses), plain(len(whole), degrees.ulysses))
    )
    return Load(greatest + call, sum(whole) / degrees.ranks + call, simple + call)
