"""From clusters of queries and of keys to what each tile of ordered queries keeps; see `vidaccel.methods.semantic`.

Lanes are heads of batch rows, batch slowest. Nothing waits for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from vidaccel.layout import TokenLayout
from vidaccel.methods.semantic_memory import key_block
from vidaccel.plan import AttentionPlan
from vidaccel.planning.kmeans import KMeans
from vidaccel.planning.order import RUN, cluster_at, tile_mask


@dataclass(frozen=True, eq=False)
class Clusters:
    """The clusters of the video's queries and of its keys."""

    queries: KMeans
    keys: KMeans


def shares(clusters: Clusters) -> Tensor:
    """The estimated attention of each query cluster to each key cluster: fp32 ``[lanes, query, key clusters]``.

    ``P_ij = |K_j| exp(q_i k_j / sqrt(D)) / sum over j``, q and k being centroids; 0 for clusters without keys.
    """
    query, key = clusters.queries.centroids, clusters.keys.centroids
    bias = clusters.keys.sizes.float().log()[:, None]
    return torch.baddbmm(bias, query, key.transpose(1, 2), alpha=query.shape[2] ** -0.5).softmax(-1)


def mean_rows(values: Tensor, starts: Tensor, tokens: int, block: int) -> Tensor:
    """Rows of clusters as rows of tiles, the mean over a tile's tokens: fp32 ``[lanes, tiles, columns]``.

    Args:
        values: fp32 ``[lanes, clusters, columns]``.
        starts: int32 ``[lanes, clusters + 1]``, where clusters start in the order that is cut into tiles.
        tokens, block: how many there are, and in a tile.
    """
    edge = torch.arange(0, tokens, block, dtype=torch.int32, device=values.device)[:, None]
    end = (edge + block).clamp(max=tokens)
    first, last = starts[:, None, :-1], starts[:, None, 1:]
    common = (torch.minimum(end, last) - torch.maximum(edge, first)).clamp_(min=0)
    return (common / (end - edge)) @ values


def most_rows(values: Tensor, starts: Tensor, tokens: int, block: int) -> Tensor:
    """As `mean_rows`, with the largest of a tile's clusters: those above a limit are the union of its clusters'."""
    lanes, _, columns = values.shape
    edge = torch.arange(0, tokens, block, dtype=torch.int32, device=values.device)
    # Every cluster of a tile begins in it or holds its first token.
    piece = torch.cat([edge.expand(lanes, -1), starts[:, :-1].clamp(max=tokens - 1)], dim=1)
    holds = cluster_at(starts, piece), (piece // block).long()
    most = values.new_full((lanes, len(edge), columns), float("-inf"))
    # The rows of all pieces take twice what those of clusters or tiles do: some lanes at a time.
    step = max(1, RUN // (piece.shape[1] * columns))
    for lane in range(0, lanes, step):
        some = slice(lane, lane + step)
        cluster, tile = (each[some, :, None].expand(-1, -1, columns) for each in holds)
        most[some].scatter_reduce_(1, tile, values[some].gather(1, cluster), "amax")
    return most


@dataclass(frozen=True, eq=False)
class Choice:
    """What a plan says in little memory: orders of the video's tokens, and which key clusters each tile keeps.

    Args:
        query_order, key_order: int32 ``[lanes, video tokens]``.
        key_starts: int32 ``[lanes, key clusters + 1]``.
        kept: bool ``[lanes, tiles, key clusters]``, or `packed` uint8 ``[lanes, tiles, key clusters / 8]``.
    """

    query_order: Tensor
    key_order: Tensor
    key_starts: Tensor
    kept: Tensor

    @classmethod
    def of(cls, clusters: Clusters, kept: Tensor) -> Choice:
        """The choice of `kept` among clusters."""
        return cls(clusters.queries.order.order, clusters.keys.order.order, clusters.keys.order.starts, kept)

    def packed(self) -> Choice:
        """The same with a bit per tile and cluster."""
        bits = pad(self.kept, (0, -self.kept.shape[2] % 8)).unflatten(2, (-1, 8)).byte()
        return replace(self, kept=(bits << _bit(bits.device)).sum(3, dtype=torch.uint8))

    def plan(self, layout: TokenLayout, block: int) -> AttentionPlan:
        """The plan: video in the order of its clusters, then all text, attended by all and attending to all."""
        kept, starts, tokens = self.kept, self.key_starts, layout.tokens
        groups = starts.shape[1] - 1
        if kept.dtype == torch.uint8:
            kept = ((kept[..., None] >> _bit(kept.device)) & 1).bool().flatten(2)[..., :groups]
        if tokens > layout.video_tokens:
            kept, starts = pad(kept, (0, 1), value=True), pad(starts, (0, 1), value=tokens)
            # The tile that holds the video's last tokens and text is one with text.
            whole = layout.video_tokens // block
            kept = pad(kept[:, :whole], (0, 0, 0, -(-tokens // block) - whole), value=True)
        mask = tile_mask(starts, kept, queries=tokens, keys=tokens, query_block=block,
                         key_block=key_block(layout.video_tokens // groups, block))  # fmt: skip
        queries, keys = ordered(self.query_order, layout), ordered(self.key_order, layout)
        return AttentionPlan(mask, queries, keys, key_groups=starts)


def ordered(order: Tensor, layout: TokenLayout) -> Tensor:
    """An order of all tokens: video in an order of its own, int32 ``[lanes, video tokens]``, then text as it is."""
    before = torch.arange(layout.video_start, dtype=torch.int32, device=order.device)
    after = torch.arange(layout.video_end, layout.tokens, dtype=torch.int32, device=order.device)
    text = (each.expand(len(order), -1) for each in (before, after))
    return torch.cat([order + layout.video_start, *text], dim=1)


def _bit(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
