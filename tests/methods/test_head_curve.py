"""Profiled heads with a density that falls over the run."""

from __future__ import annotations

import pytest

import vidaccel
from tests import tiny
from tests.methods.test_head_profile import BLOCK, PATTERNS, at, option
from vidaccel.heads import HeadTable
from vidaccel.methods.head_profile import HeadProfile
from vidaccel.methods.sizes import STAIRS, along
from vidaccel.profile import Profile

CURVE = ((0.0, 0.9), (1.0, 0.1))
HEAD = (option(0, 0.2), option(1, 0.1), option(2, 0.05), option(3, 0.0))
LAYERS = ((HEAD, HEAD), (HEAD, HEAD))


def table(bands=(1.0,)) -> HeadTable:
    return HeadTable(BLOCK, PATTERNS, bands, {"transformer": tuple(LAYERS for _ in bands)})


def profile(**options) -> Profile:
    return Profile("head_profile", options, {"dense_first_steps": 0, "dense_first_layers": 0}, 0, heads=table())


def test_each_quarter_has_the_density_of_its_middle():
    finer, picks = along(table(), CURVE)
    assert finer.bands == (0.25, 0.5, 0.75, 1.0)
    for stair, band in enumerate(picks["transformer"]):
        wanted = 0.9 - 0.8 * (stair + 0.5) / STAIRS
        costs = [head.cost for layer in band for head in layer]
        assert sum(costs) / len(costs) <= wanted + 1e-9
        expected = table().choose(density=wanted)["transformer"][0]
        assert band == expected
    falls = [sum(head.cost for layer in band for head in layer) for band in picks["transformer"]]
    assert falls == sorted(falls, reverse=True) and falls[0] > falls[-1]


def test_bands_of_the_profile_keep_their_own_options():
    dense = ((HEAD[-1:],) * 2,) * 2
    two = HeadTable(BLOCK, PATTERNS, (0.3, 1.0), {"transformer": (dense, LAYERS)})
    finer, picks = along(two, CURVE)
    assert finer.bands == (0.25, 0.3, 0.5, 0.75, 1.0)
    first = picks["transformer"][:2]
    assert all(head.cost == 1 for band in first for layer in band for head in layer), "no choice there"
    assert all(len(band) == 2 for band in picks["transformer"])
    assert any(head.cost < 1 for layer in picks["transformer"][2] for head in layer)


def test_a_run_has_plans_by_quarters_and_caches_see_the_change():
    made = HeadProfile.of(profile(), density=[[0.0, 0.9], [1.0, 0.1]])
    assert made.density == CURVE and made.needs_steps
    assert [made.level(at(0, step, 8)) for step in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    pipe = tiny.tiny_wan()
    with vidaccel.enable(pipe, profile(density=[[0.0, 0.9], [1.0, 0.1]])) as session:
        tiny.generate(pipe, num_inference_steps=8, output_type="latent")
        falling = session.summary().tally.density.video_density
    with vidaccel.enable(pipe, profile(density=0.1)) as session:
        tiny.generate(pipe, num_inference_steps=8, output_type="latent")
        least = session.summary().tally.density.video_density
    assert least < falling < 0.9
    with pytest.raises(ValueError, match="need the number of steps"):
        made.check_steps(None)


@pytest.mark.parametrize("curve", [[[0.0, 0.5]], [[0.5, 0.2], [0.2, 0.1]], [[0.0, 2.0], [1.0, 0.1]], "x", []])
def test_what_is_no_curve(curve):
    with pytest.raises(ValueError, match="curve"):
        HeadProfile.of(profile(), density=curve)


def test_a_density_that_a_quarter_cannot_have():
    fixed = HeadTable(BLOCK, PATTERNS, (1.0,), {"transformer": (((HEAD[2:], HEAD[2:]),) * 2,)})
    with pytest.raises(ValueError, match="is below"):
        along(fixed, ((0.0, 0.9), (1.0, 0.01)))
