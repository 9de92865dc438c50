"""The bench's plans: valid, of the density asked for, of the kind they say."""

import pytest
import torch

from vidaccel.bench import plans, shapes
from vidaccel.bench.shapes import SHAPES, SMOKE, Shape
from vidaccel.layout import TokenLayout
from vidaccel.plan import Density

MIDDLE = Shape("middle", TokenLayout(8, 30, 31), 3, 64)


def density(kind: str, shape: Shape, asked: float, block: int = 128) -> Density:
    return plans.make(kind, shape, asked, "cpu", block=block).density(shape.layout)


def test_shapes_are_the_published_ones() -> None:
    assert [(each.tokens, each.heads, each.head_dim) for each in SHAPES] == [
        (75_600, 40, 128), (17_776, 48, 64), (32_760, 12, 128), (119_056, 24, 128), (45_106, 48, 64),
    ]  # fmt: skip
    assert SHAPES[0].dense_flop == 4 * 75_600**2 * 40 * 128
    assert shapes.chosen(["cogvideox-5b", "wan-14b-720p"], smoke=False) == (SHAPES[0], SHAPES[1])
    with pytest.raises(ValueError, match="unknown shape 'wan'; choose wan-14b-720p"):
        shapes.chosen(["wan"], smoke=False)


@pytest.mark.parametrize("kind", plans.KINDS)
@pytest.mark.parametrize("asked", [1.0, 0.3, 0.05])
@pytest.mark.parametrize("shape", [MIDDLE, *SMOKE], ids=lambda shape: shape.name)
def test_plans_are_valid(kind: str, asked: float, shape: Shape) -> None:
    plan = plans.make(kind, shape, asked, "cpu", block=64)
    assert plan.mask is not None
    plan.mask.validate()
    assert plan.mask.to_dense().any(2).all(), "a row without keys"
    for order in (plan.query_order, plan.key_order):
        if order is not None:
            assert torch.equal(order.sort(1).values, torch.arange(shape.tokens).int().expand(shape.heads, -1))


@pytest.mark.parametrize("kind", plans.KINDS)
@pytest.mark.parametrize("asked", [1.0, 0.5, 0.2, 0.1])
def test_densities_are_those_asked_for(kind: str, asked: float) -> None:
    found = density(kind, MIDDLE, asked, block=64)
    # A tile that meets two clusters of queries keeps both their keys; clusters here are about two tiles.
    most = 1.6 * asked if kind == "clustered" else asked + 0.01
    assert asked - 0.02 <= found.density <= min(1.0, most)
    assert found.density <= found.computed_density


def test_kinds_are_what_they_say() -> None:
    banded, random, clustered = (plans.make(kind, MIDDLE, 0.3, "cpu", block=64).mask for kind in plans.KINDS)
    assert banded is not None and random is not None and clustered is not None
    assert banded.patterns == 1 and len(banded.ranges) == banded.tiles
    blocks = random.to_dense()[:, ::64, ::64]
    assert blocks.diagonal(dim1=1, dim2=2).all() and len({each.numpy().tobytes() for each in blocks}) == 3
    assert len(set(blocks.sum(2).flatten().tolist())) == 1, "rows of unequal work"
    starts = clustered.ranges[:, 0]
    assert bool((starts % 64 != 0).any()), "clusters start anywhere"


def test_one_seed_is_one_plan() -> None:
    one, same, other = (plans.make("clustered", MIDDLE, 0.3, "cpu", seed=seed) for seed in (1, 1, 2))
    assert one.key_order is not None and same.key_order is not None and other.key_order is not None
    assert torch.equal(one.key_order, same.key_order) and not torch.equal(one.key_order, other.key_order)


@pytest.mark.parametrize("kind, asked, problem", [
    ("bands", 0.5, "banded, random, clustered"), ("random", 0.0, "outside"), ("banded", 1.5, "outside"),
])  # fmt: skip
def test_refuses(kind: str, asked: float, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        plans.make(kind, MIDDLE, asked, "cpu")
