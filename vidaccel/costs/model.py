"""How long a sparse attention call takes, as a share of the dense call's time, told from its plan.

The unit is a pair: the time in which dense attention computes one query-key pair of one head. A sparse call of H heads
with N x N pairs each, and the dense call that it replaces, take

    sparse = per_call + H * (per_pair * computed + per_range * ranges + per_tile * tiles + per_token * ordered)
    dense  = dense_call + H * N * N

pairs, where `computed` are a head's pairs with whole tiles and key blocks, `ranges` and `tiles` how many it has, and
`ordered` its tokens where the plan has an order. Overheads in pairs do not depend on the grid, so that coefficients
that were measured on one serve another. They are inversely proportional to the time of a pair, thus to head_dim.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.plan import AttentionPlan

DEFAULT_BLOCK = 128
"""Tile size in tokens where nothing says another."""
COEFFICIENTS = ("per_pair", "per_range", "per_tile", "per_token", "per_call", "dense_call")


@dataclass(frozen=True)
class Counts:
    """What a plan asks of a kernel, as means over its patterns, for `tokens` queries and keys.

    Args:
        tokens: of the sequence.
        computed: pairs of one head, with whole query tiles and key blocks, and extra keys.
        ranges, tiles: of one head.
        ordered: tokens that are moved into an order and back; 0 in the natural one.
    """

    tokens: int
    computed: float
    ranges: float
    tiles: float
    ordered: float = 0.0

    @classmethod
    def of(cls, plan: AttentionPlan | BlockMask) -> Counts:
        """Those of a plan that has a mask. Waits for a GPU where the mask is on one.

        Raises:
            ValueError: a plan without a mask.
        """
        plan = AttentionPlan(plan) if isinstance(plan, BlockMask) else plan
        mask = plan.mask
        if mask is None:
            raise ValueError("a dense plan (mask=None) has no tiles and no ranges to count")
        start, end = mask.ranges.long().unbind(1)
        keys = int(((end - start + mask.key_block - 1) // mask.key_block).sum()) * mask.key_block
        computed = keys * mask.query_block / mask.patterns
        computed += plan.extra.groups * mask.queries if plan.extra else 0
        ordered = mask.keys if plan.query_order is not None or plan.key_order is not None else 0
        return cls(mask.keys, computed, int(mask.offsets[-1, -1]) / mask.patterns, mask.tiles, ordered)

    @classmethod
    def expected(cls, tokens: int, density: float, block: int = DEFAULT_BLOCK) -> Counts:
        """The least that a plan of this density asks for: one range per tile, in the natural order."""
        tiles = -(-tokens // block)
        return cls(tokens, density * tokens**2, tiles, tiles)


@dataclass(frozen=True)
class CostModel:
    """Coefficients of the model above, JSON-ready.

    Args:
        per_pair: time of a pair in a long range, over that of dense attention; more than 1 for a slower kernel.
        per_range, per_tile: pairs that a key range and a query tile cost beside their own.
        per_token: pairs that a token of a plan with an order costs.
        per_call, dense_call: pairs that a sparse and a dense call cost before they compute anything.
        head_dim: that the overheads are told for.
        source: where the coefficients are from.

    Raises:
        ValueError: a bad value, such as a coefficient that is negative or not finite.
    """

    per_pair: float = 1.0
    per_range: float = 0.0
    per_tile: float = 0.0
    per_token: float = 0.0
    per_call: float = 0.0
    dense_call: float = 0.0
    head_dim: int = 128
    source: str = "given"

    def __post_init__(self) -> None:
        for name in COEFFICIENTS:
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
                raise ValueError(f"{name}={number!r} of a cost model is not a finite number of at least 0")
        if isinstance(self.head_dim, bool) or not isinstance(self.head_dim, int) or self.head_dim < 1:
            raise ValueError(f"head_dim={self.head_dim!r} of a cost model is not a whole number of at least 1")
        if not isinstance(self.source, str):
            raise ValueError(f"source={self.source!r} of a cost model is not a text")

    @classmethod
    def counted(cls) -> CostModel:
        """No overheads: the cost is the computed density."""
        return cls(source="counted pairs")

    @classmethod
    def measured(
        cls, device: torch.device | str, dtype: torch.dtype, heads: int, head_dim: int, block: int, tokens: int = 2048
    ) -> CostModel:
        """Fitted to times of `vidaccel.kernels.attention` on this machine; see `vidaccel.costs.measure.measured`."""
        from vidaccel.costs.measure import measured

        return measured(torch.device(device), dtype, heads, head_dim, block, tokens)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> CostModel:
        """The model that `to_dict` wrote.

        Raises:
            ValueError: a name that no model has, or a bad value.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"a cost model has no {unknown[0]!r}; it has {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return dataclasses.asdict(self)

    def cost(
        self, plan: AttentionPlan | BlockMask, layout: TokenLayout | None = None, *, heads: int | None = None,
        head_dim: int | None = None,
    ) -> float:  # fmt: skip
        """Modelled time of a plan over that of dense attention; 1 for a dense plan.

        Args:
            plan: of one call. Waits for a GPU where its mask is on one.
            layout: of the call, to make sure that the plan is for it.
            heads: of the call (with those of all batch rows), to count `per_call` and `dense_call`; without it the cost
                is that of one head among so many that these do not matter.
            head_dim: of the call, if it is not the model's.

        Raises:
            ValueError: the plan is for another number of tokens than `layout` has.
        """
        mask = plan if isinstance(plan, BlockMask) else plan.mask
        if mask is None:
            return 1.0
        if layout is not None and layout.tokens != mask.keys:
            raise ValueError(f"a plan for {mask.keys} tokens does not fit the grid {layout} of {layout.tokens} tokens")
        return self.share(Counts.of(plan), heads=heads, head_dim=head_dim)

    def by_tile(self, plan: AttentionPlan | BlockMask, head_dim: int | None = None) -> Tensor:
        """What each query tile of each pattern of a plan costs, in pairs: float64 ``[patterns, tiles]``, on the CPU.

        Args:
            plan: of one call; `per_call` is not part of it. Waits for a GPU where its mask is on one.
            head_dim: of the call, if it is not the model's.

        Raises:
            ValueError: a plan without a mask.
        """
        computed, ranges, ordered = _tile_counts(AttentionPlan(plan) if isinstance(plan, BlockMask) else plan)
        scale = self.head_dim / (head_dim or self.head_dim)
        extra = self.per_range * ranges + self.per_tile + self.per_token * ordered
        return self.per_pair * computed + scale * extra

    def by_head(self, plan: AttentionPlan | BlockMask, heads: int, head_dim: int | None = None) -> list[float]:
        """What each head of a plan costs, over what it costs dense; 1 for all of a dense plan.

        Args:
            plan: of one call of one batch row.
            heads: of the call.
            head_dim: of the call, if it is not the model's.

        Raises:
            ValueError: a plan for another number of heads.
        """
        mask = plan if isinstance(plan, BlockMask) else plan.mask
        if mask is None:
            return [1.0] * heads
        if mask.patterns not in (1, heads):
            raise ValueError(f"a plan of {mask.patterns} patterns is not one for {heads} heads")
        found: list[float] = (self.by_tile(plan, head_dim).sum(1) / float(mask.keys) ** 2).tolist()
        return found * (heads // len(found))

    def share(self, counts: Counts, *, heads: int | None = None, head_dim: int | None = None) -> float:
        """As `cost`, of what was counted."""
        scale = self.head_dim / (head_dim or self.head_dim)
        extra = self.per_range * counts.ranges + self.per_tile * counts.tiles + self.per_token * counts.ordered
        sparse, dense = self.per_pair * counts.computed + scale * extra, float(counts.tokens) ** 2
        if heads is None:
            return sparse / dense
        return (heads * sparse + scale * self.per_call) / (heads * dense + scale * self.dense_call)


def _tile_counts(plan: AttentionPlan) -> tuple[Tensor, Tensor, Tensor]:
    """Of each tile, as of `Counts`: computed pairs, ranges and ordered tokens, float64 ``[patterns, tiles]`` each."""
    mask = plan.mask
    if mask is None:
        raise ValueError("a dense plan (mask=None) has no tiles and no ranges to count")
    mask = mask.to("cpu")
    start, end = mask.ranges.long().unbind(1)
    blocks = (end - start + mask.key_block - 1) // mask.key_block
    upto = torch.nn.functional.pad(blocks.cumsum(0), (1, 0))
    keys = upto[mask.offsets.long()].diff(dim=1) * mask.key_block + (plan.extra.groups if plan.extra else 0)
    rows = torch.arange(mask.tiles + 1).mul_(mask.query_block).clamp_(max=mask.queries).diff().double()
    ordered = rows if plan.query_order is not None or plan.key_order is not None else torch.zeros_like(rows)
    # Keys of ranges count for whole tiles, extra keys for the queries that there are.
    computed = keys.double() * mask.query_block
    if plan.extra:
        computed -= plan.extra.groups * (mask.query_block - rows)
    return computed, mask.offsets.diff(dim=1).double(), ordered.expand_as(computed)
