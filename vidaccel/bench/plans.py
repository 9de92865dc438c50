"""Plans to time: a band, random blocks of each head, and unequal clusters that permute the tokens.

Made on the device, from a seed. Densities are nearest to what was asked for; a result states the plan's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidaccel.bench.shapes import Shape
from vidaccel.plan import AttentionPlan, BlockMask
from vidaccel.planning.order import cluster_mask

KINDS = ("banded", "random", "clustered")
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
BLOCK = 128
QUERY_CLUSTERS, KEY_CLUSTERS = 100, 500
"""Of a head at 720p, as Sparse VideoGen2 (arXiv 2505.18875) clusters; fewer where there are few tokens."""
KEY_STEP = 64
"""Keys that kernels take at a time: what ranges of clusters, which start anywhere, are counted as padded to."""
UNEVENNESS = 16.0
"""The largest cluster's expected share over the smallest one's."""


def make(kind: str, shape: Shape, density: float, device: torch.device | str, block: int = BLOCK,
         seed: int = 0) -> AttentionPlan:
    """A plan of one kind, on `device`.

    Args:
        kind: "banded", one pattern for all heads; "random", another choice of blocks in each head; or "clustered",
            ranges of whole clusters, with orders of queries and keys that are random permutations of each head.
        density: share of the pairs to keep, in (0, 1].
        block: tokens of a query tile, and of a block of keys where keys come in blocks.

    Raises:
        ValueError: an unknown kind, or a density outside (0, 1].
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of plan {kind!r}; choose {', '.join(KINDS)}")
    if not 0 < density <= 1:
        raise ValueError(f"density {density} is outside (0, 1]")
    generator = torch.Generator(device).manual_seed(seed)
    if kind == "clustered":
        return _clustered(shape, density, block, generator)
    blocks = (_band if kind == "banded" else _random)(shape, density, -(-shape.tokens // block), generator)
    return AttentionPlan(BlockMask.from_blocks(blocks, block, block, shape.tokens, shape.tokens))


def _band(shape: Shape, density: float, count: int, generator: torch.Generator) -> Tensor:
    """The same number of blocks in every row, around the diagonal, moved inside at the ends."""
    kept = max(1, round(density * count))
    index = torch.arange(count, device=generator.device)
    first = (index - kept // 2).clamp(0, count - kept)[:, None]
    return ((index >= first) & (index < first + kept))[None]


def _random(shape: Shape, density: float, count: int, generator: torch.Generator) -> Tensor:
    """As many random blocks in every row of every head, its own among them."""
    draw = torch.rand(shape.heads, count, count, generator=generator, device=generator.device)
    draw.diagonal(dim1=1, dim2=2).fill_(-1)
    rank = draw.argsort(dim=-1).argsort(dim=-1)
    return rank < max(1, round(density * count))


def _clustered(shape: Shape, density: float, block: int, generator: torch.Generator) -> AttentionPlan:
    """Random clusters of keys for each cluster of queries; a tile that meets several query clusters has their union."""
    heads, tokens = shape.heads, shape.tokens
    queries = _edges(heads, tokens, max(2, min(QUERY_CLUSTERS, tokens // 128)), generator)
    keys = _edges(heads, tokens, max(4, min(KEY_CLUSTERS, tokens // 64)), generator)
    kept = _drawn(keys, queries.shape[1] - 1, density * tokens, generator)
    mask = cluster_mask(queries.int(), keys.int(), kept, queries=tokens, keys=tokens, query_block=block,
                        key_block=KEY_STEP).trimmed()  # fmt: skip
    orders = torch.rand(2, heads, tokens, generator=generator, device=generator.device).argsort(-1).int()
    return AttentionPlan(mask, query_order=orders[0], key_order=orders[1])


def _edges(heads: int, tokens: int, clusters: int, generator: torch.Generator) -> Tensor:
    """Where clusters of very unequal sizes begin and end: int64 ``[heads, clusters + 1]``, none empty."""
    share = 1 + torch.rand(heads, clusters, generator=generator, device=generator.device) ** 2 * (UNEVENNESS - 1)
    inner = (share.cumsum(1) / share.sum(1, keepdim=True) * (tokens - clusters)).round().long()
    edges = torch.nn.functional.pad(inner, (1, 0)) + torch.arange(clusters + 1, device=inner.device)
    edges[:, -1] = tokens
    return edges


def _drawn(edges: Tensor, rows: int, due: float, generator: torch.Generator) -> Tensor:
    """Key clusters of each row in a random order until they hold `due` tokens: bool ``[heads, rows, clusters]``."""
    sizes = edges.diff(dim=1)
    order = torch.rand(len(edges), rows, sizes.shape[1], generator=generator, device=generator.device).argsort(-1)
    width = sizes[:, None].expand(-1, rows, -1).gather(2, order)
    # Half of the last cluster over, half under: on average as much as is due.
    taken = width.cumsum(-1) - width / 2 <= due
    taken[..., 0] = True
    return torch.zeros_like(taken).scatter_(2, order, taken)
