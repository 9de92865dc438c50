"""The cost of planning: counts against formulas, and times of every method that plans while a model runs."""

from __future__ import annotations

import pytest
import torch

from vidaccel.bench.planning_cost import chosen, counted, timed
from vidaccel.bench.shapes import Shape
from vidaccel.layout import TokenLayout
from vidaccel.methods import method

SHAPE = Shape("small", TokenLayout(5, 8, 8), 2, 32)
READS = {"svg", "neighborhood"}
"""They sample rows, by a kernel whose stand-in on the CPU reads contents."""


def test_counts_are_those_of_the_formulas() -> None:
    """All block pairs by means: one product of 20 x 20 means; the oracle: every product of queries and keys, twice."""
    tiles, means = 320 // 16, 2 * 20**2 * 32 * 2
    found = counted(method("draft", "wan", block=16, refresh=1), SHAPE)
    assert found.flop == means and tiles == 20
    assert found.share == pytest.approx(means / (4 * 320**2 * 32 * 2))
    oracle = counted(method("oracle", "wan", block=16, refresh=1), SHAPE)
    assert oracle.share == pytest.approx(1.0)
    # At the least, means read all queries and keys once, of 2 bytes.
    assert found.moved > 2 * 320 * 2 * 32 * 2 and oracle.moved > found.moved


def test_counts_grow_with_heads_alike_wherever_they_are_made() -> None:
    draft = method("draft", "wan", block=16, refresh=1)
    assert counted(draft, SHAPE, device="cpu").flop == counted(draft, SHAPE).flop


@pytest.mark.parametrize("name", chosen())
def test_every_method_is_counted_and_timed(name: str) -> None:
    options = {"block": 16, "refresh": 1}
    fields = type(method(name, "wan")).__dataclass_fields__  # type: ignore[attr-defined]
    made = method(name, "wan", **{key: value for key, value in options.items() if key in fields})
    found = counted(made, SHAPE, "cpu" if name in READS else "meta", torch.float32)
    assert found.moved > 0 and found.flop >= 0
    times = timed(made, SHAPE)
    assert times["share_of_dense"] == pytest.approx(times["plan_ms"] / times["dense_ms"]) and times["plan_ms"] > 0
