"""What one attention call computes, as data: a mask, orders of the tokens, and keys that stand for groups of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask

__all__ = ["AttentionPlan", "BlockMask", "Density", "ExtraKeys", "index_of"]

CHUNK = 3 << 18
"""Ranges that are counted at a time, at about 40 bytes each."""


@dataclass(frozen=True)
class Density:
    """Share of query-key pairs that a plan computes, averaged over its patterns, by the three names of the docs."""

    density: float
    """Attended over all pairs, text included."""
    video_density: float
    """Attended over video-video pairs: what is requested, tabled and compared."""
    computed_density: float
    """As `density`, with the padding of the last query tile and of every range to whole key blocks, and extra keys."""


@dataclass(frozen=True, eq=False)
class ExtraKeys:
    """More keys and values that enter the same softmax, such as the means of the groups that a plan skips.

    Args:
        key, value: ``[batch, groups, heads, head_dim]``, of the query's type and device; finite, also of groups that no
            tile sees, such as empty ones.
        bias: fp32 ``[patterns, tiles, groups]`` on the tiles of the plan's mask, added to the scaled scores (natural
            logarithm: a group of n tokens stands for them with ``log(n)``); ``-inf`` where a tile does not see a group.

    Raises:
        ValueError: shapes or types that do not fit together.
    """

    key: Tensor
    value: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        if self.key.ndim != 4 or self.key.shape != self.value.shape:
            raise ValueError(
                f"extra keys and values are both [batch, groups, heads, head_dim], got {list(self.key.shape)} and "
                f"{list(self.value.shape)}"
            )
        if self.bias.dtype != torch.float32 or self.bias.ndim != 3 or self.bias.shape[2] != self.groups:
            raise ValueError(
                f"the bias of extra keys is float32 [patterns, tiles, {self.groups}], got {self.bias.dtype} "
                f"{list(self.bias.shape)}"
            )

    @property
    def groups(self) -> int:
        """Extra keys of a head."""
        return self.key.shape[1]


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """What one attention call computes.

    The plan's sequence is an order of the tokens: position ``i`` is token ``order[i]``. The mask speaks of positions;
    outputs go back to the tokens' own places. Keys that are padding come last in a key order.

    Args:
        mask: the key ranges; None is dense attention.
        query_order, key_order: int32 ``[rows, tokens]``, each row a permutation; rows is 1, heads or batch * heads
            (batch row slowest). None is the natural order.
        extra: more keys in the same softmax.
        key_groups: int32 ``[rows, groups + 1]``, where groups of like keys start in the key order, the last at its end:
            what may stand for skipped keys. None: every `key_block` keys of the mask are a group.
        notes: what the method wants the user to know, shown once in the summary.

    Raises:
        ValueError: parts that do not fit together.
    """

    mask: BlockMask | None = None
    query_order: Tensor | None = None
    key_order: Tensor | None = None
    extra: ExtraKeys | None = None
    key_groups: Tensor | None = None
    notes: tuple[str, ...] = ()
    # What was counted of this plan, by grid: one that serves several steps, or all, is counted once.
    _lanes: dict[TokenLayout, Tensor] = field(default_factory=dict, init=False, repr=False)
    _shares: dict[TokenLayout, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        parts = (self.query_order, self.key_order, self.extra, self.key_groups)
        if self.mask is None:
            if any(part is not None for part in parts):
                raise ValueError("a dense plan (mask=None) has no orders, no extra keys and no groups")
            return
        for name, order, tokens in (
            ("query_order", self.query_order, self.mask.queries), ("key_order", self.key_order, self.mask.keys),
        ):  # fmt: skip
            if order is not None and (order.dtype != torch.int32 or order.ndim != 2 or order.shape[1] != tokens):
                raise ValueError(f"{name} is int32 [rows, {tokens}], got {order.dtype} {list(order.shape)}")
        groups = self.key_groups
        if groups is not None and (groups.dtype != torch.int32 or groups.ndim != 2 or groups.shape[1] < 2):
            raise ValueError(f"key_groups is int32 [rows, groups + 1], got {groups.dtype} {list(groups.shape)}")
        if self.extra is not None and self.extra.bias.shape[1] != self.mask.tiles:
            raise ValueError(f"extra keys have a bias for {self.extra.bias.shape[1]} tiles, the mask {self.mask.tiles}")

    @property
    def plain(self) -> bool:
        """Whether the mask is all there is: no orders and no extra keys."""
        return self.query_order is None and self.key_order is None and self.extra is None

    def to(self, device: torch.device | str) -> AttentionPlan:
        """The same plan on `device`; the plan itself if it is there."""
        device = torch.device(device)
        extra = self.extra and (self.extra.key, self.extra.value, self.extra.bias)
        mask, tensors = self.mask, (self.query_order, self.key_order, self.key_groups, *(extra or ()))
        if mask is None or all(each is None or each.device == device for each in (mask.offsets, *tensors)):
            return self
        query_order, key_order, groups = (None if each is None else each.to(device) for each in tensors[:3])
        moved = ExtraKeys(*(each.to(device) for each in extra)) if extra else None
        return AttentionPlan(mask.to(device), query_order, key_order, moved, groups, self.notes)

    def of_heads(self, heads: Sequence[int], total: int, batch: int = 1) -> AttentionPlan:
        """The plan of some of its heads, in this order.

        Args:
            heads: which.
            total: heads that this plan is for; its parts have one pattern for all of them, or for each, or for each in
                each batch row.
            batch: rows of the call.

        Raises:
            ValueError: parts of another number of patterns, or with extra keys.
        """
        if self.mask is None:
            return self
        parts = (self.mask.offsets, self.query_order, self.key_order, self.key_groups)
        fit = all(part is None or len(part) in (1, total, batch * total) for part in parts)
        if self.extra is not None or not fit:
            raise ValueError(f"only a plan without extra keys, with one pattern or one for each of {total} heads, can "
                             "be cut to some of them")  # fmt: skip

        def index(part: Tensor) -> Tensor:
            lanes = (row + head for row in range(0, len(part), total) for head in heads)
            return torch.tensor([0] if len(part) == 1 else list(lanes), device=part.device)

        orders = (None if part is None else part[index(part)] for part in parts[1:])
        queries, keys, groups = orders
        return AttentionPlan(self.mask.pick(index(parts[0])), queries, keys, key_groups=groups, notes=self.notes)

    def density(self, layout: TokenLayout) -> Density:
        """The three densities of this plan over `layout`, from the ranges themselves. Waits for a GPU."""
        return Density(*self.densities(layout).tolist())

    def densities(self, layout: TokenLayout) -> Tensor:
        """What `density` says, in its order, as float64 ``[3]`` on the plan's device: nothing waits."""
        if layout not in self._shares:
            self._shares[layout] = self._counted(layout)
        return self._shares[layout]

    def video_densities(self, layout: TokenLayout) -> Tensor:
        """The share of the video-video pairs that each pattern computes: float64 ``[patterns]`` on the plan's device.

        Patterns are those of the mask, or of the orders where they have more; one where all heads share. Nothing waits.
        """
        if layout not in self._lanes:
            self._lanes[layout] = torch.ones(1, dtype=torch.float64) if self.mask is None else _video(self, layout)
        return self._lanes[layout]

    def _counted(self, layout: TokenLayout) -> Tensor:
        if self.mask is None:
            return torch.ones(3, dtype=torch.float64)
        pairs, computed = _all_pairs(self.mask)
        if self.extra is not None:
            computed = computed + self.extra.groups / self.mask.keys
        return torch.stack([pairs, self.video_densities(layout).mean(), computed])


