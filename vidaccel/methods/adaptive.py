"""AdaSpa: blocks by their exact attention mass, searched at a few steps of a run (arXiv 2502.21079).

Implemented from the paper; it has no published code.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.methods.blocks import Blocks, Tiles, tiles_of
from vidaccel.methods.presets import Preset
from vidaccel.patterns import cover
from vidaccel.plan import AttentionPlan
from vidaccel.planning import select
from vidaccel.planning.lse import lse
from vidaccel.planning.mass import block_mass
from vidaccel.site import Dealt, Site

LSE, SEARCHED = "adaptive_lse", "adaptive_searched"
"""What is kept in a state: the log-sum-exp of the first search, and the step of the last one."""
KEPT = 64
NEVER = 1_000_000
"""More steps than a run has."""
RECALLED = 0.8
"""Heads that keep more than this share of their mass at the common density give blocks away (`head_adaptive`)."""
PRESETS = {"paper": Preset({"density": 0.2, "block": 64, "searches": (0.6,), "head_adaptive": True}, dense_steps=0.2)}


@dataclass(frozen=True)
class Adaptive(Blocks):
    """Blocks by the exact attention mass that they hold, looked for at few steps and kept between them.

    The first sparse step of each layer searches in any case: the log-sum-exp of each row of dense attention, then the
    mass of each block. Later searches reuse the log-sum-exp of the first one and cost half as much.

    Args:
        density, top_p, block, drift: see `Dynamic`.
        refresh: steps after which a plan is searched anew in any case; by default never.
        searches: shares of the run, above 0 and up to 1, at which plans are searched anew; the number of steps must be
            known for these.
        reuse_lse: later searches take the log-sum-exp of the first one, which is kept: 4 bytes per query and head.
        head_adaptive: the paper's budget in place of one for all heads: all rows of a head keep as many blocks; of the
            n heads that keep over 0.8 of their mass at the asked density, at most half of all, each gives half its
            blocks to one of the n heads that keep the least.
        preset: "paper", the published settings: those of `PRESETS` and their dense steps.

    Raises:
        ValueError: a value out of range, `head_adaptive` with `top_p`, or options beside a preset that has its own.
    """

    presets = PRESETS
    name: ClassVar[str] = "adaptive"
    paper: ClassVar[str] = "AdaSpa, arXiv 2502.21079"
    alternatives: ClassVar[tuple[str, ...]] = ("density", "top_p", "preset")

    refresh: int = NEVER
    searches: Sequence[float] = (0.6,)
    reuse_lse: bool = True
    head_adaptive: bool = False
    preset: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "searches", _shares(self.searches))
        super().__post_init__()
        if self.head_adaptive and self.top_p is not None:
            raise ValueError(f"head_adaptive shares out a density: it does not go with top_p {self.top_p}")

    @property
    def needs_steps(self) -> bool:
        return bool(self.searches) or super().needs_steps

    def due(self, site: Site, state: dict[str, Any]) -> bool:
        if self.searches and site.steps is None:
            raise ValueError("searches at shares of a run need its number of steps: pass num_inference_steps to enable")
        points = (round(share * (site.steps or 0)) for share in self.searches)
        return any(state[SEARCHED] < point <= site.step for point in points) or super().due(site, state)

    def choose(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> AttentionPlan:
        state[SEARCHED] = site.step
        if not self.head_adaptive:
            return super().choose(query, key, value, site, state)
        tiles, tokens = tiles_of(site.layout, self.order_of(site.layout), self.block, query.device), site.layout.tokens
        density, scores = self.density_at(site), self.scores(query, key, value, tiles, site, state)
        assert density is not None
        kept = shared_out(scores, density, tiles, site.layout, self.block, len(query), site.heads)
        return AttentionPlan(BlockMask.from_blocks(kept, self.block, self.block, tokens, tokens))

    def scores(
        self, query: Tensor, key: Tensor, value: Tensor, tiles: Tiles, site: Site, state: dict[str, Any]
    ) -> Tensor:  # fmt: skip
        layout, scale, lengths = site.layout, query.shape[-1] ** -0.5, None
        if layout.text_after:
            # Part of it may be padding, and all of it is kept.
            lengths = torch.full((len(query),), layout.video_end, dtype=torch.int32, device=query.device)
        norm = state.get(LSE)
        if norm is None:
            norm = lse(query, key, scale, lengths)
            if self.reuse_lse:
                state[LSE] = norm
        mass = block_mass(query, key, norm, self.block, self.block, scale=scale, key_lengths=lengths)
        # By an older log-sum-exp rows do not sum to 1, and rows of one budget must mean the same.
        return mass / mass.sum(-1, keepdim=True).clamp(min=1e-30)


def shared_out(
    scores: Tensor, density: float, tiles: Tiles, layout: TokenLayout, block: int, batch: int,
    heads: Dealt | None = None,
) -> Tensor:  # fmt: skip
    """The paper's budget: bool of the scores' shape, as many blocks in each row of a head; nothing waits.

    Args:
        scores: mass of blocks ``[batch * heads, tiles, tiles]``.
        density: common to all heads before some give blocks to others; ``2 * density`` at most 1, or less is given.
        tiles: of the natural order.
        heads: which these are, where other processes have others, which give and take alike.
    """
    blocks, video = layout.video_tokens / block, tiles.video[0]
    # Whole blocks under the density, so that it is met whatever the last block holds.
    base, least = (max(1, int(density * share * blocks * (1 + 1e-12))) for share in (1.0, 0.5))
    text = text_tiles(layout, block)
    of_video = scores.masked_fill(~(video[:, None] & video), 0.0)
    kept = select.top_k(scores, base + text, keep=tiles.keep)
    recall = (of_video * kept).sum((1, 2)) / of_video.sum((1, 2)).clamp(min=1e-30)
    recall = recall.view(batch, -1)
    counts = counts_of(recall if heads is None else heads.gather(recall, 1), base, least) + text
    counts = counts if heads is None else heads.here(counts, 1)
    return select.top_k(scores, counts.flatten(), keep=tiles.keep)


@functools.lru_cache(KEPT)
def text_tiles(layout: TokenLayout, block: int) -> int:
    """Tiles of the natural order that hold any text."""
    return int(cover.text_blocks(layout, block).sum())


def counts_of(recall: Tensor, base: int, least: int) -> Tensor:
    """Blocks per row of each head from the mass that it keeps with `base` of them: int32 ``[batch, heads]``."""
    heads = recall.shape[1]
    rank = recall.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    givers = (recall > RECALLED).sum(1, keepdim=True).clamp(max=heads // 2)
    counts = torch.full_like(rank, base).masked_fill_(rank < givers, least)
    return counts.masked_fill_(rank >= heads - givers, 2 * base - least).int()


def _shares(searches: Any) -> tuple[float, ...]:
    """The shares of a run as a tuple.

    Raises:
        ValueError: no sequence of numbers in (0, 1].
    """
    known = isinstance(searches, Sequence) and not isinstance(searches, str)
    if not known or not all(
        isinstance(each, (int, float)) and not isinstance(each, bool) and 0 < each <= 1 for each in searches
    ):
        raise ValueError(f"searches are shares of the run in (0, 1], such as (0.2, 0.6), got {searches!r}")
    return tuple(searches)
