"""Hand-made masks and calls that every backend must get right, with the answer by brute force."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vidaccel.plan import AttentionPlan, BlockMask, ExtraKeys


@dataclass(frozen=True)
class Case:
    """A call: a mask with the batch, heads, head dim and valid keys to run it with.

    `query_rows` and `key_rows` are the rows of the plan's orders (0: none), `groups` its extra keys, with a bias of
    `bias_patterns` patterns.
    """

    mask: BlockMask
    batch: int = 1
    heads: int = 2
    head_dim: int = 16
    lengths: tuple[int, ...] | None = None
    contiguous: bool = True
    query_rows: int = 0
    key_rows: int = 0
    groups: int = 0
    bias_patterns: int = 1

    def plan(self, dtype: torch.dtype = torch.float32) -> AttentionPlan:
        """The mask with random orders and extra keys; a third of the groups, and tile 1 entirely, see no group."""
        generator = torch.Generator().manual_seed(1)

        def order(rows: int, tokens: int) -> Tensor | None:
            return torch.rand(rows, tokens, generator=generator).argsort(dim=1).int() if rows else None

        extra = None
        if self.groups:
            shape = (self.batch, self.groups, self.heads, self.head_dim)
            key, value = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
            bias = torch.randn(self.bias_patterns, self.mask.tiles, self.groups, generator=generator)
            bias[torch.rand(bias.shape, generator=generator) < 0.3] = -math.inf
            bias[:, 1:2] = -math.inf
            extra = ExtraKeys(key, value, bias)
        orders = order(self.query_rows, self.mask.queries), order(self.key_rows, self.mask.keys)
        return AttentionPlan(self.mask, *orders, extra)

    def inputs(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Random query, key, value ``[batch, tokens, heads, head_dim]``; views of larger ones if not contiguous."""
        generator = torch.Generator().manual_seed(seed)

        def draw(tokens: int) -> Tensor:
            if self.contiguous:
                return torch.randn(self.batch, tokens, self.heads, self.head_dim, generator=generator).to(dtype)
            wide = torch.randn(self.batch, self.heads, tokens, 3 * self.head_dim, generator=generator).to(dtype)
            return wide.transpose(1, 2)[..., self.head_dim : 2 * self.head_dim]

        return draw(self.mask.queries), draw(self.mask.keys), draw(self.mask.keys)

    @property
    def key_lengths(self) -> Tensor | None:
        """Valid keys as a tensor."""
        return None if self.lengths is None else torch.tensor(self.lengths)


def from_rows(rows: list[list[list[tuple[int, int]]]], query_block: int, queries: int, keys: int) -> BlockMask:
    """A mask of ranges written out as ``[pattern][tile] -> [(start, end), ...]``."""
    flat = [pair for pattern in rows for tile in pattern for pair in tile]
    counts = torch.tensor([[len(tile) for tile in pattern] for pattern in rows])
    ends = counts.flatten().cumsum(0).view(counts.shape)
    offsets = torch.cat([ends[:, :1] - counts[:, :1], ends], dim=1).int()
    ranges = torch.tensor(flat, dtype=torch.int32).reshape(-1, 2)
    return BlockMask(offsets, ranges, query_block, 1, queries, keys)


