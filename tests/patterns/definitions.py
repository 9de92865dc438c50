"""What every pattern keeps, written token by token from its definition in frames, rows and columns: slow but plain."""

from __future__ import annotations

import base64
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vidaccel.layout import TokenLayout
from vidaccel.patterns import Pattern
from vidaccel.patterns.bands import Band
from vidaccel.patterns.cells import Cells
from vidaccel.patterns.compose import AtLeast, Union
from vidaccel.patterns.decay import Decay
from vidaccel.patterns.grid import Grid
from vidaccel.patterns.multidiagonal import MultiDiagonal
from vidaccel.patterns.radial import Radial
from vidaccel.patterns.simple import Dense, Skip
from vidaccel.patterns.sink import Sink
from vidaccel.patterns.slashes import LogSpaced, VerticalSlash
from vidaccel.patterns.stripes import Stripes
from vidaccel.patterns.temporal import Temporal
from vidaccel.patterns.tile import Tile
from vidaccel.patterns.window import Window


@dataclass(frozen=True)
class Token:
    """A video token: its frame, row, column, number in natural order, place in the frame, position in the order."""

    frame: int
    row: int
    column: int
    number: int
    place: int
    at: int = 0


@dataclass(frozen=True)
class Clip:
    """The sizes that definitions speak of."""

    frames: int
    height: int
    width: int

    @property
    def size(self) -> int:
        return self.height * self.width

    @property
    def tokens(self) -> int:
        return self.frames * self.size


def rank(order: str, clip: Clip, token: Token) -> tuple[int, ...]:
    """By what an order sorts."""
    if order.startswith("phase:"):
        number, unit = (order.removeprefix("phase:").removesuffix(end) for end in ("row", "frame")), order
        stride = float(min(number, key=len)) * (clip.width if unit.endswith("row") else clip.size)
        return token.number % max(1, round(stride)), token.number
    place = {"F": token.frame, "H": token.row, "W": token.column}
    return tuple(place[axis] for axis in order)


def tokens_of(clip: Clip, order: str) -> list[Token]:
    """The video tokens in an order."""
    every = itertools.product(range(clip.frames), range(clip.height), range(clip.width))
    natural = [Token(f, h, w, n, h * clip.width + w) for n, (f, h, w) in enumerate(every)]
    ordered = sorted(natural, key=lambda token: rank(order, clip, token))
    return [Token(t.frame, t.row, t.column, t.number, t.place, at) for at, t in enumerate(ordered)]


def in_band(each: Band, clip: Clip, query: Token, key: Token) -> bool:
    sink = max(1, round(each.sink * clip.frames)) if each.sink else 0
    return abs(query.at - key.at) <= int(each.width * clip.tokens) or key.frame < sink


def in_window(each: Window, clip: Clip, query: Token, key: Token) -> bool:
    return (
        abs(query.row - key.row) <= int(each.rows * clip.height)
        and abs(query.column - key.column) <= int(each.columns * clip.width)
        and abs(query.frame - key.frame) <= int(each.frames * clip.frames)
    )


def in_temporal(each: Temporal, clip: Clip, query: Token, key: Token) -> bool:
    near_row = abs(query.row - key.row) <= int(each.rows * clip.height)
    return near_row and abs(query.column - key.column) <= int(each.columns * clip.width)


def in_multi_diagonal(each: MultiDiagonal, clip: Clip, query: Token, key: Token) -> bool:
    near = abs(query.frame - key.frame) <= int(each.reach * clip.frames)
    return near and abs(query.place - key.place) <= int(each.width * clip.size)


def in_sink(each: Sink, clip: Clip, query: Token, key: Token) -> bool:
    first, last = (max(1, round(share * clip.frames)) if share else 0 for share in (each.first, each.last))
    return key.frame < first or key.frame >= clip.frames - last


