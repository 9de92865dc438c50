"""What the sampled queries of one head say: how far candidates are from dense, and where the attention mass lies.

The blocks of a candidate are whole, so a row's attention is summed once per block of keys and order, and a candidate's
output is the sum over its blocks: hundreds of candidates cost little more than one. The same as
`planning.sampled.output_errors`, which computes each by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vidaccel.layout import TokenLayout
from vidaccel.patterns import orders

TINY = torch.finfo(torch.float32).tiny


def weights(query: Tensor, key: Tensor, scale: float, length: Tensor | None) -> Tensor:
    """Attention weights of some rows of one head before normalisation, their largest 1: fp32 ``[rows, keys]``.

    Args:
        query: ``[rows, head_dim]``.
        key: ``[keys, head_dim]``.
        length: the number of valid keys, a tensor of one; None where all are.
    """
    scores = query.float() @ key.float().T * scale
    if length is not None:
        scores = scores.masked_fill(torch.arange(len(key), device=key.device) >= length, float("-inf"))
    return (scores - scores.amax(1, keepdim=True)).exp()


def projected(value: Tensor, factor: Tensor | None) -> Tensor:
    """Values as the output projection weighs them, and ones for the denominator: fp32 ``[keys, width + 1]``.

    Args:
        value: ``[keys, head_dim]``.
        factor: ``[head_dim, head_dim]``, R of the QR decomposition of the head's columns of the projection: lengths of
            R o are those of W o. None leaves values as they are.
    """
    states = value.float().nan_to_num(0.0, 0.0, 0.0)
    states = states if factor is None else states @ factor.T
    return functional.pad(states, (0, 1), value=1.0)


def block_sums(weights: Tensor, values: Tensor, order: Tensor | None, block: int) -> Tensor:
    """Numerator and denominator of each row over each key block of an order: fp32 ``[rows, tiles, width]``.

    Args:
        weights: of `weights`.
        values: of `projected`.
        order: int ``[keys]``, the token at each position; None is the natural order.
    """
    if order is not None:
        weights, values = weights[:, order], values[order]
    rest = -len(values) % block
    by_block = functional.pad(weights, (0, rest)).unflatten(1, (-1, block)).transpose(0, 1)
    sums: Tensor = by_block @ functional.pad(values, (0, 0, 0, rest)).unflatten(0, (-1, block))
    return sums.transpose(0, 1)


def errors(sums: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Squared output error of candidates, and the dense outputs' squared norm, both summed over rows: fp64.

    A row that keeps no key, or none of any weight in fp32, has an output of zeros.

    Args:
        sums: of `block_sums`, ``[rows, tiles, width]``.
        kept: bool ``[candidates, rows, tiles]``.

    Returns:
        ``[candidates]``, and a scalar.
    """
    dense = _divided(sums.sum(1, keepdim=True))
    out = _divided(kept.transpose(0, 1).float() @ sums)
    return (out - dense).double().square().sum((0, 2)), dense.double().square().sum()


def _divided(sums: Tensor) -> Tensor:
    return sums[..., :-1] / sums[..., -1:].clamp(min=TINY)


def mass(
    weights: Tensor, rows: Tensor, cells: Tensor, layout: TokenLayout, side: int
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Attention mass between cells of video positions in each axis order, and how many rows it was taken from.

    Args:
        weights: of `weights`.
        rows: int64 ``[rows]``, the sampled queries' tokens.
        cells: of `cells_of`.
        side: cells along a side.

    Returns:
        fp64 ``[orders, side, side]`` and ``[orders, side]``, sums over the rows of each query cell, and the mass on
        each video key, ``[video_tokens]``, over all rows. A row's mass on text is left out.
    """
    shares = weights / weights.sum(1, keepdim=True)
    shares = shares[:, layout.video_start : layout.video_end]
    of_rows = cells[:, rows - layout.video_start]
    numbers = torch.arange(side, device=cells.device)
    maps, counts = [], []
    for cell, of_row in zip(cells, of_rows, strict=True):
        # Products with ones and zeros: deterministic also on a GPU, where sums by index are not.
        rows_in = (of_row[:, None] == numbers).float()
        maps.append(rows_in.T @ (shares @ (cell[:, None] == numbers).float()))
        counts.append(rows_in.sum(0))
    return torch.stack(maps).double(), torch.stack(counts).double(), shares.sum(0).double()


def by_axis(weights: Tensor, rows: Tensor, layout: TokenLayout) -> Tensor:
    """Attention mass between the frames of the clip, between its rows and between its columns.

    Args:
        weights: of `weights`.
        rows: int64 ``[rows]``, the sampled queries' tokens.

    Returns:
        fp64 ``[frames ** 2 + height ** 2 + width ** 2]``: three matrices one after the other, queries' places by
        keys', each a sum over the rows. A row's mass on text is left out.
    """
    sizes = (layout.frames, layout.height, layout.width)
    shares = (weights / weights.sum(1, keepdim=True))[:, layout.video_start : layout.video_end].unflatten(1, sizes)
    token = rows.to(weights.device) - layout.video_start
    places = (token // layout.frame_tokens, token // layout.width % layout.height, token % layout.width)
    found = []
    for axis, (size, place) in enumerate(zip(sizes, places, strict=True)):
        mass = shares.sum([other + 1 for other in range(3) if other != axis])
        of_row = (place[:, None] == torch.arange(size, device=place.device)).float()
        found.append((of_row.T @ mass).flatten())
    return torch.cat(found).double()


def cells_of(layout: TokenLayout, side: int) -> Tensor:
    """The cell of each video token in each axis order, `side` equal ones along it: int64 ``[orders, video_tokens]``."""
    tokens = layout.video_tokens
    cell = torch.arange(tokens) * side // tokens
    return torch.stack([torch.empty_like(cell).scatter_(0, orders.video_order(layout, name), cell)
                        for name in orders.AXES])  # fmt: skip


def sample_rows(layout: TokenLayout, count: int, generator: torch.Generator) -> Tensor:
    """Tokens of `count` video queries, one at a random place of each of `count` equal parts: int64 ``[count]``.

    As many as there are video tokens at most.
    """
    count = min(count, layout.video_tokens)
    edge = torch.arange(count + 1, dtype=torch.int64) * layout.video_tokens // count
    place = torch.rand(count, generator=generator, dtype=torch.float64)
    inside = (place * (edge[1:] - edge[:-1])).long()
    return layout.video_start + edge[:-1] + inside
