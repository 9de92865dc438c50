"""What a calibration knows of every head: patterns that it measured there, with error, density and cost."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from vidaccel import stored, strict
from vidaccel.architecture import MAX_EXPERTS, MAX_HEADS, MAX_LAYERS
from vidaccel.layout import TokenLayout
from vidaccel.patterns import Pattern
from vidaccel.patterns.simple import Dense
from vidaccel.planning import knapsack

DIGITS = 4
"""Significant digits of measured numbers in a file."""
SLACK = 1e-9
"""Relative; what a budget may be short of a sum of rounded costs."""
BLOCKS = (16, 4096)
MAX_BANDS, MAX_OPTIONS = 16, 64
MAX_ROWS = 1 << 20
MAX_ERROR, MAX_COST = 1e6, 1e3
"""Of one option: far beyond what is measured, and no sum of them overflows."""
MAX_SIZES = 8
"""Further sizes of a profile."""
GRID = re.compile(r"([^ ]+)(?: after (\d{1,9}) text)?(?: \+ (\d{1,9}) text)?", re.ASCII)
"""A layout as text."""
Head = tuple["HeadOption", ...]
Layer = tuple[Head, ...]
Row = tuple[int, float, float]
"""What heads share of an option: pattern, density, cost."""


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


Picks = dict[str, tuple[tuple[tuple[HeadOption, ...], ...], ...]]
"""One option for every head: by expert, ``[band][layer][head]``."""


@dataclass(frozen=True)
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

    @classmethod
    def of(cls, values: Any, origin: str, texts: Sequence[str] = ()) -> HeadTable:
        """A table from what `to_dict` gives, or from a stranger's JSON; `origin` names it in errors.

        Args:
            texts: of another table, which this one's places count first.

        Raises:
            ValueError: anything that is not a table, or one too large.
        """
        known = ("block", "bands", "patterns", "texts", "options", "experts")
        heads = strict.names(f"{origin}: heads", values, known, known)
        block = check_block(heads["block"], f"{origin}: ")
        bands = _bands(f"{origin}: bands", heads["bands"])
        given = stored.from_json(origin, heads["patterns"], heads["texts"], texts)
        rows = _rows(f"{origin}: options", heads["options"], len(given))
        experts = heads["experts"]
        if not isinstance(experts, dict) or not 1 <= len(experts) <= MAX_EXPERTS:
            raise ValueError(f"{origin}: experts are {strict.shown(experts)}, not an object of 1 to {MAX_EXPERTS}")
        last = {index for index, row in enumerate(rows) if isinstance(given[row[0]], Dense)}
        read = {name: _expert(f"{origin}: expert {strict.shown(name)}", each, len(bands), rows, last)
                for name, each in experts.items()}  # fmt: skip
        return cls(block, given, bands, read)

    def to_dict(self, texts: Sequence[str] = ()) -> dict[str, Any]:
        """JSON-ready, with measured numbers to 4 significant digits; what `of` reads, given the same `texts`.

        ``options`` holds each pattern's index, density and cost once; a head is a list of ``[option, error]``.
        """
        seen: dict[Row, int] = {}
        rows: dict[Row, int] = {}

        def short(option: HeadOption) -> list[float]:
            exact = option.pattern, option.density, option.cost
            if exact not in seen:
                row = (option.pattern, rounded(option.density), rounded(option.cost))
                seen[exact] = rows.setdefault(row, len(rows))
            return [seen[exact], rounded(option.error)]

        experts = {
            name: [[[[short(option) for option in head] for head in layer] for layer in band] for band in bands]
            for name, bands in self.experts.items()
        }
        patterns, own = stored.to_json(self.patterns, texts)
        return {
            "block": self.block, "bands": list(self.bands), "patterns": patterns, "texts": own,
            "options": [list(row) for row in rows], "experts": experts,
        }  # fmt: skip

    def digest(self) -> str:
        """SHA-256 of its content, in hexadecimal: how a file is laid out does not matter."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def band_of(self, step: int, steps: int | None) -> int:
        """The band of a step of a run; the first one where the number of steps is not known."""
        return 0 if steps is None else band_of(self.bands, step, steps)

    def shares(self) -> list[float]:
        """How much of a run each band is; they add up to 1."""
        return [end - start for start, end in zip((0.0, *self.bands), self.bands, strict=False)]

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Layers and heads of each expert."""
        return {name: (len(bands[0]), len(bands[0][0])) for name, bands in self.experts.items()}

    def choose(self, *, density: float | None = None, max_error: float | None = None) -> Picks:
        """An option for every head, by one of two budgets.

        Args:
            density: mean cost over all bands (each by its share of a run), experts, layers and heads together; the
                options are those of the least total error.
            max_error: relative error of a layer's output, as a norm; in every layer of every band those of least cost.

        Raises:
            ValueError: not exactly one budget, one out of range, or a density below the least possible.
        """
        if (density is None) == (max_error is None):
            raise ValueError("heads are chosen by a density or by a max_error: give exactly one")
        if density is not None:
            return self._by_density(density)
        limit = check_budget("max_error", max_error, zero=True) ** 2
        return {
            name: tuple(tuple(_within(layer, limit) for layer in band) for band in bands)
            for name, bands in self.experts.items()
        }

    def predicted(self, picks: Picks) -> dict[str, float]:
        """Means of ``density`` and ``cost`` over the heads that have a choice, and ``error``: the relative error of
        layers' outputs as a root mean square. All are a run's, with each band by its share of it."""
        heads = list(self.layers(picks))
        if not heads:
            return {"density": 1.0, "cost": 1.0, "error": 0.0}
        every = [(share, option) for share, layer in heads for option in layer]
        total = sum(share for share, _ in every)
        squared = sum(share * option.error for share, option in every) / sum(share for share, _ in heads)
        means = {
            name: sum(share * getattr(option, name) for share, option in every) / total for name in ("density", "cost")
        }
        return {**means, "error": math.sqrt(squared)}

    def _by_density(self, density: float) -> Picks:
        check_budget("density", density)
        heads = [(share, head) for share, layer in self.layers(self.experts) for head in layer]
        # Bands differ in length: a head counts by its band's share of a run, in what it costs as in what it spoils.
        weights = [share for share, _ in heads]
        errors = [[share * option.error for option in head] for share, head in heads]
        costs = [[option.cost for option in head] for _, head in heads]
        if not heads:
            raise ValueError("every head of this profile is dense: there is nothing to choose by a density")
        least = sum(share * min(cost) for share, cost in zip(weights, costs, strict=True)) / sum(weights)
        if density < least * (1 - SLACK):
            raise ValueError(f"density {density:g} is below {math.ceil(least * 1e4) / 1e4:.4f}, the least that the "
                             "options of this profile's heads add up to")  # fmt: skip
        chosen = iter(knapsack.choose(errors, costs, max(density, least), weights))

        def picked(layer: Layer) -> tuple[HeadOption, ...]:
            return tuple(head[next(chosen)] if has_choice(layer) else head[-1] for head in layer)

        return {
            name: tuple(tuple(picked(layer) for layer in band) for band in bands)
            for name, bands in self.experts.items()
        }

    def layers(self, experts: dict[str, Any]) -> Iterator[tuple[float, Any]]:
        """Each layer with a choice, of each band of each expert, after its band's share of a run.

        A layer whose heads are dense or nothing is one that the schedule keeps dense: no budget counts it.
        """
        for name, bands in self.experts.items():
            for share, band, given in zip(self.shares(), bands, experts[name], strict=True):
                yield from ((share, layer) for own, layer in zip(band, given, strict=True) if has_choice(own))


@dataclass(frozen=True)
class HeadsAt:
    """The heads of a profile as they were measured on another token grid.

    Args:
        layout: the grid.
        heads: of the same experts, bands, layers and heads as the profile's first table.
    """

    layout: TokenLayout
    heads: HeadTable

    @classmethod
    def read(cls, values: Any, first: HeadTable, texts: Sequence[str], origin: str) -> HeadsAt:
        """From what `to_dict` gives, or from a stranger's JSON; `origin` names it in errors.

        Args:
            first: the profile's first table.
            texts: of that table, as its JSON has them.

        Raises:
            ValueError: no grid, no table, or one of other heads or bands than `first`.
        """
        given = strict.names(origin, values, ("grid", "heads"), ("grid", "heads"))
        layout = layout_of(given["grid"], f"{origin}: grid")
        heads = HeadTable.of(given["heads"], origin, texts)
        if (heads.shapes(), heads.bands) != (first.shapes(), first.bands):
            raise ValueError(f"{origin}: experts, layers, heads or bands on {layout} are not as in the profile's heads")
        return cls(layout, heads)

    def to_dict(self, texts: Sequence[str]) -> dict[str, Any]:
        """JSON-ready; what `read` reads, given the same `texts`."""
        return {"grid": str(self.layout), "heads": self.heads.to_dict(texts)}


def heads_digest(first: HeadTable, others: Sequence[HeadsAt]) -> str:
    """SHA-256 of the heads at all sizes, in hexadecimal; of a profile of one size it is its table's."""
    if not others:
        return first.digest()
    every = [first.digest(), *([str(each.layout), each.heads.digest()] for each in others)]
    return hashlib.sha256(json.dumps(every).encode()).hexdigest()


