"""Where attention lies, over some prompts, and the candidates of single heads that are made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from vidaccel.calibration.grid import Grid
from vidaccel.calibration.learned import MAKERS
from vidaccel.patterns import Pattern

Place = tuple[str, int, int, int]
"""Expert, band, layer and head."""
Own = Mapping[Place, tuple[Pattern, ...]]
"""Candidates of single heads, as many for each."""


def means(prompts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The maps of all heads over some prompts.

    Returns:
        By ``EXPERT.mass`` ``[bands, layers, heads, orders, side, side]``, the mean share of a query of one cell
        that goes to the keys of another, in each axis order; by ``EXPERT.keys`` ``[bands, layers, heads, frames,
        rows]``, what all queries together give to the rows of the clip; by ``EXPERT.axes`` ``[bands, layers, heads,
        ...]``, what the queries of each frame, row and column give to the others, see `measure.by_axis`.
    """
    summed: dict[str, Tensor] = {}
    for each in prompts:
        for name, tensor in each.items():
            summed[name] = summed[name] + tensor.double() if name in summed else tensor.double()
    found = {name: tensor for name, tensor in summed.items() if name.endswith((".keys", ".axes"))}
    for name, tensor in summed.items():
        if name.endswith(".mass"):
            found[name] = tensor / summed[f"{name.removesuffix('mass')}count"].clamp(min=1)[..., None]
    return found


def own_of(kinds: Sequence[str], maps: Mapping[str, Tensor], grid: Grid) -> Own:
    """What `learned` makes of each head's maps."""
    own: dict[Place, tuple[Pattern, ...]] = {}
    for kind in kinds:
        source, make = MAKERS[kind]
        for name, tensor in maps.items():
            expert, _, what = name.rpartition(".")
            if what != source:
                continue
            bands, layers, heads = tensor.shape[:3]
            for at in range(bands * layers * heads):
                place = (expert, at // (layers * heads), at // heads % layers, at % heads)
                made = make(tensor[place[1:]], grid)
                own[place] = own.get(place, ()) + tuple(made)
    return own
