"""How the columns (or rows) of a kernel's tile of scores fall into blocks of tokens that are no power of two."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from vidaccel.planning.shapes import power_of_two


@dataclass(frozen=True)
class Slots:
    """Tiles of `width` slots hold groups of `group` slots; a group is a block, or one of `parts` pieces of a block.

    A block that is larger than a tile has several pieces; a block that is no power of two leaves slots idle.
    """

    width: int
    group: int
    parts: int
    blocks: int

    @classmethod
    def of(cls, block: int, tokens: int, width: int) -> Slots:
        """For `tokens` cut into blocks of `block`, by a kernel whose tiles have `width` slots."""
        return cls(width, min(width, power_of_two(block, 1)), -(-block // width), -(-tokens // block))

    @property
    def groups(self) -> int:
        """Groups of all blocks."""
        return self.blocks * self.parts

    @property
    def tiles(self) -> int:
        """Tiles that hold all groups."""
        return -(-self.groups // (self.width // self.group))


@triton.jit
def positions(first_group, PARTS: tl.constexpr, block, tokens, WIDTH: tl.constexpr, GROUP: tl.constexpr):
    """Position of each slot of a tile that starts with `first_group`, and whether it has one."""
    slot = tl.arange(0, WIDTH)
    group = first_group + slot // GROUP
    within = group % PARTS * GROUP + slot % GROUP
    position = group // PARTS * block + within
    return position, (within < block) & (position < tokens)


@triton.jit
def tile_mask(rows, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The mask of a tile of rows of features; the features are compared only where some are missing."""
    mask = rows[:, None]
    if HEAD_DIM != BLOCK_D:
        mask = mask & (tl.arange(0, BLOCK_D) < HEAD_DIM)[None, :]
    return mask