def in_tile(each: Tile, clip: Clip, query: Token, key: Token) -> bool:
    group = max(1, round(each.group * clip.frames))
    number = max(1, round(each.references * clip.frames)) if each.references else 0
    references = [index * clip.frames // number for index in range(number)]
    return query.frame // group == key.frame // group or key.frame in references


def in_grid(each: Grid, clip: Clip, query: Token, key: Token) -> bool:
    stride = max(1, round(each.stride * (clip.width if each.unit == "row" else clip.size)))
    phases = min(stride, clip.tokens)
    edge = max(1, round(each.edge * clip.frames)) if each.edge else 0
    at_edge = any(token.frame < edge or token.frame >= clip.frames - edge for token in (query, key))
    return abs(query.number % stride - key.number % stride) <= int(each.reach * phases) or at_edge


def in_stripes(each: Stripes, clip: Clip, query: Token, key: Token) -> bool:
    frame = math.floor((key.frame + 0.5) / clip.frames * each.frames)
    row = math.floor((key.row + 0.5) / clip.height * each.rows)
    cell = frame * each.rows + row
    bits = bin(int("1" + each.cells, 16))[3:]
    return bits[cell] == "1" or abs(query.number - key.number) <= int(each.window * clip.tokens)


def in_vertical_slash(each: VerticalSlash, clip: Clip, query: Token, key: Token) -> bool:
    half = int(each.width * clip.tokens)
    places = [min(int(line * clip.tokens), clip.tokens - 1) for line in each.verticals]
    offsets = [round(line * clip.tokens) for line in each.slashes]
    distance = key.number - query.number
    return any(abs(key.number - place) <= half for place in places) or any(
        abs(distance - offset) <= half for offset in offsets
    )


def in_log_spaced(each: LogSpaced, clip: Clip, query: Token, key: Token) -> bool:
    distance = key.number - query.number
    # Halves and doubles of a frame, from one token to beyond the clip, on both sides of the diagonal.
    far = {math.floor(clip.size * 2.0**power) for power in range(-12, 6)} - {0}
    near = any(abs(abs(distance) - step) <= int(each.width * clip.size) for step in far)
    return near or abs(distance) <= int(each.window * clip.tokens)


Keeps = Callable[..., bool]
PAIRS: dict[type[Pattern], Keeps] = {
    Dense: lambda each, clip, query, key: True,
    Band: in_band,
    Window: in_window,
    Temporal: in_temporal,
    MultiDiagonal: in_multi_diagonal,
    Sink: in_sink,
    Tile: in_tile,
    Grid: in_grid,
    Stripes: in_stripes,
    VerticalSlash: in_vertical_slash,
    LogSpaced: in_log_spaced,
}
"""Whether a pair of tokens is kept, of patterns of which a block is computed where any pair in it is kept."""

Sequence = list[Token | None]
"""The tokens of all positions; None is text."""
Blocks = list[list[bool]]


def skip_blocks(each: Skip, layout: TokenLayout, sequence: Sequence, block: int) -> Blocks:
    every = tiles(sequence, block)
    return [[None in tile] * len(every) for tile in every]


def cell_blocks(each: Cells, layout: TokenLayout, sequence: Sequence, block: int) -> Blocks:
    data = base64.b64decode(each.cells)
    bits = "".join(f"{byte:08b}" for byte in data)
    segments = []
    for tile in tiles(sequence, block):
        places = [token.at for token in tile if token]
        middle = (places[0] + places[-1] + 1) / 2 if places else 0
        segments.append(math.floor(middle * each.size / layout.video_tokens))
    return [[i == j or bits[a * each.size + b] == "1" for j, b in enumerate(segments)] for i, a in enumerate(segments)]


DISTANCES = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16]
"""The first of each bin of a decay, as far as the grids of the tests go."""


def decay_level(table: bytes, learned: int, size: int, query: int, key: int, stretched: bool) -> int:
    """One axis's part, from the bytes of its table: a row for each place, a column for each bin."""
    places, last = min(learned, 8), max(n for n, first in enumerate(DISTANCES) if first < learned)
    away = math.floor(abs(key - query) * learned / size + 0.5) if stretched else abs(key - query)
    bin_of = min(max(n for n, first in enumerate(DISTANCES) if first <= away), last)
    place = math.floor((query + 0.5) * places / size)
    return table[place * (2 * last + 1) + last + (bin_of if key >= query else -bin_of)]


