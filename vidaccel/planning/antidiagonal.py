"""Block scores from the antidiagonals of small tiles of the score matrix.

XAttention (Xu et al. 2025): every vertical and every slash of an attention map crosses the antidiagonal of each tile of
stride x stride tokens, so a block that matters shows in the sums of antidiagonals, which cost 1 / stride of the scores.
At an even stride a slash is crossed where query and key are an odd distance apart: a lone one at an even distance, such
as the diagonal itself, shows only by its neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidaccel.planning import dispatch, shapes

MOST_CELLS = 128
"""Cells of a block that the kernels have: 1,024 tokens at stride 8. Larger blocks run in torch."""
WORKING_BYTES = 256 << 20
"""Scratch memory of either path: lanes are worked on in groups."""


def block_scores(
    query: Tensor,
    key: Tensor,
    query_block: int,
    key_block: int,
    stride: int,
    *,
    scale: float,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """The block map that antidiagonal sums predict.

    Queries and keys are cut into cells of `stride` tokens. The score of a pair of cells is the mean of the scaled
    scores on the antidiagonal of its tile: query ``stride - 1 - r`` with key ``r``. A softmax runs over the key cells
    of a query cell; a block gets the mean of it over the tile's queries. A last cell with fewer tokens repeats its
    last one, and counts for the share of `stride` that it has, as query and as key: what lies past the end is absent.

    The products take 2 * N^2 * head_dim / stride operations per head: at stride 8 a sixteenth of dense attention. The
    kernel makes one pass over them and keeps, per strided row and key block, the logarithm of a sum of exponentials:
    22 MB per head at 75,600 tokens, stride 8 and 128-token blocks.

    Args:
        query, key: ``[batch, tokens, heads, head_dim]``.
        query_block, key_block: tokens, multiples of `stride`.
        stride: tokens of a cell; 8 or 16 in the paper.
        scale: of the scores of tokens, usually ``head_dim ** -0.5``.
        key_lengths: int ``[batch]``; keys from there on are padding and absent, too.

    Returns:
        fp32 ``[batch * heads, query tiles, key blocks]``, rows that sum to 1; zeros where a batch row has no keys.

    Raises:
        ValueError: shapes, types or sizes that do not fit.
    """
    shapes.check_pair(query, key)
    shapes.check_block("stride", stride)
    shapes.check_block("query_block", query_block, stride)
    shapes.check_block("key_block", key_block, stride)
    key_lengths = shapes.check_lengths("key_lengths", key_lengths, key)
    if not dispatch.uses_triton(query, key, unless=_why_not(query, max(query_block, key_block) // stride)):
        return _torch(query, key, query_block, key_block, stride, scale, key_lengths)
    run = dispatch.module("antidiagonal").run
    scores: Tensor = run(query, key, query_block, key_block, stride, scale, key_lengths, WORKING_BYTES)
    return scores


def _why_not(query: Tensor, cells: int) -> str | None:
    if cells > MOST_CELLS:
        return f"a block has {cells} cells, the kernels at most {MOST_CELLS}"
    return shapes.no_dot(query)


def _torch(
    query: Tensor, key: Tensor, query_block: int, key_block: int, stride: int, scale: float, lengths: Tensor | None
) -> Tensor:
    """Cells as rows of stride * head_dim features, phases of the queries reversed: their products are the sums."""
    lanes, tiles = query.shape[0] * query.shape[2], -(-query.shape[1] // query_block)
    scores = query.new_empty(lanes, tiles, -(-key.shape[1] // key_block), dtype=torch.float32)
    every = torch.tensor(query.shape[1], device=query.device)
    for lane in range(lanes):
        rows, row_share = _cells(shapes.states_of_lane(query, lane), every, stride)
        length = shapes.length_of_lane(lengths, lane, key)
        columns, share = _cells(shapes.cleared(shapes.states_of_lane(key, lane), length), length, stride)
        features, per_tile = columns.flatten(1).T, query_block // stride
        step = max(1, WORKING_BYTES // (12 * len(columns) * per_tile))
        for first in range(0, tiles, step):
            part = slice(first * per_tile, (first + step) * per_tile)
            logits = rows[part].flip(1).flatten(1) @ features * (scale / stride) + share.log()
            weights = logits.softmax(-1).nan_to_num(0.0)
            scores[lane, first : first + step] = _tile_means(weights, row_share[part], per_tile, key_block // stride)
    return scores


def block_scores_reference(
    query: Tensor, key: Tensor, query_block: int, key_block: int, stride: int, *, scale: float
) -> Tensor:
    """The definition, read off the true score matrix of each head: small grids only."""
    lanes, every = query.shape[0] * query.shape[2], torch.tensor(query.shape[1])
    maps = []
    for lane in range(lanes):
        rows, row_share = _cells(shapes.states_of_lane(query, lane), every, stride)
        columns, share = _cells(shapes.states_of_lane(key, lane), torch.tensor(key.shape[1]), stride)
        scores = scale * rows.flatten(0, 1) @ columns.flatten(0, 1).T
        sums = torch.zeros(len(rows), len(columns))
        for i in range(len(rows)):
            for j in range(len(columns)):
                tile = scores[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
                sums[i, j] = sum(tile[stride - 1 - r, r] for r in range(stride))
        weights = (sums / stride).exp() * share
        weights = weights / weights.sum(1, keepdim=True)
        maps.append(_tile_means(weights, row_share, query_block // stride, key_block // stride))
    return torch.stack(maps)


def _cells(states: Tensor, length: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """``[cells, stride, head_dim]``, and the share of each cell's tokens that exist."""
    place = torch.arange(-(-len(states) // stride) * stride, device=states.device)
    start = place // stride * stride
    here = (length - start).clamp(0, stride)
    token = (torch.minimum(place, start + here - 1)).clamp(0, len(states) - 1)
    return states[token].unflatten(0, (-1, stride)), here[::stride].float() / stride


def _tile_means(weights: Tensor, row_share: Tensor, per_tile: int, per_block: int) -> Tensor:
    """Sum over the cells of each block, mean over the queries of each tile: ``[tiles, blocks]``."""
    pad = (0, -weights.shape[1] % per_block, 0, -len(weights) % per_tile)
    padded: Tensor = torch.nn.functional.pad(weights * row_share[:, None], pad)
    blocks = padded.unflatten(0, (-1, per_tile)).unflatten(2, (-1, per_block)).sum((1, 3))
    shares: Tensor = torch.nn.functional.pad(row_share, (0, -len(row_share) % per_tile))
    means: Tensor = blocks / shares.unflatten(0, (-1, per_tile)).sum(1)[:, None]
    return means
