"""What one head of one call attends to, and how much of it a plan keeps: exact, some query rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.plan import AttentionPlan

MOST_CELLS = 128
UNIT = 16
"""Tokens of which cells have whole multiples, as tiles of methods do."""
CHUNK = 1024
"""Query rows whose weights are held at once; at least one tile of the plan."""
DENSE_BLOCK = 128
"""Tiles of a call that is dense."""


@dataclass(frozen=True)
class Cells:
    """The tokens of a sequence in pieces for a picture, none of both text and video; padding is in none.

    Args:
        edges: where cells start, in tokens of the sequence, and the end of the last.
        first, last: the first cell of the video, and the one after its last.
    """

    edges: tuple[int, ...]
    first: int
    last: int

    @classmethod
    def of(cls, layout: TokenLayout, tokens: int, most: int = MOST_CELLS) -> Cells:
        """As many cells of equal size as there may be; the last of the video and of each text can be smaller.

        Args:
            tokens: those that are no padding, which can only be at the end.
            most: at least 3.
        """
        ends = [min(end, tokens) for end in (0, layout.video_start, layout.video_end, layout.tokens)]
        size = UNIT
        while sum(-(-(end - start) // size) for start, end in zip(ends, ends[1:], strict=False)) > most:
            size += UNIT
        pieces = [list(range(start, end, size)) for start, end in zip(ends, ends[1:], strict=False)]
        first = len(pieces[0])
        return cls((*pieces[0], *pieces[1], *pieces[2], ends[-1]), first, first + len(pieces[1]))

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def sizes(self) -> Tensor:
        """Tokens of each: fp64 ``[cells]``."""
        return torch.tensor(self.edges, dtype=torch.float64).diff()

    def index(self, tokens: int, device: torch.device) -> Tensor:
        """The cell of each token, padding counting as one more: int64 ``[tokens]``."""
        edges = torch.tensor(self.edges[1:], device=device)
        return torch.bucketize(torch.arange(tokens, device=device), edges, right=True)


@dataclass(frozen=True, eq=False)
class Attended:
    """One head of one call.

    Args:
        cells: the pieces of the sequence that `weights` and `kept` have a row and a column for.
        weights: mean softmax weight of a pair: fp64 ``[cells, cells]``.
        kept: share of the pairs that the plan keeps: fp64 ``[cells, cells]``.
        mass: of each video query, the share of its softmax that lies on kept keys: fp32 ``[video tokens]``, rising.
        best: the mean of these were the blocks those of the most mass: as many pairs, in tiles of the plan by its
            groups of keys or, without such, blocks of its size, all in its order. The last block counts in part.
    """

    cells: Cells
    weights: Tensor
    kept: Tensor
    mass: Tensor
    best: float

    @property
    def density(self) -> float:
        """Share of all pairs that the plan keeps; padding does not count."""
        return float((self.kept * self._pairs).sum() / self._pairs.sum())

    @property
    def video_density(self) -> float:
        """Share of the video-video pairs that the plan keeps."""
        video = slice(self.cells.first, self.cells.last)
        return float((self.kept * self._pairs)[video, video].sum() / self._pairs[video, video].sum())

    def mass_on_text(self) -> float:
        """Share of the video queries' softmax that lies on text."""
        video = slice(self.cells.first, self.cells.last)
        mass = (self.weights * self._pairs)[video]
        return float(1 - mass[:, video].sum() / mass.sum())

    def in_best_cells(self, share: float) -> float:
        """The most mass of video queries that a share of their pairs can hold, in whole cells but the last."""
        video = slice(self.cells.first, self.cells.last)
        pairs = self._pairs[video]
        mass = (self.weights * self._pairs)[video]
        return best_mass(mass, pairs, share * float(pairs.sum())) / float(mass.sum())

    @property
    def _pairs(self) -> Tensor:
        return torch.outer(self.cells.sizes, self.cells.sizes)


def attended(
    query: Tensor, key: Tensor, plan: AttentionPlan, lane: int, layout: TokenLayout, length: int | None = None
) -> Attended:  # fmt: skip
    """Measure one head of one batch row; memory grows with the tokens times `CHUNK`. Waits for a GPU.

    Args:
        query, key: ``[tokens, head_dim]``.
        plan: of the call; extra keys do not count.
        lane: ``batch row * heads + head``.
        layout: of the call.
        length: keys that are no padding; None for all.

    Returns:
        Its tensors on the CPU.
    """
    return _Head(query, key, plan, lane, layout, layout.tokens if length is None else length).measured()


def best_mass(mass: Tensor, pairs: Tensor, budget: float) -> float:
    """The most mass that blocks of so many pairs together can hold, the last of them taken in part.

    Args:
        mass, pairs: of each block, of one shape.
    """
    some = pairs > 0
    mass, pairs = mass[some].double(), pairs[some].double()
    best = (mass / pairs).argsort(descending=True)
    before = pairs[best].cumsum(0) - pairs[best]
    taken = ((budget - before) / pairs[best]).clamp(0, 1)
    return float((mass[best] * taken).sum())


