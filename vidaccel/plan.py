"""What one attention call computes, as data: key ranges per query tile, never a tokens x tokens mask."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout


@dataclass(frozen=True, eq=False)
class BlockMask:
    """The key ranges that each tile of query rows attends to, in CSR form.

    Tile ``t`` holds query rows ``[t * query_block, min((t + 1) * query_block, queries))``. Pattern ``p`` of tile ``t``
    attends to the keys of ``ranges[offsets[p, t]:offsets[p, t + 1]]``, each a sorted, disjoint, non-empty
    ``[start, end)``. Ranges are token-exact: what they name is attended, nothing else.

    Args:
        offsets: int32 ``[patterns, tiles + 1]``, positions in `ranges`; patterns is 1 (all heads share), heads, or
            batch * heads (batch row slowest).
        ranges: int32 ``[count, 2]``.
        query_block, key_block: tile sizes in tokens; `key_block` is the granularity that the plan was made with.
        queries, keys: sequence lengths in tokens.

    Raises:
        ValueError: shapes or types that do not fit together; `validate` checks the contents.
    """

    offsets: Tensor
    ranges: Tensor
    query_block: int
    key_block: int
    queries: int
    keys: int
    _copies: dict[torch.device, BlockMask] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if min(self.query_block, self.key_block, self.queries, self.keys) < 1:
            raise ValueError("blocks and lengths of a BlockMask are at least one token")
        if self.offsets.dtype != torch.int32 or self.ranges.dtype != torch.int32:
            raise ValueError(f"a BlockMask is int32, got {self.offsets.dtype} and {self.ranges.dtype}")
        if self.offsets.ndim != 2 or self.offsets.shape[1] != self.tiles + 1:
            raise ValueError(f"offsets are [patterns, {self.tiles + 1}], got {list(self.offsets.shape)}")
        if self.ranges.ndim != 2 or self.ranges.shape[1] != 2:
            raise ValueError(f"ranges are [count, 2], got {list(self.ranges.shape)}")

    @classmethod
    def from_blocks(cls, blocks: Tensor, query_block: int, key_block: int, queries: int, keys: int) -> BlockMask:
        """Merge adjacent blocks of a boolean map ``[patterns, query blocks, key blocks]`` into ranges.

        Memory is a few bytes per block. The last range of a row is cut at `keys`.
        """
        expected = (-(-queries // query_block), -(-keys // key_block))
        if blocks.ndim != 3 or tuple(blocks.shape[1:]) != expected or blocks.dtype != torch.bool:
            raise ValueError(
                f"a block map is bool [patterns, {expected[0]}, {expected[1]}], got {blocks.dtype} {list(blocks.shape)}"
            )
        edge = torch.nn.functional.pad(blocks, (1, 1))
        starts = (edge[..., 1:-1] & ~edge[..., :-2]).nonzero()
        ends = (edge[..., 1:-1] & ~edge[..., 2:]).nonzero()
        ranges = torch.stack([starts[:, 2] * key_block, (ends[:, 2] + 1) * key_block], dim=1).clamp_(max=keys)
        row = starts[:, 0] * expected[0] + starts[:, 1]
        counts = torch.bincount(row, minlength=blocks.shape[0] * expected[0])
        ends_of_rows = counts.cumsum(0).view(blocks.shape[0], -1)
        first = torch.cat([ends_of_rows.new_zeros(1), ends_of_rows[:-1, -1]])[:, None]
        offsets = torch.cat([first, ends_of_rows], dim=1)
        return cls(offsets.int(), ranges.int(), query_block, key_block, queries, keys)

    @classmethod
    def full(cls, queries: int, keys: int, query_block: int = 128, key_block: int = 128) -> BlockMask:
        """A mask that keeps every pair: one range per tile."""
        tiles = -(-queries // query_block)
        offsets = torch.arange(tiles + 1, dtype=torch.int32)[None]
        ranges = torch.tensor([[0, keys]], dtype=torch.int32).repeat(tiles, 1)
        return cls(offsets, ranges, query_block, key_block, queries, keys)

    @property
    def patterns(self) -> int:
        """Rows of `offsets`: 1, heads, or batch * heads."""
        return self.offsets.shape[0]

    @property
    def tiles(self) -> int:
        """Query tiles per pattern."""
        return -(-self.queries // self.query_block)

    @property
    def nbytes(self) -> int:
        """Bytes held by the plan's tensors."""
        return self.offsets.nbytes + self.ranges.nbytes

    def to(self, device: torch.device | str) -> BlockMask:
        """The same mask on `device`; copies are kept, so asking again is free."""
        device = torch.device(device)
        if device == self.offsets.device:
            return self
        if device not in self._copies:
            self._copies[device] = BlockMask(
                self.offsets.to(device),
                self.ranges.to(device),
                self.query_block,
                self.key_block,
                self.queries,
                self.keys,
            )
        return self._copies[device]

    def row_of_range(self) -> Tensor:
        """For each range its (pattern * tiles + tile): int64 ``[count]``."""
        counts = (self.offsets[:, 1:] - self.offsets[:, :-1]).flatten()
        return torch.repeat_interleave(counts.long())

    def validate(self) -> None:
        """Check the contents: every range in bounds, non-empty, sorted and disjoint within its row.

        Raises:
            ValueError: what is wrong. Reads the tensors, so it waits for a GPU.
        """
        offsets, (start, end) = self.offsets.long(), self.ranges.long().unbind(1)
        ordered = bool((offsets[:, 1:] >= offsets[:, :-1]).all()) and bool((offsets[1:, 0] == offsets[:-1, -1]).all())
        if not ordered or int(offsets[0, 0]) != 0 or int(offsets[-1, -1]) != len(self.ranges):
            raise ValueError("offsets of a BlockMask must rise from 0 to the number of ranges")
        if bool(((start < 0) | (end > self.keys) | (start >= end)).any()):
            raise ValueError(f"a BlockMask holds an empty range or one outside [0, {self.keys})")
        row = self.row_of_range()
        if bool(((row[1:] == row[:-1]) & (start[1:] < end[:-1])).any()):
            raise ValueError("ranges of a BlockMask row overlap or are not sorted")

    def to_dense(self) -> Tensor:
        """The boolean ``[patterns, queries, keys]`` mask, for tests and pictures of small grids only."""
        steps = torch.zeros(self.patterns * self.tiles, self.keys + 1, dtype=torch.int32, device=self.ranges.device)
        row, (start, end) = self.row_of_range(), self.ranges.long().unbind(1)
        one = torch.ones_like(row, dtype=torch.int32)
        steps.index_put_((row, start), one, accumulate=True).index_put_((row, end), -one, accumulate=True)
        tiles = steps.cumsum(1)[:, :-1].bool().view(self.patterns, self.tiles, self.keys)
        return tiles.repeat_interleave(self.query_block, dim=1)[:, : self.queries]


