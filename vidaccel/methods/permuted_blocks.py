"""PBS-Attn for video: keys sorted by importance before they are cut into blocks (arXiv 2510.21270).

Implemented from the paper, which sorts the keys of causal language models; no causal mask bounds the segments here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.methods.blocks import Blocks, Tiles
from vidaccel.methods.candidates import Sample
from vidaccel.methods.checks import check_count
from vidaccel.methods.presets import Preset
from vidaccel.plan import AttentionPlan
from vidaccel.planning import pool, select, shapes
from vidaccel.site import Dealt, Site

PRESETS = {"paper": Preset({"top_p": 0.9, "block": 128, "segment": 2, "rows": 128})}


@dataclass(frozen=True)
class PermutedBlocks(Blocks):
    """Keys that many queries attend to are put together, so that few blocks hold them; queries stay where they are.

    The best block of each tile of queries and all text are kept in any case.

    Args:
        density, top_p, block, refresh, drift: see `Dynamic`.
        segment: keys are sorted within segments of so many blocks, the paper's 2 by default; None sorts all video.
        rows: sampled queries that the importance of keys is the mean attention of, one from each of as many equal
            stretches of the clip.
        preset: "paper", the published settings: those of `PRESETS`.

    Raises:
        ValueError: a value out of range, or options beside a preset that has its own.
    """

    presets = PRESETS
    name: ClassVar[str] = "permuted_blocks"
    paper: ClassVar[str] = "PBS-Attn, arXiv 2510.21270"
    alternatives: ClassVar[tuple[str, ...]] = ("density", "top_p", "preset")

    segment: int | None = 2
    rows: int = 128
    preset: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("rows", self.rows)
        check_count("segment", self.segment)

    def choose(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> AttentionPlan:
        rows = Sample(self.rows).draw(site, query.device)
        found = importance(query, key, rows, site.layout)
        segment = self.segment and self.segment * self.block
        state["key_order"] = key_order(found, site.layout, segment)
        return replace(super().choose(query, key, value, site, state), key_order=state.pop("key_order"))

    def always(self, query: Tensor, key: Tensor, tiles: Tiles, site: Site) -> Tensor:
        # On the diagonal are other tokens' keys: only text is kept in any case.
        return ~(tiles.video[0, :, None] & tiles.video[0])

    def pick(
        self, scores: Tensor, keep: Tensor, tiles: Tiles, batch: int, density: float | None, heads: Dealt | None = None
    ) -> Tensor:
        # Without a diagonal a row beside text could be left without any video.
        return super().pick(scores, keep | select.top_k(scores, 1), tiles, batch, density, heads)

    def scores(
        self, query: Tensor, key: Tensor, value: Tensor, tiles: Tiles, site: Site, state: dict[str, Any]
    ) -> Tensor:  # fmt: skip
        queries = pool.block_mean(query, self.block)
        keys = pool.block_mean(key, self.block, order=state["key_order"])
        return pool.pooled_scores(queries, keys, query.shape[-1] ** -0.5, allowed=tiles.video)


def importance(query: Tensor, key: Tensor, rows: Tensor, layout: TokenLayout) -> Tensor:
    """Mean attention that some queries give to each key of the video, text left out.

    It takes 2 * rows * N * head_dim operations per head, and 8 * rows * N bytes for one head at a time.

    Args:
        query, key: ``[batch, tokens, heads, head_dim]``.
        rows: int64 ``[rows]``, places of queries.

    Returns:
        fp32 ``[batch * heads, video tokens]``, rows that sum to 1.
    """
    video, lanes = key[:, layout.video_start : layout.video_end], len(query) * query.shape[2]
    found = query.new_empty(lanes, layout.video_tokens, dtype=torch.float32)
    for lane in range(lanes):
        some, columns = query[lane // query.shape[2], rows, lane % query.shape[2]], shapes.states_of_lane(video, lane)
        found[lane] = (some.float() @ columns.T * query.shape[-1] ** -0.5).softmax(-1).mean(0)
    return found


def key_order(importance: Tensor, layout: TokenLayout, segment: int | None) -> Tensor:
    """Keys of the video by falling importance, those of a segment together; text in its place.

    Args:
        importance: ``[lanes, video tokens]``.
        segment: video tokens; None is all of them.

    Returns:
        int32 ``[lanes, tokens]``; of equal keys the earlier one comes first.
    """
    order = importance.argsort(dim=1, descending=True, stable=True)
    if segment is not None:
        order = order.gather(1, (order // segment).argsort(dim=1, stable=True))
    token = torch.arange(layout.tokens, device=order.device).expand(len(order), -1)
    parts = (token[:, : layout.video_start], order + layout.video_start, token[:, layout.video_end :])
    return torch.cat(parts, dim=1).int()
