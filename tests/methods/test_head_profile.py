"""Profiled heads: which pattern runs where, on a real pipeline, and what is refused before it runs."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

import vidaccel
from tests import tiny
from vidaccel import Profile, architecture
from vidaccel.api import facts
from vidaccel.heads import HeadOption, HeadsAt, HeadTable
from vidaccel.layout import TokenLayout
from vidaccel.methods import METHODS, ModelFacts, method
from vidaccel.methods.head_profile import HeadProfile, first_step
from vidaccel.methods.mixed import Mixed
from vidaccel.patterns import density_of, plan_of
from vidaccel.patterns.bands import Band
from vidaccel.patterns.cells import Cells
from vidaccel.patterns.decay import Decay
from vidaccel.patterns.simple import Dense, Skip
from vidaccel.pipelines.processor import Mode
from vidaccel.site import Site

LAYOUT = TokenLayout(5, 4, 6)
BLOCK = 16
BANDS = (0.5, 1.0)
WIDE, THIN = Band(0.2, "HWF"), Band(0.05)
PATTERNS = (Skip(), THIN, WIDE, Dense())


def option(index: int, error: float = 0.0) -> HeadOption:
    density = density_of(PATTERNS[index], LAYOUT, BLOCK)
    return HeadOption(index, error, density, density)


def forced(*patterns: int) -> tuple:
    """A layer whose heads will have these patterns, within a tiny error; dense is always there, too."""
    return tuple((option(3),) if index == 3 else (option(index, 1e-9), option(3)) for index in patterns)


# Layer 0 is as layer 1 of the other band; layer 1 is as nothing else.
EXPERT = ((forced(1, 2), forced(3, 3)), (forced(2, 0), forced(1, 2)))


def profile(expert: tuple = EXPERT, bands: tuple[float, ...] = BANDS, **changes) -> Profile:
    table = HeadTable(BLOCK, PATTERNS, bands, {"transformer": expert})
    return Profile("head_profile", {"max_error": 0.01}, {"dense_first_steps": 0, "dense_first_layers": 0}, 0,
                   heads=table, **changes)  # fmt: skip


def at(layer: int, step: int, steps: int | None = 4, branch: str = "cond", layout: TokenLayout = LAYOUT) -> Site:
    return Site(layer, 2, step, steps, branch, "transformer", layout)


@pytest.fixture(scope="module")
def pipe():
    return tiny.tiny_wan()


@pytest.fixture
def saved(tmp_path):
    return profile().save_pretrained(tmp_path / "model")


def same(one, two) -> bool:
    tensors = [(each.mask.offsets, each.mask.ranges, each.query_order) for each in (one, two)]
    return all(a is b is None or torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def test_each_band_and_layer_has_its_heads_patterns(saved):
    made = HeadProfile(str(saved))
    chosen = {(layer, step): made.patterns(at(layer, step)) for layer in (0, 1) for step in range(4)}
    for step in (0, 1):
        assert chosen[0, step] == (THIN, WIDE) and chosen[1, step] == (Dense(), Dense())
    for step in (2, 3):
        assert chosen[0, step] == (WIDE, Skip()) and chosen[1, step] == (THIN, WIDE)
    assert same(made.plan(None, None, None, at(0, 3), {}), plan_of((WIDE, Skip()), LAYOUT, BLOCK))
    assert made.plan(None, None, None, at(1, 1), {}).mask is None


def test_equal_choices_share_a_site_and_so_a_plan(saved):
    made = HeadProfile(str(saved))
    places = {made.static_site(at(layer, step, branch=branch)) for layer in (0, 1) for step in range(4)
              for branch in ("cond", "uncond")}  # fmt: skip
    assert places == {at(0, 0, branch=""), at(1, 0, branch=""), at(0, 2, branch="")}
    for layer in (0, 1):
        for step in range(4):
            assert made.patterns(made.static_site(at(layer, step))) == made.patterns(at(layer, step))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 50, None])
def test_the_shared_site_is_one_of_the_run(saved, steps):
    made = HeadProfile(str(saved))
    for layer in (0, 1):
        for step in range((steps or 3) + 1):
            site = at(layer, step, steps)
            shared = made.static_site(site)
            assert made.patterns(shared) == made.patterns(site)
            assert shared == made.static_site(shared)


def test_a_run_past_its_steps_is_in_the_last_band_even_if_no_step_is():
    short = profile((EXPERT[0], EXPERT[0], EXPERT[1]), (0.5, 0.9, 1.0))
    made = HeadProfile.of(short)
    assert first_step((0.5, 0.9, 1.0), 2, 4) is None
    assert made.patterns(made.static_site(at(0, 4))) == made.patterns(at(0, 4)) == (WIDE, Skip())


def test_an_unknown_number_of_steps_takes_the_first_band_and_says_so(saved):
    made = HeadProfile(str(saved))
    assert made.patterns(at(0, 30, None)) == (THIN, WIDE)
    assert "first 50% of a run" in made.plan(None, None, None, at(0, 0, None), {}).notes[0]
    assert not made.plan(None, None, None, at(0, 0), {}).notes
    one = HeadProfile.of(profile((EXPERT[0],), (1.0,)))
    assert not one.plan(None, None, None, at(0, 0, None), {}).notes


def test_another_grid_is_used_and_its_density_told(saved):
    made = HeadProfile(str(saved))
    larger = TokenLayout(9, 12, 20)
    plan = made.plan(None, None, None, at(0, 0, layout=larger), {})
    assert same(plan, plan_of((THIN, WIDE), larger, BLOCK))
    # By hand: one layer in the first half of a run, as the other has no choice there, and two in the second.
    patterns = [THIN, WIDE, WIDE, Skip(), THIN, WIDE]
    here, there = (sum(density_of(each, grid, BLOCK) for each in patterns) / 6 for grid in (larger, LAYOUT))
    assert abs(here - there) > 0.02
    assert f"{here:.4f} on 9x12x20" in plan.notes[0] and f"{there:.4f}" in plan.notes[0]


def test_another_grid_is_told_and_cells_most_of_all():
    """Places in an order are others on another grid; distances are not, but what was measured is."""
    elsewhere = TokenLayout(5, 3, 5)
    chosen = {"cells": Cells.scaled(0.3), "decay": Decay.scaled(0.3)}
    for name, each in chosen.items():
        heads = ((HeadOption(0, 0.0, 0.3, 0.3), HeadOption(1, 0.0, 1, 1)),) * 2
        table = HeadTable(BLOCK, (each, Dense()), (1.0,), {"transformer": ((heads,),)})
        made = HeadProfile.of(Profile("head_profile", {}, {}, 0, heads=table, calibration={"grid": str(LAYOUT)}),
                              max_error=0.0)  # fmt: skip
        notes = [made.plan(None, None, None, at(0, 0, layout=layout), {}).notes for layout in (LAYOUT, elsewhere)]
        assert not notes[0]
        less = "masks of heads' own keep far less" if name == "cells" else "other choices may be better"
        assert f"head_profile: calibrated on 5x4x6; on 5x3x5 {less}: calibrate at this size" in notes[1]
        padded = TokenLayout(5, 4, 6, text_after=3)
        assert not any("calibrated" in each for each in made.plan(None, None, None, at(0, 0, layout=padded), {}).notes)


def test_another_block_is_used(saved):
    plan = HeadProfile(str(saved), block=32).plan(None, None, None, at(0, 0), {})
    assert same(plan, plan_of((THIN, WIDE), LAYOUT, 32)) and plan.notes


def test_every_field_is_filled_in_and_makes_the_same_again(saved):
    made = HeadProfile(str(saved))
    values = dataclasses.asdict(made)
    assert values == {"profile": str(saved), "density": None, "max_error": 0.01, "digest": profile().heads.digest(),
                      "block": BLOCK}  # fmt: skip
    again = METHODS["head_profile"](**json.loads(json.dumps(values)))
    assert again == made and hash(again) == hash(made)
    assert again.chosen(LAYOUT).picks == made.chosen(LAYOUT).picks
    assert dataclasses.replace(made, max_error=None, density=1.0).chosen(LAYOUT).picks != made.chosen(LAYOUT).picks
    assert method("head_profile", "wan", profile=str(saved)) == made


def test_a_budget_replaces_the_profiles(saved):
    dense = HeadProfile(str(saved), max_error=0.0)
    assert {dense.patterns(at(layer, step)) for layer in (0, 1) for step in range(4)} == {(Dense(), Dense())}
    assert (dense.density, dense.max_error) == (None, 0.0)
    half = HeadProfile(str(saved), density=0.8)
    assert half.chosen(LAYOUT).table.predicted(half.chosen(LAYOUT).picks)["cost"] <= 0.8
    assert (half.density, half.max_error) == (0.8, None)


def test_a_file_that_has_changed_is_refused(saved):
    made = HeadProfile(str(saved))
    text = saved.read_text()
    saved.write_text(json.dumps(json.loads(text), indent=8))
    assert HeadProfile(**dataclasses.asdict(made)) == made
    profile((EXPERT[1], EXPERT[0])).save(saved)
    with pytest.raises(ValueError, match="vidaccel.json has changed: its heads have the digest"):
        HeadProfile(**dataclasses.asdict(made))


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({}, "head_profile needs a profile"),
        ({"profile": "absent.json"}, "no profile at absent.json"),
        ({"profile": "{radial}"}, "has no heads: it is one for method 'radial'"),
        ({"profile": "{saved}", "density": 0.5, "max_error": 0.1}, "exactly one"),
        ({"profile": "{saved}", "density": 2}, "density 2 is outside"),
        ({"profile": "{saved}", "max_error": "x"}, "max_error 'x' is outside"),
        ({"profile": "{saved}", "density": 0.01}, "density 0.01 is below 0.3978"),
        ({"profile": "{saved}", "digest": "0" * 64}, "has changed"),
        ({"profile": "{free}"}, "names no budget of its own"),
        ({"profile": "{saved}", "block": 48}, "block 48 is not a power of two"),
        ({"profile": "{saved}", "block": True}, "block is True"),
        ({"profile": 7}, "7 names no profile"),
    ],
)
def test_bad_options_are_refused_when_it_is_made(saved, tmp_path, options, complaint):
    Profile("radial").save(tmp_path / "radial.json")
    dataclasses.replace(profile(), options={}).save(tmp_path / "free.json")
    places = {"{saved}": saved, "{radial}": tmp_path / "radial.json", "{free}": tmp_path / "free.json"}
    given = {name: str(places.get(value, value)) if name == "profile" and value != 7 else value
             for name, value in options.items()}  # fmt: skip
    with pytest.raises(ValueError, match=complaint):
        HeadProfile(**given)


def test_a_profile_in_memory_needs_no_file_but_cannot_be_named_again():
    made = HeadProfile.of(profile())
    assert made.patterns(at(0, 0)) == (THIN, WIDE)
    assert dataclasses.asdict(made)["profile"] == ""
    with pytest.raises(ValueError, match="came from a profile in memory: save it"):
        HeadProfile(**dataclasses.asdict(made))
    with pytest.raises(ValueError, match="no option 'digest'"):
        HeadProfile.of(profile(), digest="x")
    with pytest.raises(ValueError, match="the profile has no heads"):
        HeadProfile.of(Profile("head_profile"))


def test_unrounded_heads_choose_as_their_file_would(tmp_path):
    exact = tuple(tuple(tuple(tuple(dataclasses.replace(each, error=each.error and 1.23456e-9) for each in head)
                              for head in layer) for layer in band) for band in EXPERT)  # fmt: skip
    made = HeadProfile.of(profile(exact))
    assert made.chosen(LAYOUT).table.experts["transformer"][0][0][0][0].error == 1.235e-9
    profile(exact).save(tmp_path / "p.json")
    assert HeadProfile(str(tmp_path / "p.json")).chosen(LAYOUT).table == made.chosen(LAYOUT).table


FACTS = ModelFacts("WanTransformer3DModel", {"num_layers": 2}, 2, 2, 64)


@pytest.mark.parametrize(
    "models, complaint",
    [
        ({"transformer": FACTS, "transformer_2": FACTS}, "for transformer, but the model has transformer_2, too"),
        ({"transformer": dataclasses.replace(FACTS, layers=3)}, "2 layers of 2 heads for transformer, the model has 3"),
        ({"transformer": dataclasses.replace(FACTS, heads=4)}, "the model has 2 of 4"),
    ],
)
def test_models_of_another_shape_are_refused(models, complaint):
    with pytest.raises(ValueError, match=complaint):
        HeadProfile.of(profile()).check_models(models)


def test_sites_that_the_profile_does_not_know_are_refused():
    made = HeadProfile.of(profile())
    for site in (at(2, 0), dataclasses.replace(at(0, 0), expert="transformer_2")):
        with pytest.raises(ValueError, match="the profile knows transformer of 2 layers, not layer"):
            made.plan(None, None, None, site, {})


def test_enable_refuses_another_model_before_anything_changes(pipe):
    made_for = architecture.describe({"transformer": facts(pipe.transformer)})
    with vidaccel.enable(pipe, profile(model=made_for)):
        pass
    stock = [block.attn1.processor for block in pipe.transformer.blocks]
    other = {**dict(pipe.transformer.config), "eps": 0.5}
    differs = architecture.describe({"transformer": dataclasses.replace(facts(pipe.transformer), config=other)})
    for refused in (profile(model=differs), Profile("radial", {"block": 16}, model=differs)):
        with pytest.raises(ValueError, match="is not for this transformer: its configuration differs .*: eps is"):
            vidaccel.enable(pipe, refused)
        assert [block.attn1.processor for block in pipe.transformer.blocks] == stock
    with pytest.raises(ValueError, match="the model has transformer_2, too"):
        vidaccel.enable(tiny.tiny_wan(two_experts=True), profile())


def test_enable_takes_a_file_an_object_and_the_models_own(pipe, saved, tmp_path):
    expected = HeadProfile(str(saved))
    for given in (str(saved), saved, Profile.load(saved), expected):
        with vidaccel.enable(pipe, given, min_tokens=0) as session:
            assert session.setting.method == expected
    with vidaccel.enable(pipe, "head_profile", profile=str(saved.parent), density=0.9) as session:
        assert (session.setting.method.density, session.setting.method.max_error) == (0.9, None)
    with vidaccel.enable(pipe, profile(), density=0.9) as session:
        assert session.setting.method == HeadProfile.of(profile(), density=0.9)
    own = tiny.tiny_wan()
    own.register_to_config(_name_or_path=str(saved.parent))
    with vidaccel.enable(own) as session:
        assert session.setting.method == expected


def test_options_of_the_wrong_type_in_a_profile_are_an_error_of_one_line(pipe):
    with pytest.raises(ValueError, match="options of the profile do not fit method 'radial'"):
        vidaccel.enable(pipe, Profile("radial", {"density": "x"}))


def test_output_is_that_of_the_masks_on_the_reference(pipe, saved):
    """End to end: the profile on the CPU's kernels beside a method that plans the same masks at every call."""

    class ByHand(HeadProfile):
        static = False

        def plan(self, query, key, value, site, state):
            patterns = EXPERT[int(site.step >= 2)][site.layer]
            return plan_of([PATTERNS[options[0].pattern] for options in patterns], site.layout, BLOCK)

    schedule = {"dense_first_steps": 0, "dense_first_layers": 0}
    with vidaccel.enable(pipe, str(saved)) as session:
        modes = []
        original = session.begin

        def spy(expert, call):
            original(expert, call)
            modes.append([layer.processor.mode for layer in expert.layers])

        session.begin = spy
        with torch.no_grad():
            fast = tiny.generate(pipe, output_type="latent")
        told = session.summary()
    with vidaccel.enable(pipe, ByHand(str(saved)), schedule=schedule, backend="reference", min_tokens=0):
        slow = tiny.generate(pipe, output_type="latent")
    dense = tiny.generate(pipe, output_type="latent")
    np.testing.assert_allclose(fast, slow, atol=2e-4)
    assert np.abs(fast - dense).max() > 0.01
    # Two passes a step: layer 1 is dense in the first band, by the profile's own word.
    assert modes == [[Mode.STATIC, Mode.DENSE]] * 4 + [[Mode.STATIC, Mode.STATIC]] * 4
    assert told.to_dict()["method"] == {"name": "head_profile", "options": dataclasses.asdict(HeadProfile(str(saved)))}