@dataclass(frozen=True)
class Density:
    """Share of query-key pairs that a plan computes, averaged over its patterns, by the three names of the docs."""

    density: float
    """Attended over all pairs, text included."""
    video_density: float
    """Attended over video-video pairs: what is requested, tabled and compared."""
    computed_density: float
    """As `density`, with the padding of the last query tile and of every range to whole key blocks."""


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """What one attention call computes.

    Args:
        mask: the key ranges; None is dense attention.
        notes: what the method wants the user to know, shown once in the summary.
    """

    mask: BlockMask | None = None
    notes: tuple[str, ...] = ()

    def density(self, layout: TokenLayout) -> Density:
        """The three densities of this plan over `layout`, from the ranges themselves."""
        if self.mask is None:
            return Density(1.0, 1.0, 1.0)
        return Density(*(_pairs(self.mask, layout, kind) for kind in ("all", "video", "padded")))


def _pairs(mask: BlockMask, layout: TokenLayout, kind: str) -> float:
    """Share of pairs kept: of all, of video-video ones, or with tile padding (`kind`)."""
    tile = mask.row_of_range() % mask.tiles
    start, end = mask.ranges.long().unbind(1)
    first, last = tile * mask.query_block, (tile + 1) * mask.query_block
    if kind == "padded":
        rows, keys = last - first, -(-(end - start) // mask.key_block) * mask.key_block
        return float((rows * keys).sum()) / (mask.patterns * mask.queries * mask.keys)
    lo, hi = (layout.video_start, layout.video_end) if kind == "video" else (0, layout.tokens)
    rows = (last.clamp(max=hi) - first.clamp(min=lo)).clamp(min=0)
    keys = (end.clamp(max=hi) - start.clamp(min=lo)).clamp(min=0)
    return float((rows * keys).sum()) / (mask.patterns * (hi - lo) ** 2)