def decay_blocks(each: Decay, layout: TokenLayout, sequence: Sequence, block: int) -> Blocks:
    data, tables, sizes = base64.b64decode(each.weights), [], (layout.frames, layout.height, layout.width)
    for learned in each.grid:
        bins = 2 * sum(0 < first < learned for first in DISTANCES) + 1
        tables.append(data[: min(learned, 8) * bins])
        data = data[min(learned, 8) * bins :]
    every = tiles(sequence, block)
    samples = min(max(2048 // len(every), 4), 8)
    chosen, video = [], []
    for tile in every:
        tokens = [token for token in tile if token]
        video.append(len(tokens))
        spread = [tokens[math.floor((n + 0.5) * len(tokens) / samples)] for n in range(samples)] if tokens else []
        chosen.append([(token.frame, token.row, token.column) for token in spread])

    @functools.cache
    def weight(query: tuple[int, ...], key: tuple[int, ...]) -> float:
        stretched = (False, *[each.unit == "frame"] * 2)
        levels = [decay_level(*axis) for axis in zip(tables, each.grid, sizes, query, key, stretched, strict=True)]
        return float(2 ** (sum(levels) / 8))

    ranked = []
    for a, b in itertools.product(range(len(every)), repeat=2):
        if chosen[a] and chosen[b]:
            mean = sum(weight(x, y) for x in chosen[a] for y in chosen[b]) / samples**2
            forced = a == b or None in every[a] or None in every[b]
            ranked.append((-math.inf if forced else -mean, a, b))
    kept = [[a == b for b in range(len(every))] for a in range(len(every))]
    total = 0
    for _, a, b in sorted(ranked):
        total += video[a] * video[b]
        if total > each.density * layout.video_tokens**2 + 1e-6:
            break
        kept[a][b] = True
    return kept


def union_blocks(each: Union, layout: TokenLayout, sequence: Sequence, block: int) -> Blocks:
    parts = [blocks_of(part, layout, block) for part in each.parts]
    return [[any(cells) for cells in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]


def at_least_blocks(each: AtLeast, layout: TokenLayout, sequence: Sequence, block: int) -> Blocks:
    kept = blocks_of(each.part, layout, block)
    video = [sum(token is not None for token in tile) for tile in tiles(sequence, block)]
    for number, row in enumerate(kept):
        reach = 0
        while sum(count for on, count in zip(row, video, strict=True) if on) < each.keys * layout.video_tokens - 1e-6:
            for other in range(max(0, number - reach), min(len(row), number + reach + 1)):
                row[other] = True
            reach += 1
    return kept


def radial_width(each: Radial, frames: tuple[int, int], clip: Clip, block: int) -> float:
    """Half-width of the band between a query's frame and a key's; negative where there is none."""
    distance = abs(frames[0] - frames[1])
    share = 2 ** len(f"{clip.size:b}") / 2 ** len(f"{distance:b}")
    width = float(min(max(each.decay * share, block), clip.size))
    if share < each.split and distance % int(each.split / share) and width < clip.size:
        width = -1
    if distance == 1:
        width = max(each.window * clip.size, min(block, clip.size))
    if distance == 0:
        width = clip.size
    return max(width, each.sink * clip.size) if each.sink and frames[1] == 0 else width


def radial_blocks(each: Radial, layout: TokenLayout, sequence: Sequence, block: int) -> Blocks:
    clip = Clip(layout.frames, layout.height, layout.width)
    rows: dict[tuple[int, int, int], int] = {}
    for (at, query), (other, key) in itertools.product(enumerate(sequence), repeat=2):
        if query and key:
            width = radial_width(each, (query.frame, key.frame), clip, block)
            if abs(query.place - key.place) <= width:
                column = (query.frame, at // block, other)
                rows[column] = rows.get(column, 0) + 1
    every = tiles(sequence, block)
    filled: dict[tuple[int, int, int, int], list[bool]] = {}
    for (frame, tile, other), count in rows.items():
        key_token = sequence[other]
        assert key_token
        cell = (frame, key_token.frame, tile, other // block)
        filled.setdefault(cell, []).append(3 * count > len(every[tile]))
    kept = [[a == b for b in range(len(every))] for a in range(len(every))]
    for (_, _, tile, other), dense in filled.items():
        kept[tile][other] |= sum(dense) / len(dense) > 0.6
    return kept


RULES: dict[type[Pattern], Callable[..., Blocks]] = {
    Skip: skip_blocks,
    Cells: cell_blocks,
    Decay: decay_blocks,
    Union: union_blocks,
    AtLeast: at_least_blocks,
    Radial: radial_blocks,
}
"""The blocks of patterns with a rule of their own."""
OWN_TEXT = (Skip, Union)
"""Of those, the ones that say themselves which text is kept: others keep all."""


def tiles(sequence: Sequence, block: int) -> list[Sequence]:
    return [sequence[start : start + block] for start in range(0, len(sequence), block)]


def sequence_of(order: str, layout: TokenLayout) -> Sequence:
    """What stands at each position: in all but the natural order video comes first."""
    video: Sequence = list(tokens_of(Clip(layout.frames, layout.height, layout.width), order))
    before, after = layout.text_before, layout.text_after
    if order == "FHW":
        return [None] * before + video + [None] * after
    return video + [None] * (before + after)


@functools.cache
def pairs_of(each: Pattern, layout: TokenLayout) -> list[list[bool]]:
    """Whether each pair of video positions is kept."""
    clip = Clip(layout.frames, layout.height, layout.width)
    tokens = tokens_of(clip, each.order)
    keeps = PAIRS[type(each)]
    return [[keeps(each, clip, query, key) for key in tokens] for query in tokens]


def any_pair(pairs: list[list[bool]], places: list[list[int]]) -> Blocks:
    """Tiles of these places in which any pair is kept, and the diagonal."""
    member = torch.zeros(len(places), len(pairs))
    for tile, inside in enumerate(places):
        member[tile, inside] = 1
    kept = member @ torch.tensor(pairs).float() @ member.T > 0
    return kept.fill_diagonal_(True).tolist()


def blocks_of(each: Pattern, layout: TokenLayout, block: int) -> Blocks:
    """The blocks that a pattern computes, text included."""
    sequence = sequence_of(each.order, layout)
    every = tiles(sequence, block)
    if type(each) in RULES:
        kept = RULES[type(each)](each, layout, sequence, block)
    else:
        kept = any_pair(pairs_of(each, layout), [[token.at for token in tile if token] for tile in every])
    text = [None in tile and type(each) not in OWN_TEXT for tile in every]
    return [[on or text[i] or text[j] for j, on in enumerate(row)] for i, row in enumerate(kept)]