def layout_of(text: Any, where: str) -> TokenLayout:
    """A layout from its text, such as ``"21x45x80 after 226 text"``.

    Raises:
        ValueError: no layout has it.
    """
    match = GRID.fullmatch(text) if isinstance(text, str) else None
    try:
        found = match and TokenLayout.parse(match[1], *(int(count or 0) for count in match.groups()[1:]))
    except ValueError:
        found = None
    if found is None or str(found) != text:
        raise ValueError(f"{where} is {strict.shown(text)}, not a token grid such as '21x45x80 + 256 text'")
    return found


def has_choice(layer: Layer) -> bool:
    """Whether any head of a layer has an option besides dense."""
    return any(len(head) > 1 for head in layer)


def band_of(bands: Sequence[float], step: int, steps: int) -> int:
    """The band of a step of a run, from the bands' ends as fractions of it; a step past its end is in the last."""
    return next((band for band, end in enumerate(bands) if step / steps < end), len(bands) - 1)


def rounded(value: float) -> float:
    """To `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}")


def check_budget(name: str, value: Any, zero: bool = False) -> float:
    """A budget as it is.

    Raises:
        ValueError: not a number in (0, 1], or for `zero` in [0, 1].
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1 or (value == 0 and not zero):
        raise ValueError(f"{name} {value!r} is outside {'[' if zero else '('}0, 1]")
    return float(value)