class _Head:
    """The sums of one head, over query rows in the plan's order."""

    def __init__(
        self, query: Tensor, key: Tensor, plan: AttentionPlan, lane: int, layout: TokenLayout, length: int
    ) -> None:  # fmt: skip
        device, tokens = query.device, layout.tokens
        self.mask = (plan.mask or BlockMask.full(tokens, tokens, DENSE_BLOCK, DENSE_BLOCK)).to(device)
        self.pattern = lane % self.mask.patterns
        rows, columns = (_order(order, lane, tokens, device) for order in (plan.query_order, plan.key_order))
        self.query, self.key = query[rows].float() * query.shape[-1] ** -0.5, key[columns].float().T.contiguous()
        self.cells = Cells.of(layout, length)
        cell = self.cells.index(tokens, device)
        self.row_cell, self.column_cell = cell[rows], cell[columns]
        self.video = (rows >= layout.video_start) & (rows < min(layout.video_end, length))
        self.valid = columns < length
        self.block = _blocks(plan, self.mask, lane)
        self.sums = torch.zeros(2, len(self.cells) + 1, len(self.cells) + 1, dtype=torch.float64, device=device)
        self.block_mass = torch.zeros(self.mask.tiles, int(self.block[-1]) + 1, dtype=torch.float64, device=device)

    def measured(self) -> Attended:
        """All of it."""
        budget, mass = 0.0, []
        for tiles, rows in self._pieces():
            softmax, keeps, video = self._softmax(rows), self._keeps(tiles), self.video[rows]
            tile = torch.arange(len(softmax), device=softmax.device) // self.mask.query_block
            self._add_cells(rows, softmax, keeps.float(), tile)
            self._add_blocks(tiles, softmax * video[:, None], tile)
            mass.append((softmax * keeps[tile]).sum(1)[video])
            budget += float(keeps.sum(1)[tile][video].sum())
        best = best_mass(self.block_mass, self._block_pairs(), budget) / int(self.video.sum())
        pairs = torch.outer(self.cells.sizes, self.cells.sizes)
        weights, kept = self.sums[:, :-1, :-1].cpu() / pairs
        return Attended(self.cells, weights, kept, torch.cat(mass).sort().values.cpu(), best)

    def _add_cells(self, rows: slice, softmax: Tensor, keeps: Tensor, tile: Tensor) -> None:
        for total, each in zip(self.sums, (self._by_cell(softmax), self._by_cell(keeps)[tile]), strict=True):
            total.index_add_(0, self.row_cell[rows], each.double())

    def _add_blocks(self, tiles: slice, softmax: Tensor, tile: Tensor) -> None:
        of_row = softmax.new_zeros(len(softmax), self.block_mass.shape[1]).index_add_(1, self.block, softmax)
        self.block_mass[tiles].index_add_(0, tile, of_row.double())

    def _block_pairs(self) -> Tensor:
        """Pairs of video queries and keys that are no padding, of each block: fp64 ``[tiles, key blocks]``."""
        rest = self.mask.tiles * self.mask.query_block - self.mask.queries
        rows = torch.nn.functional.pad(self.video, (0, rest)).view(self.mask.tiles, -1).sum(1)
        keys = self.block.bincount(self.valid.double(), self.block_mass.shape[1])
        return torch.outer(rows.double(), keys)

    def _pieces(self) -> Iterator[tuple[slice, slice]]:
        """Some tiles, and their query rows, at a time."""
        at_once = max(1, CHUNK // self.mask.query_block)
        for first in range(0, self.mask.tiles, at_once):
            last = min(first + at_once, self.mask.tiles)
            yield slice(first, last), slice(first * self.mask.query_block,
                                            min(last * self.mask.query_block, self.mask.queries))  # fmt: skip

    def _softmax(self, rows: slice) -> Tensor:
        """fp32 ``[rows, keys]``."""
        logits: Tensor = self.query[rows] @ self.key
        return logits.masked_fill_(~self.valid, -torch.inf).softmax(1)

    def _keeps(self, tiles: slice) -> Tensor:
        """Which keys that are no padding some tiles attend to: bool ``[tiles, keys]``."""
        starts = self.mask.offsets[self.pattern, tiles.start : tiles.stop + 1].long()
        start, end = self.mask.ranges[int(starts[0]) : int(starts[-1])].long().unbind(1)
        tile = torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())
        steps = torch.zeros(len(starts) - 1, self.mask.keys + 1, dtype=torch.int32, device=starts.device)
        one = torch.ones_like(tile, dtype=torch.int32)
        steps.index_put_((tile, start), one, accumulate=True).index_put_((tile, end), -one, accumulate=True)
        return (steps.cumsum(1)[:, :-1] > 0) & self.valid

    def _by_cell(self, rows: Tensor) -> Tensor:
        """Sums over the keys of each cell: fp32 ``[rows, cells + 1]``, the last of padding."""
        return rows.new_zeros(len(rows), len(self.cells) + 1).index_add_(1, self.column_cell, rows)


def _order(order: Tensor | None, lane: int, tokens: int, device: torch.device) -> Tensor:
    """The token at each position, int64 ``[tokens]``."""
    return torch.arange(tokens, device=device) if order is None else order[lane % len(order)].to(device).long()


def _blocks(plan: AttentionPlan, mask: BlockMask, lane: int) -> Tensor:
    """The group, or block, of the key at each position, rising: int64 ``[tokens]``."""
    place = torch.arange(mask.keys, device=mask.ranges.device)
    if plan.key_groups is None:
        return place // mask.key_block
    ends = plan.key_groups[lane % len(plan.key_groups), 1:].to(place.device).contiguous()
    return torch.bucketize(place, ends.long(), right=True)