def test_a_profile_of_dense_heads_is_the_stock_pipeline_bit_for_bit(pipe):
    dense = profile(((forced(3, 3),) * 2,) * 2)
    stock = tiny.generate(pipe, output_type="latent")
    with vidaccel.enable(pipe, dense):
        assert np.array_equal(tiny.generate(pipe, output_type="latent"), stock)


def test_a_compiled_model_has_a_graph_for_each_kind_of_plan_not_for_each_plan():
    """Compiled block by block, as diffusers advises: graphs differ by which orders a plan has, not by band or layer."""
    own = tiny.tiny_wan(layers=6)
    early = (forced(3, 3), forced(1, 1), forced(2, 2), forced(1, 0), forced(1, 2), forced(2, 0))
    late = (forced(1, 2), forced(2, 0), forced(0, 0), forced(2, 2), forced(3, 3), forced(0, 2))
    with vidaccel.enable(own, profile((early, late))):
        eager = tiny.generate(own, output_type="latent")
        torch._dynamo.reset()
        counter = CompileCounter()
        own.transformer.compile_repeated_blocks(backend=counter, fullgraph=True)
        compiled = tiny.generate(own, output_type="latent")
        first = counter.frame_count
        again = tiny.generate(own, output_type="latent")
    np.testing.assert_allclose(compiled, eager, atol=1e-4)
    np.testing.assert_array_equal(again, compiled)
    # Dense, and no order, one for all heads or one a head; some twice, as sizes first seen are taken for fixed.
    assert counter.frame_count == first <= 7