def check_block(value: Any, where: str = "") -> int:
    """A tile size as it is.

    Raises:
        ValueError: no power of two in `BLOCKS`.
    """
    block = strict.whole(f"{where}block", value, *BLOCKS)
    if block & (block - 1):
        raise ValueError(f"{where}block {block} is not a power of two")
    return block


def _within(layer: tuple[tuple[HeadOption, ...], ...], limit: float) -> tuple[HeadOption, ...]:
    """The cheapest options of a layer's heads whose errors add up to at most `limit`."""
    errors = [[option.error for option in head] for head in layer]
    costs = [[option.cost for option in head] for head in layer]
    # Dense heads are a valid choice whatever rounding has left of their error.
    limit = max(limit, sum(map(min, errors)))
    return tuple(head[at] for head, at in zip(layer, knapsack.cheapest(errors, costs, limit), strict=True))


def _bands(where: str, value: Any) -> tuple[float, ...]:
    bands = tuple(strict.number(where, end, 1) for end in strict.listed(where, value, MAX_BANDS))
    if any(low >= high for low, high in zip((0.0, *bands), bands, strict=False)) or bands[-1] != 1:
        raise ValueError(f"{where} are {strict.shown(value)}, not ends that rise from above 0 to 1")
    return bands


def _rows(where: str, value: Any, patterns: int) -> list[Row]:
    rows = []
    for index, row in enumerate(strict.listed(where, value, MAX_ROWS)):
        here = f"{where}[{index}]"
        index_of, density, cost = strict.listed(here, row, 3, 3)
        place = strict.whole(f"{here}, its pattern,", index_of, 0, patterns - 1)
        density = strict.number(f"{here}, its density,", density, 1)
        rows.append((place, density, strict.number(f"{here}, its cost,", cost, MAX_COST)))
    return rows


def _expert(where: str, value: Any, bands: int, rows: list[Row], dense: set[int]) -> Any:
    """``[band][layer][head]``, as many layers in every band and as many heads in every layer."""
    read = []
    for band, layers in enumerate(strict.listed(f"{where}: bands", value, bands, bands)):
        here = f"{where}, band {band}"
        strict.listed(f"{here}: layers", layers, MAX_LAYERS)
        read.append(tuple(_layer(f"{here}, layer {at}", heads, rows, dense) for at, heads in enumerate(layers)))
    if len({len(band) for band in read}) > 1:
        raise ValueError(f"{where} has {sorted({len(band) for band in read})} layers in its bands, not as many in each")
    counts = sorted({len(layer) for band in read for layer in band})
    if len(counts) > 1:
        raise ValueError(f"{where} has {counts} heads in its layers, not as many in each")
    return tuple(read)


def _layer(where: str, value: Any, rows: list[Row], dense: set[int]) -> tuple[Head, ...]:
    heads = strict.listed(f"{where}: heads", value, MAX_HEADS)
    return tuple(_head(f"{where}, head {at}", head, rows, dense) for at, head in enumerate(heads))


def _head(where: str, value: Any, rows: list[Row], dense: set[int]) -> Head:
    options = []
    for pair in strict.listed(f"{where}: options", value, MAX_OPTIONS):
        index, error = strict.listed(f"{where}: an option", pair, 2, 2)
        place, density, cost = rows[strict.whole(f"{where}: an option", index, 0, len(rows) - 1)]
        options.append(HeadOption(place, strict.number(f"{where}: an error", error, MAX_ERROR), density, cost))
    for one, two in pairwise(options):
        if one.cost > two.cost or one.error < two.error:
            raise ValueError(f"{where}: options are not sorted by rising cost and falling error")
    if value[-1][0] not in dense:
        raise ValueError(f"{where}: the last option is not dense")
    return tuple(options)
