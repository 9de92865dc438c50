"""Candidates of a calibration: a ladder of densities of each pattern, alike for all heads."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidaccel.calibration.learned import MAKERS
from vidaccel.layout import TokenLayout
from vidaccel.patterns import PATTERNS, Pattern, at_density, density_of, orders
from vidaccel.patterns.bands import Band
from vidaccel.patterns.compose import Union
from vidaccel.patterns.multidiagonal import MultiDiagonal
from vidaccel.patterns.neighborhood import TOKEN, Neighborhood
from vidaccel.patterns.simple import Skip
from vidaccel.patterns.sink import Sink
from vidaccel.patterns.window import Window

LEVELS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
"""Video densities of the ladder; on coarse grids steps that come out alike are one."""
SIDES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of windows along time and along a frame's sides, as fractions of the clip's."""
THIN, FIRST = 0.25, 0.01
"""Of the diagonals in a cross, over the window's; first frames that are kept, of which one is the least."""
SKIP, WINDOWS, TILES = "skip", "windows", "tiles"
"""Families without a ladder of densities."""
TOKENS_OF_LARGE_BLOCKS, LARGE, SMALL = 8192, 128, 16
Maker = Callable[[float], Pattern]


@dataclass(frozen=True)
class Library:
    """What a calibration tries.

    Args:
        makers: names of the families that all heads try.
        learned: kinds of `vidaccel.calibration.learned` that are made from each head's own attention.
    """

    makers: tuple[str, ...] = ()
    learned: tuple[str, ...] = ()


def makers() -> dict[str, Maker]:
    """Every family of patterns that has a size, by name: from its thinnest member at 0 to dense at 1."""
    sized = {name: cls.scaled for name, cls in PATTERNS.items() if _sized(cls) and name not in MAKERS}
    turned = {f"band-{axes}": functools.partial(Band, axes=axes) for axes in (*orders.AXES[1:], orders.HILBERT)}
    return {**sized, **turned, "cross": _cross, "sink-band": _sink_band}


def _sized(cls: type[Pattern]) -> bool:
    return "scaled" in vars(cls)


def _cross(share: float) -> Pattern:
    """Near places in near frames, and the query's own place in all."""
    return Union((Window.scaled(share), MultiDiagonal(share * THIN)))


def _sink_band(share: float) -> Pattern:
    """A band and the first frame."""
    return Union((Band(share), Sink(FIRST)))


def libraries() -> dict[str, Library]:
    """The sets of candidates that a calibration can be asked for, by name."""
    every = (SKIP, *makers(), WINDOWS, TILES)
    return {
        "all": Library(every, ("decay", "stripes")),
        "geometry": Library(every),
        "decay": Library((), ("decay",)),
        "sparse-vdit": Library((SKIP, "band", "multi_diagonal"), ("stripes",)),
        "paro": Library((), ("cells",)),
        "sta": Library((TILES,)),
        "svg": Library(("window", "band", "temporal", "band-HWF")),
    }


def library(name: str) -> Library:
    """The library of that name.

    Raises:
        ValueError: there is none.
    """
    known = libraries()
    if name not in known:
        raise ValueError(f"unknown library {name!r}; choose {', '.join(known)}")
    return known[name]


def block_for(layout: TokenLayout) -> int:
    """Tile size in tokens where the user gives none: short sequences get small tiles, so that there are enough."""
    return LARGE if layout.tokens >= TOKENS_OF_LARGE_BLOCKS else SMALL


def ladder(made: Library, layout: TokenLayout, block: int) -> tuple[Pattern, ...]:
    """The candidates of all heads on a grid, none dense, no two with the same blocks."""
    found: dict[tuple[str, bytes], Pattern] = {}
    for name in made.makers:
        for pattern in _family(name, layout, block):
            if density_of(pattern, layout, block) < 1:
                found.setdefault((pattern.order, pattern.blocks(layout, block).numpy().tobytes()), pattern)
    return tuple(found.values())


def _family(name: str, layout: TokenLayout, block: int) -> Iterable[Pattern]:
    if name == SKIP:
        return (Skip(),)
    if name in (WINDOWS, TILES):
        return _windows(orders.compact_tile(layout, block) if name == TILES else TOKEN)
    make = makers()[name]
    return dict.fromkeys(at_density(make, layout, block, level)[0] for level in LEVELS)


def _windows(tile: tuple[int, int, int]) -> Iterator[Pattern]:
    """Windows of unequal sides."""
    for frames, side in itertools.product(SIDES, SIDES):
        yield Neighborhood(frames, side, side, tile)


class Ladder:
    """The candidates of all heads, grouped by order, and what rows of candidates keep: all that measuring them needs.

    Block maps are kept packed, eight blocks to a byte: those of all heads of a large model come to some gigabytes.
    """

    def __init__(self, patterns: tuple[Pattern, ...], layout: TokenLayout, block: int) -> None:
        self.patterns, self.layout, self.block = patterns, layout, block
        names = dict.fromkeys(pattern.order for pattern in patterns)
        self.groups = {name: [at for at, each in enumerate(patterns) if each.order == name] for name in names}
        self._packed: dict[Pattern, NDArray[np.uint8]] = {}

    def forget(self) -> None:
        """Drop the block maps; they are made again where they are asked for."""
        self._packed.clear()

    def kept(self, name: str, rows: Tensor) -> Tensor:
        """Blocks that each row keeps under the candidates of an order: bool ``[candidates, rows, tiles]``."""
        return torch.stack([self.row_blocks(self.patterns[at], rows) for at in self.groups[name]])

    def row_blocks(self, pattern: Pattern, rows: Tensor) -> Tensor:
        """Blocks, in a pattern's order, that each row keeps under it: bool ``[rows, tiles]``."""
        if pattern not in self._packed:
            self._packed[pattern] = np.packbits(pattern.blocks(self.layout, self.block).numpy(), axis=1)
        tiles = tiles_of(self.layout, pattern.order, rows, self.block).numpy()
        count = -(-self.layout.tokens // self.block)
        return torch.from_numpy(np.unpackbits(self._packed[pattern][tiles], axis=1, count=count)).bool()


def tiles_of(layout: TokenLayout, order: str, rows: Tensor, block: int) -> Tensor:
    """The tile of each row in an order: int64, as `rows`."""
    sequence = orders.sequence(layout, order)
    return (rows if sequence is None else places_of(layout, order)[rows]) // block


@functools.lru_cache(64)
def places_of(layout: TokenLayout, order: str) -> Tensor:
    """The position of each token in an order: int64 ``[tokens]``."""
    sequence = orders.sequence(layout, order)
    places = torch.arange(layout.tokens)
    return places if sequence is None else torch.empty_like(places).scatter_(0, sequence.long(), places)
