"""Plans of every kind, and attention by hand in which groups of skipped keys are their means."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.methods.online import site_of, states
from vidaccel import kernels
from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.methods import method
from vidaccel.plan import AttentionPlan
from vidaccel.planning.order import cluster_mask, order_by

BATCH, HEADS, HEAD_DIM = 2, 3, 16
GRIDS = [TokenLayout(5, 6, 7), TokenLayout(5, 6, 7, text_before=9), TokenLayout(5, 6, 7, text_after=11)]
LENGTHS = torch.tensor([5 * 6 * 7 + 4, 5 * 6 * 7 + 11])
"""Of the last grid."""


def plans(layout: TokenLayout) -> dict[str, AttentionPlan]:
    """By what they are: shared masks, a mask and an order for each head, clusters, ranges that fit no block."""
    drawn = states(layout, BATCH, HEADS, HEAD_DIM, seed=1)
    made = {
        "radial": method("radial", "wan", block=16).plan(None, None, None, site_of(layout), {}),
        "neighborhood": method("neighborhood", "wan", block=16, density=0.2).plan(*drawn, site_of(layout), {}),
        "svg": method("svg", "wan", block=16, density=0.3).plan(*drawn, site_of(layout), {}),
        "clusters": clusters(layout, 1), "clusters of heads": clusters(layout, BATCH * HEADS),
    }  # fmt: skip
    kept = torch.rand(HEADS, -(-layout.tokens // 16), layout.tokens, generator=torch.Generator().manual_seed(2)) < 0.3
    mask = BlockMask.from_blocks(kept, 16, 1, layout.tokens, layout.tokens)
    slack = torch.nn.functional.pad(mask.ranges, (0, 0, 0, 33))
    return made | {"any ranges": AttentionPlan(replace(mask, ranges=slack, key_block=16))}


def clusters(layout: TokenLayout, lanes: int) -> AttentionPlan:
    """Random clusters of the video, one of them empty, with text, if any, as a last one; padding comes last."""
    generator, count = torch.Generator().manual_seed(lanes), 6
    labels = torch.randint(0, count - 1, (lanes, layout.tokens), generator=generator)
    labels[:, : layout.video_start] = count
    labels[:, layout.video_end :] = count
    order = order_by(labels.int(), count + 1)
    kept = torch.rand(lanes, count + 1, count + 1, generator=generator) < 0.4
    kept[:, -1] = True
    mask = cluster_mask(order.starts, order.starts, kept, queries=layout.tokens, keys=layout.tokens,
                        query_block=16, key_block=16)  # fmt: skip
    return AttentionPlan(mask, order.order, order.order, key_groups=order.starts)


def by_hand(plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None) -> Tensor:
    """Row by row over a dense mask: each skipped token of a group is replaced by the group's mean key and value."""
    mask = plan.mask
    assert mask is not None
    out, kept, (batch, tokens, heads, width) = torch.empty_like(query), mask.to_dense(), query.shape
    for lane in range(batch * heads):
        b, h = divmod(lane, heads)
        length = tokens if lengths is None else int(lengths[b])
        rows, columns = (torch.arange(tokens) if order is None else order[lane % len(order)].long()
                         for order in (plan.query_order, plan.key_order))  # fmt: skip
        k, v = key[b, columns, h][:length], value[b, columns, h][:length]
        borders = list(range(0, tokens, mask.key_block)) + [tokens]
        if plan.key_groups is not None:
            borders = plan.key_groups[lane % len(plan.key_groups)].tolist()
        pieces = [slice(min(first, length), min(last, length)) for first, last in itertools.pairwise(borders)]
        for position, token in enumerate(rows.tolist()):
            seen = kept[lane % mask.patterns, position, :length]
            keys, values = k.clone(), v.clone()
            for piece in pieces:
                keys[piece][~seen[piece]] = k[piece].mean(0)
                values[piece][~seen[piece]] = v[piece].mean(0)
            out[b, token, h] = (keys @ query[b, token, h] * width**-0.5).softmax(0) @ values
    return out


class Recorder:
    """What a session gives to a compensation: runs plans, and remembers which."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None = None) -> None:
        self.inputs, self.lengths, self.ran = (query, key, value), lengths, list[AttentionPlan]()

    def __call__(self, plan: AttentionPlan, return_lse: bool = False) -> tuple[Tensor, Tensor | None]:
        self.ran.append(plan)
        settings: dict[str, Any] = {"key_lengths": self.lengths, "backend_name": "reference"}
        return kernels.attention(*self.inputs, plan, return_lse=return_lse, **settings)


def dense(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Attention to all keys but padding."""
    full = BlockMask.full(query.shape[1], key.shape[1])
    return kernels.attention(query, key, value, full, key_lengths=lengths, backend_name="reference")[0]