def band(tokens: int, block: int, width: int) -> BlockMask:
    """Blocks within `width` blocks of the diagonal."""
    index = torch.arange(-(-tokens // block))
    return BlockMask.from_blocks(((index[:, None] - index).abs() <= width)[None], block, block, tokens, tokens)


def scattered(tokens: int, query_block: int, key_block: int, density: float, patterns: int = 1,
              keys: int | None = None) -> BlockMask:
    """Random blocks; some tiles may have none."""
    keys = tokens if keys is None else keys
    generator = torch.Generator().manual_seed(tokens + patterns)
    blocks = torch.rand(patterns, -(-tokens // query_block), -(-keys // key_block), generator=generator) < density
    return BlockMask.from_blocks(blocks, query_block, key_block, tokens, keys)


def _empty_rows() -> BlockMask:
    blocks = torch.eye(7, dtype=torch.bool)
    blocks[2] = blocks[3] = blocks[6] = False
    return BlockMask.from_blocks(blocks[None], 16, 16, 7 * 16 - 5, 7 * 16 - 5)


def _gaps() -> BlockMask:
    """Blocks on the diagonal at uneven distances, too large to be worth joining."""
    blocks = torch.diag(torch.tensor([1, 1, 0, 1, 1, 1, 0, 1]).bool())
    return BlockMask.from_blocks(blocks[None], 64, 64, 512, 512)


def _sink_and_band() -> BlockMask:
    rows = [[(0, 20), (max(20, 8 * tile - 9), min(203, 8 * tile + 17))] for tile in range(26)]
    return from_rows([[[pair for pair in tile if pair[0] < pair[1]] for tile in rows]], 8, 203, 203)


def _half_shared() -> BlockMask:
    """Batch row 0 has one pattern in both heads, row 1 that one and another: equals that are owned differently."""
    one, other = scattered(96, 16, 16, 0.4, 2).to_dense()[:, ::16, ::16].unbind(0)
    return BlockMask.from_blocks(torch.stack([one, one, one, other]), 16, 16, 96, 96)


CASES = {
    "full": Case(BlockMask.full(100, 100, 16, 16)),
    "full with ragged tails": Case(BlockMask.full(97, 61, 16, 8)),
    "band": Case(band(256, 16, 2)),
    "band, ragged tail": Case(band(251, 16, 2), batch=2),
    "wide band": Case(band(500, 16, 6), heads=3),
    "band of one block": Case(band(130, 16, 0)),
    "scattered": Case(scattered(192, 16, 16, 0.25)),
    "scattered, larger query blocks": Case(scattered(300, 64, 16, 0.3), batch=2),
    "scattered, larger key blocks": Case(scattered(300, 16, 64, 0.3)),
    "cross attention": Case(scattered(130, 16, 16, 0.3, keys=77)),
    "pattern per head": Case(scattered(190, 16, 16, 0.3, 3), batch=2, heads=3),
    "pattern per batch and head": Case(scattered(190, 16, 16, 0.3, 6), batch=2, heads=3),
    "patterns shared by some heads": Case(_half_shared(), batch=2),
    "empty rows": Case(_empty_rows()),
    "diagonal with gaps": Case(_gaps(), heads=3, head_dim=64),
    "nothing at all": Case(from_rows([[[], [], []]], 16, 40, 40)),
    "range of length 1": Case(from_rows([[[(5, 6)], [(0, 1), (39, 40)], [(7, 8), (9, 20)]]], 16, 40, 40)),
    "ranges that touch": Case(from_rows([[[(0, 5), (5, 9)], [(5, 9)], [(0, 40)]]], 16, 40, 40)),
    "unaligned ranges": Case(_sink_and_band()),
    "one token": Case(BlockMask.full(1, 1, 16, 16)),
    "key lengths": Case(band(160, 16, 3), batch=3, lengths=(160, 101, 33)),
    "key lengths, equal": Case(scattered(160, 16, 16, 0.5), batch=2, lengths=(90, 90)),
    "key lengths 0 and too long": Case(BlockMask.full(64, 64, 16, 16), batch=2, lengths=(0, 900)),
    "key lengths per pattern": Case(scattered(160, 16, 16, 0.4, 4), batch=2, lengths=(77, 159)),
    "not contiguous": Case(scattered(200, 16, 16, 0.3), batch=2, contiguous=False),
    "not contiguous, pattern per head": Case(scattered(200, 16, 16, 0.3, 2), batch=2, contiguous=False),
    "not contiguous band": Case(band(200, 16, 3), batch=2, contiguous=False),
}


PLAN_CASES = {
    "orders of all heads": Case(band(150, 16, 2), query_rows=1, key_rows=1),
    "orders per head": Case(scattered(150, 16, 16, 0.3), batch=2, query_rows=2, key_rows=2),
    "orders per batch row and head": Case(scattered(120, 16, 16, 0.3, 4), batch=2, query_rows=4, key_rows=4),
    "order of the queries alone": Case(scattered(150, 32, 16, 0.3, 2), query_rows=2),
    "order of the keys alone": Case(scattered(150, 32, 16, 0.3, 2), batch=2, key_rows=4),
    "orders, other lengths": Case(scattered(130, 16, 16, 0.3, keys=77), query_rows=2, key_rows=1),
    "orders and key lengths": Case(scattered(120, 16, 16, 0.4), batch=2, lengths=(77, 120), query_rows=2, key_rows=2),
    "orders of strided inputs": Case(scattered(90, 16, 16, 0.4), contiguous=False, query_rows=2, key_rows=2),
    "extra keys": Case(scattered(150, 16, 16, 0.2), groups=9),
    "extra keys per head": Case(scattered(150, 16, 16, 0.2, 2), batch=2, groups=70, bias_patterns=2),
    "one extra key per batch row and head": Case(band(100, 16, 1), batch=2, groups=1, bias_patterns=4),
    "extra keys and rows that see nothing": Case(_empty_rows(), groups=5),
    "extra keys alone": Case(from_rows([[[], [], []]], 16, 40, 40), groups=12),
    "orders and extra keys": Case(scattered(150, 16, 16, 0.2, 2), batch=2, query_rows=2, key_rows=2, groups=20,
                                  bias_patterns=2),
}
"""Plans with orders and extra keys."""


def brute_force(case: Case, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp in fp64, row by row straight from the ranges; nothing is shared with the package."""
    plan, offsets, ranges = case.plan(query.dtype), case.mask.offsets.tolist(), case.mask.ranges.tolist()
    query, key, value = query.double(), key.double(), value.double()
    out = torch.zeros_like(query)
    lse = torch.full((case.batch, case.heads, case.mask.queries), -math.inf, dtype=torch.float64)
    for b in range(case.batch):
        valid = case.mask.keys if case.lengths is None else case.lengths[b]
        for h in range(case.heads):
            lane = b * case.heads + h
            pattern = offsets[lane % len(offsets)]
            rows = _tokens(plan.query_order, lane, case.mask.queries)
            columns = _tokens(plan.key_order, lane, case.mask.keys)
            for row in range(case.mask.queries):
                tile = row // case.mask.query_block
                kept = [k for start, end in ranges[pattern[tile] : pattern[tile + 1]] for k in range(start, end)]
                kept = [columns[k] for k in kept if k < valid]
                scores, values = (key[b, kept, h] @ query[b, rows[row], h]) * scale, value[b, kept, h]
                if plan.extra is not None:
                    bias = plan.extra.bias[lane % len(plan.extra.bias), tile].double()
                    more = plan.extra.key[b, :, h].double() @ query[b, rows[row], h] * scale + bias
                    seen = bias > -math.inf
                    scores = torch.cat([scores, more[seen]])
                    values = torch.cat([values, plan.extra.value[b, seen, h].double()])
                if len(scores):
                    lse[b, h, rows[row]] = scores.logsumexp(0)
                    out[b, rows[row], h] = scores.softmax(0) @ values
    return out, lse


def _tokens(order: Tensor | None, lane: int, tokens: int) -> list[int]:
    return list(range(tokens)) if order is None else order[lane % len(order)].tolist()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of `expected`; 0 where both are zero."""
    norm = float(expected.double().norm())
    difference = float((actual.double() - expected.double()).norm())
    return difference / norm if norm else difference
