"""Slow, obvious definitions of what methods that score blocks choose: loops, plain sorting, one head at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.online import check_unseen, site_of, states
from vidaccel.layout import TokenLayout
from vidaccel.methods.base import Method
from vidaccel.plan import AttentionPlan

LAYOUTS = [
    TokenLayout(5, 6, 7), TokenLayout(3, 9, 13), TokenLayout(5, 6, 7, text_before=9),
    TokenLayout(4, 7, 9, text_after=21),
]  # fmt: skip
"""Odd grids, text before, after or none."""
Map = list[list[float]]
"""Scores of a head by query tile and key tile."""


@dataclass(frozen=True)
class Cut:
    """A sequence of tokens, cut into tiles.

    Args:
        tiles: the tokens of each.
        video: how many of them are video.
        text: tiles that hold any text.
    """

    tiles: list[list[int]]
    video: list[int]
    text: set[int]

    @classmethod
    def of(cls, layout: TokenLayout, sequence: Iterable[int], block: int) -> Cut:
        tokens = list(sequence)
        tiles = [tokens[at : at + block] for at in range(0, len(tokens), block)]
        video = [sum(layout.video_start <= token < layout.video_end for token in tile) for tile in tiles]
        return cls(tiles, video, {at for at, tile in enumerate(tiles) if video[at] < len(tile)})

    def forced(self, more: Iterable[tuple[int, int]] = ()) -> set[tuple[int, int]]:
        """The diagonal, all pairs with a tile of text, and more."""
        every = range(len(self.tiles))
        return {(i, j) for i in every for j in every if i == j or {i, j} & self.text} | set(more)


def natural(layout: TokenLayout) -> list[int]:
    """The tokens as they are."""
    return list(range(layout.tokens))


def patches(layout: TokenLayout, rows: int, columns: int) -> list[int]:
    """Video tokens by frame and patch, then text."""

    def place(token: int) -> tuple[int, ...]:
        frame, at = divmod(token - layout.video_start, layout.frame_tokens)
        row, column = divmod(at, layout.width)
        return frame, row // rows, column // columns, row, column

    video = sorted(range(layout.video_start, layout.video_end), key=place)
    return video + [t for t in range(layout.tokens) if not layout.video_start <= t < layout.video_end]


def pooled_map(query: Tensor, key: Tensor, cut: Cut, allowed: set[int] | None = None) -> Map:
    """Softmax of the scaled products of tiles' means ``[tokens, head_dim]``, over tiles of video (or `allowed`)."""
    allowed = set(range(len(cut.tiles))) - cut.text if allowed is None else allowed
    queries, keys = ([each[tile].double().mean(0) for tile in cut.tiles] for each in (query, key))
    rows = []
    for mean in queries:
        scores = {at: float(mean @ keys[at]) * query.shape[1] ** -0.5 for at in allowed}
        most = max(scores.values(), default=0.0)
        weights = {at: math.exp(score - most) for at, score in scores.items()}
        total = sum(weights.values())
        rows.append([weights[at] / total if at in weights else 0.0 for at in range(len(cut.tiles))])
    return rows


def within(maps: Sequence[Map], cut: Cut, density: float, forced: set[tuple[int, int]]) -> Tensor:
    """Blocks by falling score over all maps, forced ones first, until the next would cross the budget."""
    budget = density * len(maps) * sum(cut.video) ** 2 + 1e-9
    every = [(head, i, j) for head in range(len(maps)) for i in range(len(cut.tiles)) for j in range(len(cut.tiles))]
    every.sort(key=lambda at: ((at[1], at[2]) not in forced, -maps[at[0]][at[1]][at[2]]))
    kept, spent = torch.zeros(len(maps), len(cut.tiles), len(cut.tiles), dtype=torch.bool), 0
    for head, i, j in every:
        spent += cut.video[i] * cut.video[j]
        if (i, j) in forced or spent <= budget:
            kept[head, i, j] = True
    return kept


def by_share(scores: Map, share: float, forced: set[tuple[int, int]]) -> Tensor:
    """In each row forced blocks, then blocks by falling score, until their sum reaches a share of the row's."""
    kept = torch.zeros(len(scores), len(scores), dtype=torch.bool)
    for i, row in enumerate(scores):
        held, due = 0.0, share * sum(row)
        for j in sorted(range(len(row)), key=lambda j: ((i, j) not in forced, -row[j])):
            if (i, j) in forced or held < due:
                kept[i, j] = True
            held += row[j]
    return kept


def check_plan(
    method: Any, layout: TokenLayout, cut: Cut, scored: Callable[[Tensor, Tensor], Map],
    more: Iterable[tuple[int, int]] = (), apart: bool = False,
) -> AttentionPlan:  # fmt: skip
    """A method's plan at batch 2 keeps the blocks of its definition, which padded text at the end does not change.

    Args:
        method: a `Blocks`.
        cut: the tokens as it has to cut them.
        scored: the scores of a head from its query and key, ``[tokens, head_dim]``.
        more: blocks kept in any case, of all heads.
        apart: each head has its budget.
    """
    query, key, value = states(layout, batch=2)
    plan: AttentionPlan = method.plan(query * 2, key, value, site_of(layout), {})
    assert plan.mask is not None and plan.mask.patterns == 6
    plan.mask.validate()
    maps = [scored(query[row, :, head] * 2, key[row, :, head]) for row in range(2) for head in range(3)]
    forced = cut.forced(more)
    if method.top_p is not None:
        expected = torch.stack([by_share(each, method.top_p, forced) for each in maps])
    else:
        groups = [maps[at : at + 1] for at in range(6)] if apart else [maps[:3], maps[3:]]
        expected = torch.cat([within(each, cut, method.density, forced) for each in groups])
        least = sum(cut.video[i] * cut.video[j] for i, j in forced) / sum(cut.video) ** 2
        assert plan.density(layout).video_density <= max(method.density, least) + 1e-9
    assert not expected.all() and torch.equal(blocks_of(plan), expected)
    check_order(plan, cut)
    for each in (query, key, value):
        each[:, layout.video_end :] = 1e3
    again = method.plan(query * 2, key, value, site_of(layout), {})
    assert torch.equal(blocks_of(again), expected)
    return plan


def blocks_of(plan: AttentionPlan) -> Tensor:
    """The blocks that a plan keeps: bool ``[patterns, tiles, tiles]``, each whole."""
    assert plan.mask is not None
    kept, block = plan.mask.to_dense(), plan.mask.query_block
    blocks = kept[:, ::block, ::block]
    whole = blocks.repeat_interleave(block, 1).repeat_interleave(block, 2)
    assert torch.equal(kept, whole[:, : kept.shape[1], : kept.shape[2]])
    return blocks


def check_order(plan: AttentionPlan, cut: Cut) -> None:
    """Queries and keys are in the sequence that was cut."""
    tokens = [token for tile in cut.tiles for token in tile]
    for order in (plan.query_order, plan.key_order):
        assert (list(range(len(tokens))) if order is None else order[0].tolist()) == tokens


def check_nothing_waits(method: Method, layout: TokenLayout = LAYOUTS[3]) -> None:
    """A method plans without the contents of a tensor."""
    check_unseen(method, layout)


def refused(make: Callable[..., Any], complaint: str, **options: Any) -> None:
    """A value is refused with this complaint."""
    with pytest.raises(ValueError, match=complaint):
        make(**options)
