"""From the sums of all prompts to the table of every head's options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidaccel.calibration.grid import Grid
from vidaccel.calibration.made import Own
from vidaccel.calibration.options import pruned
from vidaccel.heads import HeadOption, HeadTable
from vidaccel.patterns import Pattern, density_of
from vidaccel.patterns.simple import Dense

Cost = Callable[[Pattern], float]
"""Modelled time of a head with a pattern over that of a dense one."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What all measuring prompts say together.

    Args:
        error: by expert, fp64 ``[bands, layers, heads, candidates]``, sums of squared errors: of the common candidates,
            then of the head's own.
        norm: by expert, fp64 ``[bands, layers, heads]``.
    """

    grid: Grid
    bands: tuple[float, ...]
    patterns: tuple[Pattern, ...]
    own: Own
    error: Mapping[str, Tensor]
    norm: Mapping[str, Tensor]

    def candidates(self, expert: str, band: int, layer: int, head: int) -> tuple[Pattern, ...]:
        """The candidates of a head, in the order of `error`."""
        return self.patterns + self.own.get((expert, band, layer, head), ())

    @classmethod
    def of(
        cls, grid: Grid, bands: tuple[float, ...], patterns: tuple[Pattern, ...], own: Own,
        prompts: Sequence[Mapping[str, Tensor]], names: Sequence[str],
    ) -> Measured:  # fmt: skip
        """The sums of the prompts, added in their order.

        A band in which an expert did not run, as the second of Wan 2.2 in early ones, gets what it did in all bands.

        Raises:
            ValueError: an expert that ran at none of the measured steps.
        """
        error, norm = {}, {}
        for name in names:
            if not any(f"{name}.norm" in each for each in prompts):
                raise ValueError(f"{name} ran at none of the measured steps: give more steps_per_band, or more bands")
            norm[name] = _total(prompts, f"{name}.norm")
            parts = [_total(prompts, f"{name}.{kind}") for kind in ("error", "own") if f"{name}.{kind}" in prompts[0]]
            error[name] = torch.cat(parts, dim=-1)
            unseen = norm[name].flatten(1).sum(1) == 0
            for values in (error[name], norm[name]):
                values[unseen] = values.sum(0)
        return cls(grid, bands, patterns, own, error, norm)


def table_of(found: Measured, cost: Cost, first_layers: Mapping[str, int]) -> HeadTable:
    """The options of every head; those of layers before an expert's first sparse one have nothing but dense."""
    every: dict[Pattern, int] = {}
    facts: dict[Pattern, tuple[float, float]] = {Dense(): (1.0, 1.0)}

    def option(pattern: Pattern, error: float) -> HeadOption:
        if pattern not in facts:
            facts[pattern] = density_of(pattern, found.grid.layout, found.grid.block), cost(pattern)
        return HeadOption(every.setdefault(pattern, len(every)), error, *facts[pattern])

    def head(expert: str, band: int, layer: int, index: int) -> tuple[HeadOption, ...]:
        whole = float(found.norm[expert][band, layer].sum()) or 1.0
        errors = (found.error[expert][band, layer, index] / whole).tolist()
        if layer < first_layers[expert]:
            return (option(Dense(), 0.0),)
        tried = zip(found.candidates(expert, band, layer, index), errors, strict=True)
        options = [option(pattern, error) for pattern, error in tried]
        return pruned([*(each for each in options if each.cost < 1), option(Dense(), 0.0)])

    experts = {}
    for name, norm in found.norm.items():
        bands, layers, heads = map(range, norm.shape)
        experts[name] = tuple(
            tuple(tuple(head(name, band, layer, each) for each in heads) for layer in layers) for band in bands
        )
    return _compact(HeadTable(found.grid.block, tuple(every), found.bands, experts))


def _compact(table: HeadTable) -> HeadTable:
    """The table without patterns that no option names."""
    used: dict[int, int] = {}

    def renamed(option: HeadOption) -> HeadOption:
        return HeadOption(used.setdefault(option.pattern, len(used)), option.error, option.density, option.cost)

    experts = {
        name: tuple(tuple(tuple(tuple(map(renamed, head)) for head in layer) for layer in band) for band in bands)
        for name, bands in table.experts.items()
    }
    return HeadTable(table.block, tuple(table.patterns[at] for at in used), table.bands, experts)


def _total(prompts: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    first, *others = (each[name] for each in prompts)
    total = first.clone()
    for other in others:
        total += other
    return total
