"""What a calibration knows of every head: patterns that it measured there, with error, density and cost."""

from __future__ import annotations

from dataclasses import dataclass

from vidaccel.patterns import Pattern


@dataclass(frozen=True)
class HeadOption:
    """One pattern that a head could have.

    Args:
        pattern: index into the table's patterns.
        error: squared error of this head's part of the layer's output (after the output projection), over that of the
            layer's whole dense output: those of a layer's heads add up to its relative squared error, about.
        density: video density on the grid of the calibration.
        cost: modelled time of this head, over that of a dense head; 1 is dense.
    """

    pattern: int
    error: float
    density: float
    cost: float


@dataclass(frozen=True, eq=False)
class HeadTable:
    """The options of every head, from which a budget picks one each.

    Args:
        block: tile size in tokens that the patterns were measured with.
        patterns: all that any head has among its options.
        bands: ends of the step bands, as fractions of a run, rising, the last 1.0: step ``i`` of ``n`` is in the first
            band whose end exceeds ``i / n``.
        experts: by expert, ``[band][layer][head]`` a tuple of options: none is both worse and dearer than another,
            sorted by rising cost (error falls); the last is dense.
    """

    block: int
    patterns: tuple[Pattern, ...]
    bands: tuple[float, ...]
    experts: dict[str, tuple[tuple[tuple[tuple[HeadOption, ...], ...], ...], ...]]