def index_of(order: Tensor, states: Tensor) -> Tensor:
    """An order of the tokens as an index for `gather` and `scatter_` along them.

    Args:
        order: int32 ``[rows, tokens]``, rows 1, heads or batch * heads.
        states: ``[batch, tokens, heads, width]``.

    Returns:
        int64, of the states' shape; nothing is copied along batch and width.
    """
    rows = order.view(-1, 1 if len(order) == 1 else states.shape[2], states.shape[1])
    return rows.transpose(1, 2)[..., None].long().expand(states.shape)


def _all_pairs(mask: BlockMask) -> tuple[Tensor, Tensor]:
    """Shares of all query-key pairs: what the ranges name, and with whole tiles and ranges of whole key blocks."""
    block = mask.key_block

    def keys(_: Tensor, ranges: Tensor) -> Tensor:
        length = ranges[:, 1] - ranges[:, 0]
        return torch.stack([length, (length + block - 1) // block * block])

    named, padded = _by_tile(mask, keys).view(2, mask.patterns, mask.tiles)
    pairs = (_edges(mask).diff() * named).sum(), padded.sum() * mask.query_block
    whole = mask.patterns * mask.queries * mask.keys
    return pairs[0].double() / whole, pairs[1].double() / whole


def _video(plan: AttentionPlan, layout: TokenLayout) -> Tensor:
    """Share of the video-video pairs that each pattern of a plan keeps."""
    mask = plan.mask
    assert mask is not None
    device = mask.ranges.device
    rows = _video_before(plan.query_order, mask.queries, layout, device)[:, _edges(mask)].diff(dim=1)
    before = _video_before(plan.key_order, mask.keys, layout, device)
    # A shared mask with an order per head is a lane per order: each has its own text in its ranges.
    times = torch.arange(max(1, len(before) // mask.patterns), device=device)[:, None]

    def columns(pattern: Tensor, ranges: Tensor) -> Tensor:
        lane = (pattern + mask.patterns * times).remainder_(len(before))
        return before[lane, ranges[:, 1]].sub_(before[lane, ranges[:, 0]])

    keys = _by_tile(mask, columns)
    lane = torch.arange(max(mask.patterns, len(rows), len(before)), device=device)
    pairs = (rows[lane % len(rows)] * keys[lane % len(keys)]).sum(1)
    return pairs.double() / layout.video_tokens**2


def _edges(mask: BlockMask) -> Tensor:
    """Where tiles start, and the end of the last: int64 ``[tiles + 1]``."""
    return torch.arange(mask.tiles + 1, device=mask.ranges.device).mul_(mask.query_block).clamp_(max=mask.queries)


def _by_tile(mask: BlockMask, count: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sums of a count over the ranges of each tile, some ranges at a time: int64 ``[times * patterns, tiles]``.

    Args:
        mask: whose ranges.
        count: of some ranges, int ``[times, ranges]``: given their patterns, int64 ``[ranges]``, and themselves.
    """
    ends, total = mask.offsets[:, -1].contiguous(), mask.offsets.new_zeros((), dtype=torch.int64)
    # Once where there are none, too, for the shape.
    for first in range(0, max(1, len(mask.ranges)), CHUNK):
        ranges = mask.ranges[first : first + CHUNK]
        place = torch.arange(first, first + len(ranges), dtype=torch.int32, device=ranges.device)
        pattern = torch.searchsorted(ends, place, right=True).clamp_(max=mask.patterns - 1)
        # Ranges of a tile stand together: its sum is a difference of running sums, exact, in any order of the work.
        upto = torch.nn.functional.pad(count(pattern, ranges).cumsum(1), (1, 0))
        total = total + upto[:, (mask.offsets - first).clamp_(0, len(ranges))].diff(dim=2)
    return total.flatten(0, 1)


def _video_before(order: Tensor | None, tokens: int, layout: TokenLayout, device: torch.device) -> Tensor:
    """Video tokens before each position: int32 ``[rows, tokens + 1]``."""
    token = torch.arange(tokens, device=device)[None] if order is None else order.to(device)
    before = torch.zeros(len(token), tokens + 1, dtype=torch.int32, device=device)
    is_video = (token >= layout.video_start) & (token < layout.video_end)
    torch.cumsum(is_video, 1, dtype=torch.int32, out=before[:, 1:])
    return before
