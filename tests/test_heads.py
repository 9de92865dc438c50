"""Tables of heads: as JSON and back, what is refused, and which options a budget picks."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import random

import pytest

from vidaccel import heads, strict
from vidaccel.heads import HeadOption, HeadTable
from vidaccel.patterns.bands import Band
from vidaccel.patterns.compose import Union
from vidaccel.patterns.decay import Decay
from vidaccel.patterns.simple import Dense, Skip
from vidaccel.patterns.sink import Sink

PATTERNS = (Skip(), Band(0.1), Band(0.25, "HWF"), Dense())
COSTS = (0.0, 0.2, 0.45, 1.0)


def head(*errors: float) -> tuple[HeadOption, ...]:
    """A head with the last options of `PATTERNS`, as many as there are errors."""
    first = len(PATTERNS) - len(errors)
    return tuple(HeadOption(first + at, error, COSTS[first + at], COSTS[first + at]) for at, error in enumerate(errors))


def table(layers: int = 2, bands: tuple[float, ...] = (0.25, 1.0), seed: int = 0) -> HeadTable:
    """Two heads a layer, whose errors are drawn and fall to 0."""
    draw = random.Random(seed)

    def some() -> tuple[HeadOption, ...]:
        errors = sorted((heads.rounded(draw.random() / 4) for _ in range(draw.randint(1, 3))), reverse=True)
        return head(*errors, 0.0)

    expert = tuple(tuple((some(), some()) for _ in range(layers)) for _ in bands)
    return HeadTable(16, PATTERNS, bands, {"transformer": expert})


def values() -> dict:
    return table().to_dict()


def test_round_trip_through_json():
    made = table()
    text = json.dumps(made.to_dict(), allow_nan=False)
    again = HeadTable.of(strict.parse(text, "here"), "here")
    assert again == made
    assert again.digest() == made.digest()
    assert table(seed=1).digest() != made.digest()


def test_a_text_that_patterns_share_is_written_once():
    dense = Decay.scaled(0.3)
    patterns = (Skip(), dense, Union((dataclasses.replace(dense, density=0.5), Sink(0.1))), Dense())
    made = HeadTable(16, patterns, (1.0,), {"transformer": (((head(0.2, 0.1, 0.0),),),)})
    text = json.dumps(made.to_dict())
    assert text.count(dense.weights) == 1 and HeadTable.of(json.loads(text), "here") == made


def test_measured_numbers_are_kept_to_four_digits_and_rows_once():
    layer = (
        (HeadOption(1, 0.123456, 0.198765, 0.2), HeadOption(3, 1e-9 / 3, 1, 1)),
        (HeadOption(1, 0.5, 0.198765, 0.2), HeadOption(3, 0, 1, 1)),
    )
    exact = HeadTable(16, PATTERNS, (1.0,), {"transformer": ((layer,),)})
    wide = exact.to_dict()
    assert wide["options"] == [[1, 0.1988, 0.2], [3, 1.0, 1.0]]
    assert wide["experts"]["transformer"][0][0] == [[[0, 0.1235], [1, 3.333e-10]], [[0, 0.5], [1, 0.0]]]
    assert HeadTable.of(wide, "here").to_dict() == wide
    assert HeadTable.of(wide, "here").digest() == exact.digest()


def test_a_profile_of_a_large_model_is_small():
    layer = tuple(head(0.1234, 0.01234, 0.001234, 0.0) for _ in range(40))
    made = HeadTable(128, PATTERNS, (1.0,), {"transformer": (tuple(layer for _ in range(40)),)})
    text = json.dumps(made.to_dict(), separators=(",", ":"))
    assert len(text) < 100_000
    assert HeadTable.of(strict.parse(text, "here"), "here") == made


def test_bands_are_half_open_and_the_last_has_the_rest():
    made = table(bands=(0.25, 0.5, 1.0))
    assert [made.band_of(step, 8) for step in range(8)] == [0, 0, 1, 1, 2, 2, 2, 2]
    assert [made.band_of(step, 3) for step in range(3)] == [0, 1, 2]
    assert made.band_of(9, 8) == 2
    assert made.band_of(7, None) == 0
    assert made.shares() == [0.25, 0.25, 0.5]
    assert made.shapes() == {"transformer": (2, 2)}


def every_choice(made: HeadTable):
    """All choices of a small table: cost and error of a run, by brute force."""
    shares = made.shares()
    flat = [(shares[at], each) for bands in made.experts.values() for at, band in enumerate(bands) for layer in band
            for each in layer]  # fmt: skip
    weight = sum(share for share, _ in flat)
    for chosen in itertools.product(*(each for _, each in flat)):
        pairs = [(share, option) for (share, _), option in zip(flat, chosen, strict=True)]
        cost = sum(share * option.cost for share, option in pairs) / weight
        yield cost, sum(share * option.error for share, option in pairs)


@pytest.mark.parametrize("seed", range(5))
def test_a_density_bounds_the_mean_cost_with_bands_by_their_length(seed):
    made = table(layers=1, seed=seed)
    every = list(every_choice(made))
    least = min(cost for cost, _ in every)
    for density in (0.9, 0.6, 0.4, least + 1e-6):
        if density < least:
            continue
        picks = made.choose(density=density)
        told = made.predicted(picks)
        assert told["cost"] <= density + 1e-9
        error = sum(share * option.error for share, layer in made.layers(picks) for option in layer)
        best = min(error for cost, error in every if cost <= density + 1e-9)
        layers = list(made.layers(made.experts))
        every_head = [each for _, layer in layers for each in layer]
        affordable = [[option.error for option in each if option.cost <= density] for each in every_head]
        weights = [share for share, layer in layers for _ in layer]
        # Near the best, and never worse than the same density for each head, where each has that.
        alone = sum(share * min(errors, default=math.inf) for share, errors in zip(weights, affordable, strict=True))
        assert best - 1e-12 <= error <= alone + 1e-12
    assert made.predicted(made.choose(density=1.0))["error"] == 0


def test_a_density_moves_budget_to_the_heads_that_need_it():
    made = HeadTable(16, PATTERNS, (0.5, 1.0), {"transformer": (
        ((head(0.001, 0.0), head(0.9, 0.0)),), ((head(0.001, 0.0), head(0.002, 0.0)),),
    )})  # fmt: skip
    picks = made.choose(density=0.45 + 0.55 / 4)["transformer"]
    assert [[option.pattern for option in layer] for band in picks for layer in band] == [[2, 3], [2, 2]]


def test_a_long_bands_budget_weighs_more():
    made = HeadTable(16, PATTERNS, (0.25, 1.0), {"transformer": (
        ((head(0.3, 0.0),),), ((head(0.3, 0.0),),),
    )})  # fmt: skip
    mean = (0.25 * 1.0 + 0.75 * 0.45) / 1
    picks = made.choose(density=mean)
    assert [[option.pattern for option in layer] for band in picks["transformer"] for layer in band] == [[3], [2]]
    assert made.predicted(picks) == pytest.approx({"cost": mean, "density": mean, "error": math.sqrt(0.75 * 0.3)})


@pytest.mark.parametrize("seed", range(5))
def test_a_max_error_bounds_every_layer_at_the_least_cost(seed):
    made = table(seed=seed)
    for limit in (0.0, 0.1, 0.3, 0.5, 1.0):
        picks = made.choose(max_error=limit)["transformer"]
        for layer, options in zip(itertools.chain(*picks), itertools.chain(*made.experts["transformer"]), strict=True):
            assert sum(option.error for option in layer) <= limit**2 + 1e-12
            costs = [sum(option.cost for option in each) for each in itertools.product(*options)
                     if sum(option.error for option in each) <= limit**2]  # fmt: skip
            assert min(costs) - 1e-9 <= sum(option.cost for option in layer)
    assert all(option.pattern == 3 for band in made.choose(max_error=0.0)["transformer"] for option in band[0]
               if option.error == 0)  # fmt: skip


def test_rounding_leaves_a_dense_head_valid():
    layer = ((HeadOption(1, 0.1, 0.2, 0.2), HeadOption(3, 1e-9, 1.0, 1.0)),)
    made = HeadTable(16, PATTERNS, (1.0,), {"transformer": ((layer,),)})
    assert made.choose(max_error=0.0)["transformer"][0][0][0].pattern == 3


@pytest.mark.parametrize(
    "budget, complaint",
    [
        ({}, "exactly one"),
        ({"density": 0.5, "max_error": 0.1}, "exactly one"),
        ({"density": 0}, r"density 0 is outside \(0, 1\]"),
        ({"density": 1.5}, "density 1.5 is outside"),
        ({"density": math.nan}, "density nan"),
        ({"density": True}, "density True"),
        ({"density": "0.5"}, "density '0.5'"),
        ({"max_error": -0.1}, r"max_error -0.1 is outside \[0, 1\]"),
        ({"max_error": [1]}, r"max_error \[1\]"),
    ],
)
def test_bad_budgets(budget, complaint):
    with pytest.raises(ValueError, match=complaint):
        table().choose(**budget)


def test_a_density_below_the_least_names_it():
    made = HeadTable(16, PATTERNS, (0.5, 1.0), {"transformer": (
        ((head(0.1, 0.05, 0.0), head(0.0)),), ((head(0.1, 0.0), head(0.1, 0.0)),),
    )})  # fmt: skip
    least = (0.2 + 1.0 + 0.45 + 0.45) / 4
    with pytest.raises(ValueError, match=f"density 0.3 is below {least:.4f}, the least"):
        made.choose(density=0.3)
    assert made.predicted(made.choose(density=least))["cost"] == pytest.approx(least)


def without(name):
    return lambda found: found.pop(name)


def put(*path, to):
    """A change of one place of a file."""

    def change(found):
        for step in path[:-1]:
            found = found[step]
        found[path[-1]] = to

    return change


FIRST = ("experts", "transformer", 0, 0)
HOSTILE = [
    (put("pickle", to="x"), "'pickle', which does not belong there"),
    (without("bands"), "no 'bands'"),
    (put("block", to=True), "block is True"),
    (put("block", to=17), "17 is not a power of two"),
    (put("block", to=8), "block is 8, not a whole number from 16"),
    (put("block", to=1 << 40), "block is 1099511627776"),
    (put("block", to="128"), "block is '128'"),
    (put("bands", to=[]), "bands has 0 entries"),
    (put("bands", to=[0.5, 0.4, 1.0]), "ends that rise"),
    (put("bands", to=[0.5, 0.9]), "ends that rise from above 0 to 1"),
    (put("bands", to=[0.0, 1.0]), "ends that rise"),
    (put("bands", to=[0.5, math.nan]), "bands is nan, not a finite number"),
    (put("bands", to=[0.5, True]), "bands is True"),
    (put("bands", to=[at / 17 for at in range(1, 18)]), "17 entries, not 1 to 16"),
    (put("bands", to=[1.0]), "2 entries, not 1 to 1"),
    (put("bands", to="all"), "bands is 'all', not a list"),
    (put("patterns", to=[]), "patterns has 0 entries"),
    (put("patterns", to=[{"name": "dense"}] * 262_145), "262145 entries"),
    (put("texts", to="x"), "texts is 'x', not a list"),
    (put("texts", to=[3]), r"texts\[0\] is 3, not a text of at most 16384 letters"),
    (put("texts", to=["x" * 20_000]), r"texts\[0\] is 'xxx.*not a text of at most"),
    (put("patterns", 0, to={"name": {"text": 0}}), "the place of a text is 0, not a whole number from 0 to -1"),
    (put("patterns", 0, to="dense"), r"patterns\[0\] is 'dense', not an object"),
    (put("patterns", 0, to={"name": "os.system"}), r"patterns\[0\]: unknown pattern"),
    (put("patterns", 0, to={"name": ["dense"]}), r"patterns\[0\]: unknown pattern"),
    (put("patterns", 0, to={"name": "dense", "x": 1}), r"patterns\[0\]: pattern 'dense' has no 'x'"),
    (put("patterns", 0, to={"name": "band"}), r"patterns\[0\]: pattern 'band' needs 'width'"),
    (put("patterns", 0, to={"name": "band", "width": -1}), r"patterns\[0\]: width=-1"),
    (put("patterns", 0, to={"name": "band", "width": 0.1, "axes": 3}), r"patterns\[0\]"),
    (put("patterns", 0, to={"name": "band", "width": 0.1, "axes": "XYZ"}), r"patterns\[0\]"),
    (put("options", 0, to=[0, 0.1]), r"options\[0\] has 2 entries, not 3"),
    (put("options", 0, to=[-1, 0.1, 0.1]), "its pattern, is -1"),
    (put("options", 0, to=[4, 0.1, 0.1]), "its pattern, is 4, not a whole number from 0 to 3"),
    (put("options", 0, to=[0, 1.1, 0.1]), "its density, is 1.1"),
    (put("options", 0, to=[0, 0.1, -0.1]), "its cost, is -0.1"),
    (put("options", 0, to=[0, 0.1, math.inf]), "its cost, is inf"),
    (put("options", 0, to=[0, None, 0.1]), "its density, is None"),
    (put("experts", to=[]), r"experts are \[\]"),
    (put("experts", to={}), "experts are {}"),
    (put("experts", to={str(at): [] for at in range(9)}), "not an object of 1 to 8"),
    (put("experts", "transformer", to=[]), "bands has 0 entries, not 2"),
    (put("experts", "transformer", 0, to=[]), "band 0: layers has 0 entries"),
    (put("experts", "transformer", 0, to=[1] * 1025), "1025 entries, not 1 to 1,024"),
    (put("experts", "transformer", 0, 0, to=[1] * 1025), "1025 entries, not 1 to 1,024"),
    (lambda found: found["experts"]["transformer"][0].pop(), r"\[1, 2\] layers in its bands"),
    (lambda found: found["experts"]["transformer"][0][0].pop(), r"\[1, 2\] heads in its layers"),
    (put(*FIRST, 0, to=[]), "head 0: options has 0 entries"),
    (put(*FIRST, 0, to=[[0, 0.1]] * 65), "65 entries, not 1 to 64"),
    (put(*FIRST, 0, to=[[0, 0.1, 2]]), "an option has 3 entries"),
    (put(*FIRST, 0, to=[[99, 0.1]]), "an option is 99"),
    (put(*FIRST, 0, to=[[True, 0.1]]), "an option is True"),
    (put(*FIRST, 0, to=[[0, -0.1]]), "an error is -0.1"),
    (put(*FIRST, 0, to=[[0, 1e300]]), "an error is 1e.300"),
    (put(*FIRST, 0, to=[[0, "x" * 1000]]), r"an error is 'x+\.\.\.,"),
]


@pytest.mark.parametrize("change, complaint", HOSTILE, ids=[complaint for _, complaint in HOSTILE])
def test_hostile_tables(change, complaint):
    found = copy.deepcopy(values())
    change(found)
    with pytest.raises(ValueError, match=complaint) as caught:
        HeadTable.of(found, "here.json")
    assert str(caught.value).startswith("here.json: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "layer, complaint",
    [
        ([[0, 0.1], [1, 0.2], [2, 0.0]], "not sorted by rising cost and falling error"),
        ([[1, 0.2], [0, 0.1], [2, 0.0]], "not sorted"),
        ([[0, 0.2], [1, 0.1]], "the last option is not dense"),
    ],
)
def test_options_are_a_ladder_that_ends_dense(layer, complaint):
    options = [[1, 0.2, 0.2], [2, 0.45, 0.45], [3, 1.0, 1.0]]
    found = {"block": 16, "bands": [1.0], "patterns": [each.to_dict() for each in PATTERNS], "texts": [],
             "options": options, "experts": {"transformer": [[[layer]]]}}  # fmt: skip
    with pytest.raises(ValueError, match=complaint):
        HeadTable.of(found, "here")