SMALL, TINY = TokenLayout(5, 3, 4), TokenLayout(2, 2, 3)


def sized(*more: HeadsAt, **changes) -> Profile:
    """Measured on `LAYOUT`, and on `SMALL` with the bands' choices swapped."""
    small = HeadsAt(SMALL, HeadTable(BLOCK, PATTERNS, BANDS, {"transformer": EXPERT[::-1]}))
    return profile(calibration={"grid": str(LAYOUT)}, heads_at=(small, *more), **changes)


def first_heads(made: HeadProfile, layout: TokenLayout) -> tuple:
    return made.patterns(at(0, 0, layout=layout))


@pytest.mark.parametrize(
    "layout, small, told",
    [
        (LAYOUT, False, False),
        (SMALL, True, False),
        (TokenLayout(5, 3, 4, text_after=9), True, False),
        (TokenLayout(9, 12, 20), False, True),
        (TINY, True, True),
        # 84 and 86 video tokens: the geometric mean of 60 and 120 lies between them, their mean does not.
        (TokenLayout(1, 7, 12), True, True),
        (TokenLayout(1, 2, 43), False, True),
    ],
)
def test_a_run_has_the_heads_of_its_grid_or_of_the_nearest(tmp_path, layout, small, told):
    made = HeadProfile(str(sized().save_pretrained(tmp_path)))
    assert first_heads(made, layout) == ((WIDE, Skip()) if small else (THIN, WIDE))
    plan = made.plan(None, None, None, at(0, 0, layout=layout), {})
    assert same(plan, plan_of(first_heads(made, layout), layout, BLOCK))
    note = f"calibrated on 5x4x6 and 5x3x4; on {layout} other choices may be better: calibrate at this size"
    assert any(note in each for each in plan.notes) == told
    for layer in (0, 1):
        for step in range(4):
            site = at(layer, step, layout=layout)
            assert made.patterns(made.static_site(site)) == made.patterns(site)
            assert made.static_site(site).layout == layout


