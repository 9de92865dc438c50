"""A `BlockMask` in the terms of PyTorch's FlexAttention: full blocks, partial blocks, and a look-up of single keys.

FlexAttention (arXiv 2412.05496) cuts the scores into blocks of its own. Those that a plan keeps whole are "full" and
run without a mask; those that it cuts (a range that starts or ends inside, tiles that differ inside) are "partial" and
ask about every pair, and that question is answered here by two tables.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vidaccel.plan import BlockMask

SIZES = (128, 64)
"""Blocks that FlexAttention's GPU kernels divide; a plan's block takes the first that divides it, else the last."""
EMPTY, WHOLE, CUT = 0, 1, 2
"""Rows of the key table: nothing kept, everything kept, and the first of the blocks that a range cuts."""
KeepPair = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Blocks:
    """What a mask keeps of FlexAttention's blocks.

    Args:
        some, full: bool ``[patterns, query blocks, key blocks]``: blocks with any pair kept, and those with all.
        rows: int32 ``[patterns, tiles, key blocks]``, for each tile of the plan its row of `keys`.
        keys: bool ``[rows, key block]``: which keys of the block are kept. The number of rows is a power of two, so
            that masks of one shape seldom differ in it and share a compiled kernel.
        size: tokens of a query block and of a key block.
        tile: query tokens of a tile of the plan.
        lengths: queries and keys.
    """

    some: Tensor
    full: Tensor
    rows: Tensor
    keys: Tensor
    size: tuple[int, int]
    tile: int
    lengths: tuple[int, int]

    @classmethod
    def of(cls, mask: BlockMask) -> Blocks:
        """Made once per mask and kept as long as it lives. Waits for a GPU once, for the number of cut blocks."""
        if mask not in _BLOCKS:
            _BLOCKS[mask] = _blocks(mask)
        return _BLOCKS[mask]

    def flex(self, batch: int, heads: int, key_lengths: Tensor | None) -> Any:
        """FlexAttention's own mask for a call; it holds ``[1 or batch, 1 or heads, query blocks, key blocks]`` int32.

        Args:
            key_lengths: int ``[batch]`` on the device, or None.
        """
        from torch.nn.attention.flex_attention import BlockMask as FlexMask

        patterns = len(self.some)
        lanes = (batch, heads) if patterns == batch * heads else (1, heads if patterns == heads else 1)
        some, full = (each.view(*lanes, *each.shape[1:]) for each in (self.some, self.full))
        if key_lengths is not None:
            first = torch.arange(some.shape[-1], dtype=torch.int32, device=some.device) * self.size[1]
            valid = key_lengths[:, None, None, None]
            some, full = some & (first < valid), full & (first + self.size[1] <= valid)
        partial = _listed(some & ~full)
        return FlexMask.from_kv_blocks(*partial, *_listed(full), BLOCK_SIZE=self.size, seq_lengths=self.lengths,
                                       mask_mod=self._keeps(heads, key_lengths), **_no_backward())  # fmt: skip

    def _keeps(self, heads: int, key_lengths: Tensor | None) -> KeepPair:
        """FlexAttention's mask_mod: whether a pair is kept, exact in every block."""
        rows, keys, tile, size, patterns = self.rows, self.keys, self.tile, self.size[1], len(self.some)

        def keep(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            pattern = (batch * heads + head) % patterns
            return keys[rows[pattern, query // tile, key // size], key % size]

        def keep_valid(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            assert key_lengths is not None
            return keep(batch, head, query, key) & (key < key_lengths[batch])

        return keep if key_lengths is None else keep_valid


# Weak, so that it keeps no mask alive.
_BLOCKS: WeakKeyDictionary[BlockMask, Blocks] = WeakKeyDictionary()


def size_of(block: int) -> int:
    """FlexAttention's block for a plan's block of so many tokens."""
    return next((size for size in SIZES if block % size == 0), SIZES[-1])


@functools.cache
def _no_backward() -> dict[str, Any]:
    """Leaves out lists that only the backward pass reads and that cost as much again; older torch always makes them."""
    from torch.nn.attention.flex_attention import BlockMask as FlexMask

    known = "compute_q_blocks" in inspect.signature(FlexMask.from_kv_blocks).parameters
    return {"compute_q_blocks": False} if known else {}


def _blocks(mask: BlockMask) -> Blocks:
    size = (size_of(mask.query_block), size_of(mask.key_block))
    kept = _kept(mask, size[1])
    length = (mask.keys - torch.arange(kept.shape[-1], device=kept.device) * size[1]).clamp(max=size[1])
    cut = (kept > 0) & (kept < length)
    number = cut.flatten().cumsum(0).view(cut.shape) + (CUT - 1)
    rows = torch.where(cut, number, torch.where(kept > 0, WHOLE, EMPTY)).int()
    keys = _keys(mask, rows, size[1], CUT + int(cut.sum()))
    # As torch does it, a last block that sticks out is never full.
    some, full = _over_query_blocks(mask, size[0], kept > 0), _over_query_blocks(mask, size[0], kept == size[1])
    tiles = _tiles_of_query_blocks(mask, size[0])
    return Blocks(some > 0, full == (tiles[1] - tiles[0])[:, None], rows, keys, size, mask.query_block,
                  (mask.queries, mask.keys))  # fmt: skip


def _kept(mask: BlockMask, size: int) -> Tensor:
    """Keys that each tile keeps of each block of `size` keys: int32 ``[patterns, tiles, blocks]``."""
    blocks = -(-mask.keys // size)
    change = torch.zeros(mask.patterns * mask.tiles, blocks + 2, dtype=torch.int32, device=mask.ranges.device)
    row = mask.row_of_range()
    for edge, sign in zip(mask.ranges.long().unbind(1), (1, -1), strict=True):
        # From `edge` on, everything counts: the rest of its block there, and a whole block's keys in all later ones.
        block, depth = edge // size, (edge % size).int()
        change.index_put_((row, block), sign * (size - depth), accumulate=True)
        change.index_put_((row, block + 1), sign * depth, accumulate=True)
    return change.cumsum(1, dtype=torch.int32)[:, :blocks].view(mask.patterns, mask.tiles, blocks)


def _keys(mask: BlockMask, rows: Tensor, size: int, count: int) -> Tensor:
    """The key table, bool ``[power of two, size]``: of every cut block, the keys kept."""
    flat = torch.nn.functional.pad(rows.view(-1, rows.shape[-1]), (0, 1))
    change = torch.zeros(1 << (count - 1).bit_length(), size + 1, dtype=torch.int8, device=rows.device)
    owner, (start, end) = mask.row_of_range(), mask.ranges.long().unbind(1)
    first, last = flat[owner, start // size].long(), flat[owner, end // size].long()
    one = torch.ones_like(start, dtype=torch.int8)
    change.index_put_((first, start % size), one, accumulate=True)
    change.index_put_((last, end % size), -one, accumulate=True)
    # A range that comes from an earlier block covers its last block from the first key on.
    change.index_put_((last, torch.zeros_like(end)), (end // size > start // size).to(torch.int8), accumulate=True)
    keys = change.cumsum(1, dtype=torch.int8)[:, :size] > 0
    keys[EMPTY], keys[WHOLE] = False, True
    return keys.contiguous()


def _tiles_of_query_blocks(mask: BlockMask, size: int) -> tuple[Tensor, Tensor]:
    """First and one past the last tile that each block of `size` queries touches."""
    start = torch.arange(0, mask.queries, size, device=mask.ranges.device)
    return start // mask.query_block, ((start + size).clamp(max=mask.queries) - 1) // mask.query_block + 1


def _over_query_blocks(mask: BlockMask, size: int, of_tiles: Tensor) -> Tensor:
    """In how many tiles of each block of `size` queries something is so: int32 ``[patterns, blocks, key blocks]``."""
    before = torch.nn.functional.pad(of_tiles.cumsum(1, dtype=torch.int32), (0, 0, 1, 0))
    first, last = _tiles_of_query_blocks(mask, size)
    return before[:, last] - before[:, first]


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the blocks set in each row, first in line, and how many they are; int32."""
    order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.int().contiguous()
