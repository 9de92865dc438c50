"""Triton kernels of `select`: a program per row finds the border score by bisection over the bits of its scores."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidaccel.planning.shapes import power_of_two
from vidaccel.triton_launch import Launch

DIGIT = 4
"""Bits of the border score that a round of `cut` finds."""
BORDERS = tl.constexpr(2**DIGIT + 1)


@triton.jit
def _ranked(score, forced, inside):
    """int32 that rise with the score: NaN as -inf, zeros equal, forced blocks highest, places outside lowest."""
    score = tl.where(score != score, float("-inf"), score)
    score = tl.where(score == 0.0, 0.0, score)
    bits = score.to(tl.int32, bitcast=True)
    rank = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(inside, tl.where(forced, 2147483647, rank), -2147483648)


@triton.jit
def _values(pointer, row, tiles, block, inside, by_pattern, by_tile, by_block):
    """A number of each block of a row, by the strides of a tensor that may be broadcast."""
    pointer += (row // tiles).to(tl.int64) * by_pattern + (row % tiles).to(tl.int64) * by_tile
    return tl.load(pointer + block.to(tl.int64) * by_block, mask=inside, other=0)


@triton.jit(do_not_specialize=["tiles", "blocks"])
def pick_rows(
    scores, counts, masses, sizes, keep, out, tiles, blocks,
    size_pattern, size_tile, size_block, keep_pattern, keep_tile, keep_block, BLOCK: tl.constexpr,
):  # fmt: skip
    """The fewest best blocks that are `counts` in number and, unless None, `masses` in share."""
    row = tl.program_id(0)
    block = tl.arange(0, BLOCK)
    inside = block < blocks
    before = row.to(tl.int64) * blocks
    score = tl.load(scores + before + block, mask=inside, other=0.0)
    forced = block < 0
    if keep is not None:
        forced = _values(keep, row, tiles, block, inside, keep_pattern, keep_tile, keep_block) != 0
    rank = _ranked(score, forced, inside)
    count = tl.load(counts + row)
    mass = tl.where(inside & (score > 0.0), score, 0.0)
    if sizes is not None:
        mass *= _values(sizes, row, tiles, block, inside, size_pattern, size_tile, size_block).to(tl.float32)
    target = 0.0
    if masses is not None:
        target = tl.load(masses + row) * tl.sum(mass, 0)
    # The highest rank such that the blocks from it on are enough; rows that never are enough keep the lowest rank.
    border = tl.full([], -2147483648, tl.int32)
    for step in range(32):
        # The first step turns the sign, the others set a bit.
        trial = border ^ (tl.full([], 1, tl.int32) << (31 - step))
        enough = tl.sum((rank >= trial).to(tl.int32), 0) >= count
        if masses is not None:
            enough = enough & (tl.sum(tl.where(rank >= trial, mass, 0.0), 0) >= target)
        border = tl.where(enough, trial, border)
    better = rank > border
    tie = tl.where(rank == border, block, BLOCK)
    # Of those on the border the first, up to the last before which there are too few: again by bits, since a running
    # sum over the row would take more registers than there are.
    number, share = tl.sum(better.to(tl.int32), 0), tl.sum(tl.where(better, mass, 0.0), 0)
    more = number < count
    if masses is not None:
        more = more | (share < target)
    last = tl.full([], 0, tl.int32)
    step = BLOCK // 2
    while step > 0:
        earlier = tie < last + step
        short = number + tl.sum(earlier.to(tl.int32), 0) < count
        if masses is not None:
            short = short | (share + tl.sum(tl.where(earlier, mass, 0.0), 0) < target)
        last = tl.where(short, last + step, last)
        step //= 2
    kept = (tie <= last) & more
    tl.store(out + before + block, (kept | better | (rank == 2147483647)).to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["tiles", "blocks", "group_rows", "shift"])
def cost_from(
    scores, forced, costs, bases, sums, tiles, blocks, group_rows, shift, cost_pattern, cost_tile, cost_block,
    BLOCK: tl.constexpr, BORDERS: tl.constexpr,
):  # fmt: skip
    """For each row what the blocks cost that rank from each of BORDERS borders on: ``base + (0, 1, ...) << shift``."""
    row = tl.program_id(0)
    block = tl.arange(0, BLOCK)
    inside = block < blocks
    before = row.to(tl.int64) * blocks
    first = tl.load(forced + before + block, mask=inside, other=0) != 0
    rank = _ranked(tl.load(scores + before + block, mask=inside, other=0.0), first, inside)
    cost = inside.to(tl.int32)
    if costs is not None:
        cost = _values(costs, row, tiles, block, inside, cost_pattern, cost_tile, cost_block).to(tl.int64)
    base = tl.load(bases + row // group_rows) - 2147483648
    for digit in range(BORDERS):
        border = base + (tl.full([], digit, tl.int64) << shift)
        # The last border may be past the highest rank, and so past 32 bits.
        from_border = (rank >= border.to(tl.int32)) & (border <= 2147483647)
        tl.store(sums + row.to(tl.int64) * BORDERS + digit, tl.sum(tl.where(from_border, cost, 0), 0).to(tl.int64))


@triton.jit(do_not_specialize=["tiles", "blocks", "group_rows"])
def cut_rows(
    scores, forced, costs, bases, rooms, out, tiles, blocks, group_rows, cost_pattern, cost_tile, cost_block,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The blocks above the border, of those on it the first that the row has room for, and the forced ones."""
    row = tl.program_id(0)
    block = tl.arange(0, BLOCK)
    inside = block < blocks
    before = row.to(tl.int64) * blocks
    first = tl.load(forced + before + block, mask=inside, other=0) != 0
    rank = _ranked(tl.load(scores + before + block, mask=inside, other=0.0), first, inside)
    border = (tl.load(bases + row // group_rows) - 2147483648).to(tl.int32)
    tie = inside & (rank == border)
    cost = tie.to(tl.int32)
    if costs is not None:
        cost = cost.to(tl.int64) * _values(costs, row, tiles, block, inside, cost_pattern, cost_tile, cost_block)
    # As many of the first as there is room for.
    room = tl.load(rooms + row)
    upto = tl.full([], 0, tl.int32)
    step = BLOCK
    while step > 0:
        fits = tl.sum(tl.where(block < upto + step, cost, 0), 0) <= room
        upto = tl.where(fits, upto + step, upto)
        step //= 2
    kept = (rank > border) | (tie & (block < upto)) | first
    tl.store(out + before + block, kept.to(tl.uint8), mask=inside)


def pick(
    scores: Tensor,
    counts: Tensor,
    masses: Tensor | None = None,
    sizes: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """`select.top_k`, or with `masses` `select.top_p`, of checked and broadcast arguments."""
    launch = prepare_pick(scores, counts, masses, sizes, keep)
    launch.run()
    return _as_map(launch)


def cut(scores: Tensor, forced: Tensor, costs: Tensor | None, budget: Tensor) -> Tensor:
    """`select.budgeted` of checked and broadcast arguments: `forced` blocks and the best others within `budget`."""
    groups, group_rows = len(budget), scores.shape[0] * scores.shape[1] // len(budget)
    base, digit = torch.zeros_like(budget), torch.zeros_like(budget)
    sums = scores.new_zeros((groups, group_rows, BORDERS.value), dtype=torch.int64)
    # The border is the highest rank from which on all blocks together cost more than the budget.
    for shift in range(32 - DIGIT, -1, -DIGIT):
        prepare_costs(scores, forced, costs, base, sums, shift).run()
        digit = (sums.sum(1)[:, 1:-1] > budget[:, None]).sum(1)
        base = base + (digit << shift)
    at = digit[:, None, None].expand(-1, group_rows, 1)
    above, upto = sums.gather(2, at + 1)[..., 0], sums.gather(2, at)[..., 0]
    rooms = (budget - above.sum(1))[:, None] - (upto - above).cumsum(1) + (upto - above)
    launch = prepare_cut(scores, forced, costs, base, rooms)
    launch.run()
    return _as_map(launch)


def prepare_pick(
    scores: Tensor, counts: Tensor, masses: Tensor | None, sizes: Tensor | None, keep: Tensor | None
) -> Launch:  # fmt: skip
    """The launch of `pick_rows`."""
    arguments = {
        **_rows(scores), "counts": counts, "masses": masses, "sizes": sizes, "out": _empty_map(scores),
        "keep": None if keep is None else keep.view(torch.uint8), **_strides("size", sizes),
        **_strides("keep", keep),
    }  # fmt: skip
    return _launch(pick_rows, scores, arguments)


def prepare_costs(
    scores: Tensor, forced: Tensor, costs: Tensor | None, bases: Tensor, sums: Tensor, shift: int
) -> Launch:  # fmt: skip
    """The launch of `cost_from`."""
    arguments = {
        **_rows(scores), "forced": forced.contiguous().view(torch.uint8), "costs": costs, "bases": bases, "sums": sums,
        "group_rows": sums.shape[1], "shift": shift, **_strides("cost", costs),
    }  # fmt: skip
    return _launch(cost_from, scores, arguments, BORDERS=BORDERS.value)


def prepare_cut(scores: Tensor, forced: Tensor, costs: Tensor | None, bases: Tensor, rooms: Tensor) -> Launch:
    """The launch of `cut_rows`."""
    arguments = {
        **_rows(scores), "forced": forced.contiguous().view(torch.uint8), "costs": costs, "bases": bases,
        "rooms": rooms.contiguous(), "out": _empty_map(scores), "group_rows": rooms.shape[1], **_strides("cost", costs),
    }  # fmt: skip
    return _launch(cut_rows, scores, arguments)


def _launch(kernel: object, scores: Tensor, arguments: dict[str, object], **constants: int) -> Launch:
    block = power_of_two(scores.shape[2], 64)
    options = {"num_warps": min(16, max(4, block // 512)), "num_stages": 1}
    grid = (scores.shape[0] * scores.shape[1] if scores.shape[2] else 0,)
    return Launch(kernel, arguments, {"BLOCK": block, **constants}, options, grid)


def _rows(scores: Tensor) -> dict[str, object]:
    return {"scores": scores.contiguous(), "tiles": scores.shape[1], "blocks": scores.shape[2]}


def _strides(name: str, values: Tensor | None) -> dict[str, object]:
    strides = (0, 0, 0) if values is None else values.stride()
    return dict(zip((f"{name}_pattern", f"{name}_tile", f"{name}_block"), strides, strict=True))


def _empty_map(scores: Tensor) -> Tensor:
    return torch.empty(scores.shape, dtype=torch.uint8, device=scores.device)


def _as_map(launch: Launch) -> Tensor:
    out: Tensor = launch.arguments["out"]
    return out.view(torch.bool)