def test_of_equally_near_grids_the_first_is_taken():
    twice = HeadsAt(TokenLayout(5, 4, 12), sized().heads_at[0].heads)
    between = TokenLayout(5, 12, 4)
    first = dataclasses.replace(sized(), heads_at=(HeadsAt(TokenLayout(10, 4, 6), profile().heads), twice))
    assert first_heads(HeadProfile.of(first), between) == (THIN, WIDE)
    assert first_heads(HeadProfile.of(dataclasses.replace(first, heads_at=first.heads_at[::-1])), between) == (
        WIDE, Skip())  # fmt: skip


def test_the_digest_is_of_all_sizes_and_of_one_as_before():
    alone, both = profile(), sized()
    assert HeadProfile.of(alone).digest == alone.heads.digest()
    moved = dataclasses.replace(both, heads_at=(HeadsAt(TINY, both.heads_at[0].heads),))
    other = dataclasses.replace(both, heads_at=(HeadsAt(SMALL, both.heads),))
    digests = {HeadProfile.of(each).digest for each in (alone, both, moved, other)}
    assert len(digests) == 4 and all(len(each) == 64 for each in digests)


def test_a_record_of_a_profile_of_two_sizes_makes_the_same_again(tmp_path):
    path = sized().save_pretrained(tmp_path)
    made = HeadProfile(str(path))
    assert made.block == BLOCK
    assert HeadProfile(**dataclasses.asdict(made)) == made == HeadProfile.of(Profile.load(path))
    profile(calibration={"grid": str(LAYOUT)}).save(path)
    with pytest.raises(ValueError, match="has changed: its heads have the digest"):
        HeadProfile(**dataclasses.asdict(made))


