"""Which key blocks each query tile keeps: the best by number, by their share of the mass, or within one budget.

Scores are fp32 ``[patterns, tiles, blocks]``, results bool maps of that shape, which `BlockMask.from_blocks` turns into
ranges. Of equal scores the lower block number is the better one; NaN counts as ``-inf``, the worst. Blocks of `keep`
(sinks, the diagonal, text; bool, broadcast to the scores' shape) are always kept and taken before all others, so that
they use up the number, the mass or the budget first. Nothing waits for a GPU.

The kernels sort nothing: they find the border score of a row by bisection over its bits (`triton_select`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidaccel.planning import dispatch, shared
from vidaccel.site import Dealt

CHUNK = 1 << 22
"""Costs that are summed at a time."""
MAX_BLOCKS = 8192
"""Blocks of a row that a kernel holds at once; longer rows are sorted in torch."""


def top_k(scores: Tensor, count: int | Tensor, *, keep: Tensor | None = None) -> Tensor:
    """The `count` best blocks of each row; all blocks where there are no more.

    Args:
        scores: fp32 ``[patterns, tiles, blocks]``.
        count: blocks per row, those of `keep` included; or int ``[patterns]`` or ``[patterns, tiles]``.
        keep: bool, broadcast to the scores' shape; a row with more than `count` of these keeps just these.

    Raises:
        ValueError: shapes or types other than these, or a negative number.
    """
    counts, keep = _counts(scores, count, "count"), _broadcast(keep, scores, "keep")
    if _uses_triton(scores, keep, counts):
        kept: Tensor = dispatch.module("select").pick(scores, counts, keep=keep)
        return kept
    return top_k_reference(scores, counts, keep=keep)


def top_k_reference(scores: Tensor, count: int | Tensor, *, keep: Tensor | None = None) -> Tensor:
    """`top_k` by sorting."""
    first = _numbers(scores) < _counts(scores, count, "count")[..., None]
    return _scattered(_best_first(scores, keep), first, keep)


def top_p(
    scores: Tensor,
    mass: float | Tensor,
    *,
    sizes: Tensor | None = None,
    minimum: int | Tensor = 1,
    keep: Tensor | None = None,
) -> Tensor:
    """The fewest best blocks of each row whose share of the row's mass reaches `mass`: the one that crosses it is kept.

    Without `sizes` a score is the mass of its block. With them it is the mass of one token, a block's mass is its score
    times its size, and the best block is still that of the highest score: most mass for the fewest tokens. To rank
    clusters by their whole mass, as SVG2 (Yang et al., "Sparse VideoGen2", 2025) does, multiply the scores yourself.

    Args:
        scores: fp32 ``[patterns, tiles, blocks]``, finite; a negative score has no mass.
        mass: share in (0, 1]; or fp32 ``[patterns]`` or ``[patterns, tiles]``.
        sizes: tokens per block, ``[blocks]``, ``[patterns, blocks]`` or three dimensions that broadcast to the scores.
        minimum: keep at least that many blocks of a row, also of one without mass; a number or as for `top_k`.
        keep: see `top_k`.

    Raises:
        ValueError: shapes or types other than these, or a share outside (0, 1].
    """
    minima, masses = _counts(scores, minimum, "minimum"), _masses(scores, mass)
    sizes, keep = _broadcast(sizes, scores, "sizes"), _broadcast(keep, scores, "keep")
    if _uses_triton(scores, keep, sizes, minima, masses):
        kept: Tensor = dispatch.module("select").pick(scores, minima, masses, sizes, keep)
        return kept
    return top_p_reference(scores, masses, sizes=sizes, minimum=minima, keep=keep)


def top_p_reference(
    scores: Tensor,
    mass: float | Tensor,
    *,
    sizes: Tensor | None = None,
    minimum: int | Tensor = 1,
    keep: Tensor | None = None,
) -> Tensor:
    """`top_p` by sorting; its sums round differently, so a block at the border may differ."""
    order = _best_first(scores, keep)
    each = torch.where(scores > 0, scores, 0)
    size = _broadcast(sizes, scores, "sizes")
    each = each if size is None else each * size
    upto = each.gather(-1, order).cumsum(-1)
    before = torch.nn.functional.pad(upto[..., :-1], (1, 0))
    short = before < _masses(scores, mass)[..., None] * upto[..., -1:]
    return _scattered(order, short | (_numbers(scores) < _counts(scores, minimum, "minimum")[..., None]), keep)


def budgeted(
    scores: Tensor,
    density: float,
    *,
    weights: Tensor | None = None,
    minimum: int = 1,
    groups: int = 1,
    keep: Tensor | None = None,
    heads: Dealt | None = None,
) -> Tensor:
    """The best blocks over all rows of a group, up to a share `density` of its cost.

    Heads that need less give to those that need more. Blocks are taken by falling score, whatever their row, until the
    next one would cross the budget; scores must mean the same in all rows. `keep` and the `minimum` best blocks of each
    row come first, even if they exceed the budget.

    The kernels read the scores ten times (the minimum, eight rounds of four bits, the result): about 50 bytes per block
    and no workspace. A radix sort moves about twice as much, needs 24 bytes per block at once, and then gathers.

    Args:
        scores: fp32 ``[patterns, tiles, blocks]``.
        density: kept share of the group's cost, in (0, 1].
        weights: integer cost of a block, such as its query-key pairs; shapes as `sizes` of `top_p`. None: all cost 1.
        minimum: blocks of every row that are kept in any case, those of `keep` included.
        groups: the patterns are that many equal runs with a budget each; the batch size for a budget per batch row.
        keep: see `top_k`.
        heads: which those of a group are, where other processes have others that share its budget.

    Raises:
        ValueError: shapes or types other than these, or numbers out of range.
    """
    forced = top_k(scores, minimum, keep=keep)
    costs, budget = _budget(scores, density, weights, groups, heads)
    if heads is not None:
        return shared.cut(scores, forced, costs, budget, heads)
    if _uses_triton(scores, forced, costs):
        kept: Tensor = dispatch.module("select").cut(scores, forced, costs, budget)
        return kept
    return _within(scores, forced, costs, budget)


def budgeted_reference(
    scores: Tensor,
    density: float,
    *,
    weights: Tensor | None = None,
    minimum: int = 1,
    groups: int = 1,
    keep: Tensor | None = None,
) -> Tensor:
    """`budgeted` by sorting all blocks of a group."""
    forced = top_k_reference(scores, minimum, keep=keep)
    return _within(scores, forced, *_budget(scores, density, weights, groups))


def _within(scores: Tensor, forced: Tensor, costs: Tensor | None, budget: Tensor) -> Tensor:
    flat, first = scores.reshape(len(budget), -1), forced.reshape(len(budget), -1)
    order = _best_first(flat, first)
    cost = torch.ones_like(order) if costs is None else costs.reshape(flat.shape).long().gather(-1, order)
    return _scattered(order, cost.cumsum(-1) <= budget[:, None], first).view(scores.shape)


def _budget(
    scores: Tensor, density: float, weights: Tensor | None, groups: int, heads: Dealt | None = None
) -> tuple[Tensor | None, Tensor]:
    """The costs broadcast to the scores, and the budget of each group: int64 ``[groups]``."""
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density={density} is not in (0, 1]")
    if groups < 1 or len(scores) % groups:
        raise ValueError(f"{len(scores)} patterns are not {groups} equal groups")
    if weights is not None and (weights.is_floating_point() or weights.dtype == torch.bool):
        raise ValueError(f"weights are integers, such as pairs, so that sums are exact; got {weights.dtype}")
    costs = _broadcast(weights, scores, "weights")
    if costs is None:
        total = torch.full((groups,), scores.numel() // groups, dtype=torch.int64, device=scores.device)
    else:
        total = _totals(costs).view(groups, -1).sum(1)
    total = total if heads is None else shared.total(total, heads)
    # 0.29 * 100 is 28.999999999999996: a budget that is whole must not lose one to rounding.
    return costs, (total.double() * density * (1 + 1e-15)).floor().long()


def _totals(costs: Tensor) -> Tensor:
    """What all blocks of each pattern cost: int64 ``[patterns]``."""
    # Sums in 64 bits copy what they sum: some patterns at a time, and those that share their costs once.
    distinct = costs[:1] if costs.stride(0) == 0 else costs
    step = max(1, CHUNK // max(1, costs[0].numel()))
    sums = [part.sum((1, 2), dtype=torch.int64) for part in distinct.split(step)]
    return torch.cat(sums).repeat(len(costs) // len(distinct))


def _best_first(scores: Tensor, keep: Tensor | None) -> Tensor:
    """Blocks of a row from best to worst, those of `keep` before all others."""
    order: Tensor = torch.where(scores.isnan(), float("-inf"), scores).argsort(dim=-1, descending=True, stable=True)
    if keep is None:
        return order
    first = keep.expand(scores.shape).byte().gather(-1, order)
    return order.gather(-1, first.argsort(dim=-1, descending=True, stable=True))


def _scattered(order: Tensor, kept: Tensor, keep: Tensor | None) -> Tensor:
    """`kept`, which speaks of blocks in `order`, by block number, and `keep`."""
    by_number = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, kept)
    return by_number if keep is None else by_number | keep


def _numbers(scores: Tensor) -> Tensor:
    return torch.arange(scores.shape[-1], device=scores.device)


def _counts(scores: Tensor, count: int | Tensor, name: str) -> Tensor:
    if not isinstance(count, Tensor) and count < 0:
        raise ValueError(f"{name}={count} blocks per row is negative")
    return _per_row(scores, count, torch.int32, name)


def _masses(scores: Tensor, mass: float | Tensor) -> Tensor:
    if not isinstance(mass, Tensor) and not 0.0 < mass <= 1.0:
        raise ValueError(f"mass={mass} is not a share in (0, 1]")
    return _per_row(scores, mass, torch.float32, "mass")


def _per_row(scores: Tensor, value: float | Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A number of each row: contiguous ``[patterns, tiles]``."""
    if scores.ndim != 3 or scores.dtype != torch.float32:
        raise ValueError(f"scores are float32 [patterns, tiles, blocks], got {scores.dtype} {list(scores.shape)}")
    rows = scores.shape[:2]
    if not isinstance(value, Tensor):
        return torch.full(rows, value, dtype=dtype, device=scores.device)
    if value.shape not in (rows[:1], rows):
        raise ValueError(f"{name} is a number, {list(rows[:1])} or {list(rows)}, got {list(value.shape)}")
    return (value if value.ndim == 2 else value[:, None]).to(dtype).expand(rows).contiguous()


def _broadcast(values: Tensor | None, scores: Tensor, name: str) -> Tensor | None:
    """A number of each block as a view of the scores' shape; two dimensions are ``[patterns, blocks]``, but of keep."""
    if values is None:
        return None
    if name == "keep" and values.dtype != torch.bool:
        raise ValueError(f"keep is bool, got {values.dtype}")
    given = values[:, None] if values.ndim == 2 and name != "keep" else values
    try:
        return given.expand(scores.shape)
    except RuntimeError:
        raise ValueError(f"{name} of shape {list(values.shape)} does not fit scores {list(scores.shape)}") from None


def _uses_triton(scores: Tensor, *others: Tensor | None) -> bool:
    blocks = scores.shape[-1]
    unless = f"a row has {blocks} blocks, at most {MAX_BLOCKS} fit" if blocks > MAX_BLOCKS else None
    return dispatch.uses_triton(scores, *(each for each in others if each is not None), unless=unless)
