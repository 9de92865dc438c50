"""Random blocks: the baseline that any informed choice of the same density has to beat. Not for use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.methods.base import Method
from vidaccel.methods.checks import check_block, check_density
from vidaccel.patterns.cover import text_blocks, video_density, video_in_tiles
from vidaccel.plan import AttentionPlan, BlockMask
from vidaccel.site import Site

SEEDS = 2**63
"""One past the largest seed."""


@dataclass(frozen=True)
class Random(Method):
    """A baseline, not for use: every query tile keeps its own block and random others, each equally likely.

    One draw serves all heads, layers and steps, as the masks of other static methods do, so that beside them only the
    choice of blocks differs. Blocks with text are kept whole.

    Args:
        density: video density to reach, in (0, 1]. Each tile rounds to whole blocks, up or down at random, so that the
            mean over tiles meets it.
        block: tile size in tokens of queries and keys.
        seed: of the draw, at least 0; the same seed makes the same plan.

    Raises:
        ValueError: a value out of range.
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "baseline, not for use: random blocks"
    static: ClassVar[bool] = True

    density: float = 0.25
    block: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        check_density(self.density)
        check_block(self.block)
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed {self.seed} is outside [0, 2**63)")

    def plan(
        self, query: Tensor | None, key: Tensor | None, value: Tensor | None, site: Site, state: dict[str, Any]
    ) -> AttentionPlan:
        layout = site.layout
        blocks = random_blocks(layout, self.density, self.block, self.seed)
        return AttentionPlan(BlockMask.from_blocks(blocks[None], self.block, self.block, layout.tokens, layout.tokens))


def random_blocks(layout: TokenLayout, density: float, block: int, seed: int) -> Tensor:
    """A boolean block map ``[blocks, blocks]`` of the whole sequence whose video density is `density`.

    Each row takes its blocks in a random order until it has its share of the video tokens. The last one is taken with
    a probability equal to the part of it that is still due; those of all rows are spread evenly over [0, 1), so that
    their rounding cancels out.

    Raises:
        ValueError: the blocks that are always kept hold more than `density` already.
    """
    text = text_blocks(layout, block)
    video = video_in_tiles(layout, block)
    kept = torch.eye(len(video), dtype=torch.bool) | text[:, None] | text[None]
    least = video_density(kept, layout, block)
    if density < least:
        raise ValueError(
            f"density {density} is below {least:.4f}, the least of random with {block}-token blocks on {layout}"
        )
    free = (~text).nonzero().flatten()
    if len(free) > 1:
        whole = float(video[text].sum()) * layout.video_tokens
        share = (density * layout.video_tokens**2 - whole) / float(video[free].sum())
        tokens = video[free]
        due = share - tokens - float(video[text].sum())
        kept[free[:, None], free] |= _drawn(tokens, due, seed)
    return kept


def _drawn(tokens: Tensor, due: Tensor, seed: int) -> Tensor:
    """Which blocks off the diagonal each row takes, bool ``[rows, rows]``.

    Args:
        tokens: of each block, ``[rows]``.
        due: tokens that each row takes on average, ``[rows]``.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(tokens)
    order = torch.rand(rows, rows, generator=generator).fill_diagonal_(2).argsort(dim=1)[:, :-1]
    width = tokens[order]
    part = (torch.randperm(rows, generator=generator).double() + 0.5) / rows
    taken = width.cumsum(dim=1) - width * (1 - part[:, None]) < due[:, None]
    return torch.zeros(rows, rows, dtype=torch.bool).scatter_(1, order, taken)