def test_sizes_of_other_tiles_keep_their_own():
    table = HeadTable(32, PATTERNS, BANDS, {"transformer": EXPERT})
    made = HeadProfile.of(dataclasses.replace(sized(), heads_at=(HeadsAt(SMALL, table),)))
    assert made.block is None
    for layout, block in ((LAYOUT, 16), (SMALL, 32)):
        assert same(made.plan(None, None, None, at(0, 0, layout=layout), {}), plan_of((THIN, WIDE), layout, block))
    given = HeadProfile.of(sized(), block=32)
    assert given.block == 32
    assert same(given.plan(None, None, None, at(0, 0), {}), plan_of((THIN, WIDE), LAYOUT, 32))


COSTLY = (((forced(3, 3), forced(3, 3)), (forced(1, 3), forced(3, 3))))
"""At least (THIN + 1) / 2 of a run, where it has any choice."""


@pytest.mark.parametrize("cls", [HeadProfile, Mixed])
def test_a_budget_that_one_size_cannot_meet_is_refused_before_the_first_step_there(pipe, cls):
    table = HeadTable(BLOCK, PATTERNS, BANDS, {"transformer": COSTLY})
    uneven = dataclasses.replace(sized(), heads_at=(HeadsAt(SMALL, table),))
    made = cls.of(uneven, density=0.5)
    assert first_heads(made, LAYOUT)
    complaint = r"the profile on 5x3x4, as measured on 5x3x4: density 0.5 is below 0\.\d+"
    with pytest.raises(ValueError, match=complaint):
        made.chosen(SMALL)
    with pytest.raises(ValueError, match="density 0.01 is below 0.3978"):
        HeadProfile.of(uneven, density=0.01)
    ran = []
    hook = pipe.transformer.blocks[0].register_forward_pre_hook(lambda *_: ran.append(True))
    try:
        with vidaccel.enable(pipe, made, schedule={"dense_first_steps": 2, "dense_first_layers": 0}, min_tokens=0):
            assert tiny.generate(pipe, output_type="latent").size and ran
            ran.clear()
            with pytest.raises(ValueError, match=complaint):
                tiny.generate(pipe, output_type="latent", height=48, width=64)
    finally:
        hook.remove()
    assert not ran


def test_a_budget_that_the_first_size_alone_cannot_meet_serves_the_other():
    swapped = profile((COSTLY[0], COSTLY[1]), calibration={"grid": str(LAYOUT)}, heads_at=sized().heads_at)
    made = HeadProfile.of(swapped, density=0.5)
    assert first_heads(made, SMALL)
    with pytest.raises(ValueError, match="on 5x4x6, as measured on 5x4x6: density 0.5 is below"):
        first_heads(made, LAYOUT)


def test_a_profile_in_memory_of_two_sizes_is_checked_as_its_file_would_be():
    for broken, complaint in (
        (dataclasses.replace(sized(), calibration=None), "the profile: calibration: grid is None, not a token grid"),
        (sized(sized().heads_at[0]), r"heads_at\[1\] is on 5x3x4, as others of this profile are"),
    ):
        with pytest.raises(ValueError, match=complaint):
            HeadProfile.of(broken)
