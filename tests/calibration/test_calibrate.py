"""Whole calibrations of real pipelines with random weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vidaccel
from tests.calibration.cases import GUIDED, PROMPTS, SIZE, calibrated
from tests.tiny import generate, tiny_cogvideox, tiny_hunyuanvideo, tiny_wan
from vidaccel.calibration import calibrate
from vidaccel.calibration.probe import watched
from vidaccel.calibration.run import measured
from vidaccel.costs import CostModel
from vidaccel.patterns import plan_of
from vidaccel.patterns.simple import Dense
from vidaccel.profile import Profile

TEMPLATE = {"template": "{}", "crop_start": 0}
OPTIONS: dict[str, Any] = {
    "target_density": 0.6, "max_error": None, "bands": 1, "rows": 120, "steps_per_band": 4, "library_name": "geometry",
    "block": 16, "seed": 0, "cost": "density", "work": None, "progress": None, "generation_kwargs": GUIDED,
}  # fmt: skip


def test_watching_changes_no_bit() -> None:
    pipe, seen = tiny_wan(), []
    stock = [block.attn1.processor for block in pipe.transformer.blocks]
    expected = generate(pipe)
    with watched(pipe, lambda site, *states: seen.append((site.step, site.branch, site.layer))):
        found = generate(pipe)
    assert np.array_equal(found, expected)
    assert seen == [(step, branch, layer) for step in range(4) for branch in ("cond", "uncond") for layer in (0, 1)]
    assert all(block.attn1.processor is each for block, each in zip(pipe.transformer.blocks, stock, strict=True))
    assert np.array_equal(generate(pipe), expected)


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_enabled_comes_back(fails: bool) -> None:
    pipe = tiny_wan()
    session = pipe.enable_sparse_attention("random", density=0.5, block=16, min_tokens=0)
    bar = dict(pipe._progress_bar_config)
    expected = generate(pipe)
    if fails:
        with pytest.raises(ZeroDivisionError):
            calibrated(pipe, progress=lambda what, done, total: 1 // (3 - done))
    else:
        calibrated(pipe)
    assert pipe.transformer._vidaccel_session is session and pipe._progress_bar_config == bar
    assert np.array_equal(generate(pipe), expected)


def brute_force(pipe: Any, prompts: list[str]) -> dict[int, list[tuple[Tensor, Tensor, Tensor]]]:
    """Query, key and value of every call of steps 1 to 3, by layer."""
    seen: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def watch(site: Any, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None) -> None:
        if site.step > 0:
            seen.setdefault(site.layer, []).append((query.clone(), key.clone(), value.clone()))

    for number, prompt in enumerate(prompts):
        with watched(pipe, watch):
            noise = torch.Generator().manual_seed(number)
            pipe(prompt=prompt, generator=noise, output_type="latent", **GUIDED)
    return seen


def test_errors_are_those_of_the_layers_outputs() -> None:
    """Every option's error against full masks, the real output projection and all queries."""
    pipe, prompts = tiny_wan(), PROMPTS[:2]
    found = measured(pipe, prompts, **OPTIONS)
    table, calls = found.profile.heads, brute_force(pipe, prompts)
    assert table is not None
    checked = 0
    for head, options in enumerate(table.experts["transformer"][0][1]):
        for option in options[:-1]:
            plan = plan_of([table.patterns[option.pattern]], found.grid.layout, 16)
            assert plan.mask is not None
            kept = plan.mask.to_dense()[0]
            if plan.query_order is not None:
                order = plan.query_order[0].long()
                kept = torch.zeros_like(kept).index_put_((order[:, None], order), kept)
            error, norm = torch.zeros(2, dtype=torch.float64)
            weight = pipe.transformer.blocks[1].attn1.to_out[0].weight.detach()
            for query, key, value in calls[1]:
                scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / 8
                dense = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)
                shares = scores.masked_fill(~kept, float("-inf")).softmax(-1).nan_to_num(0.0)
                sparse = torch.einsum("bhqk,bkhd->bqhd", shares, value)
                part = weight[:, head * 64 : head * 64 + 64]
                error += ((sparse - dense)[:, :, head] @ part.T).square().sum()
                norm += sum((dense[:, :, at] @ weight[:, at * 64 : at * 64 + 64].T).square().sum() for at in (0, 1))
            assert option.error == pytest.approx(float(error / norm), rel=2e-3)
            checked += 1
    assert checked > 6


def test_a_profile_that_works() -> None:
    pipe = tiny_wan(layers=3)
    profile = calibrated(pipe, bands=2)
    table = profile.heads
    assert table is not None and profile.method == "head_profile" and profile.options == {"density": 0.6}
    assert table.bands == (0.625, 1.0) and table.block == 16
    assert table.shapes() == {"transformer": (3, 2)}
    for band in table.experts["transformer"]:
        assert all(len(head) == 1 for head in band[0]), "the schedule keeps the first layer dense"
        for head in (head for layer in band[1:] for head in layer):
            assert len(head) > 2 and table.patterns[head[-1].pattern] == Dense()
            costs, errors = [each.cost for each in head], [each.error for each in head]
            assert costs == sorted(costs) and errors == sorted(errors, reverse=True)
    assert table.predicted(table.choose(density=0.6))["density"] <= 0.6
    facts = profile.calibration
    assert facts is not None and facts["prompts"] == 3 and facts["grid"] == "5x4x6" and facts["projected"]
    assert profile.model is not None and profile.model["transformer"]["class"] == "WanTransformer3DModel"
    assert Profile.parse(json.dumps(profile.to_dict()), "it") == profile
    pipe.enable_sparse_attention(profile, min_tokens=0)
    expected = generate(tiny_wan(layers=3))
    assert not np.array_equal(generate(pipe), expected)
    assert pipe.sparse_attention_summary().to_dict()["calls"]["sparse"] == 2 * 2 * 3


def test_a_calibration_comes_out_alike() -> None:
    pipe = tiny_wan()
    first = calibrated(pipe)
    assert calibrated(pipe) == first
    assert calibrated(pipe, seed=1) != first


def test_masks_are_judged_on_prompts_that_they_were_not_made_from() -> None:
    found = measured(tiny_wan(), PROMPTS, **OPTIONS | {"library_name": "paro"})
    table = found.profile.heads
    assert table is not None and {each.name for each in table.patterns} == {"cells", "dense"}
    # Of three prompts the first one maps.
    alone = measured(tiny_wan(), PROMPTS[:2], **OPTIONS | {"library_name": "paro"})
    assert torch.equal(found.maps["transformer.mass"], alone.maps["transformer.mass"])
    mass = found.maps["transformer.mass"]
    assert mass.shape[:4] == (1, 2, 2, 6)
    torch.testing.assert_close(mass.sum(-1), torch.ones(mass.shape[:-1], dtype=mass.dtype), rtol=1e-5, atol=1e-5)


def test_two_experts() -> None:
    """The first runs only early, the second late: each has what it did in the bands in which it did not run."""
    profile = calibrated(tiny_wan(two_experts=True), bands=2, steps_per_band=4, library="svg")
    assert profile.heads is not None
    assert profile.heads.shapes() == {"transformer": (2, 2), "transformer_2": (2, 2)}
    with pytest.raises(ValueError, match="transformer ran at none of the measured steps"):
        calibrated(tiny_wan(two_experts=True), steps_per_band=1, library="svg")


@pytest.mark.parametrize("family", ["hunyuanvideo", "cogvideox"])
def test_text_beside_the_video(family: str) -> None:
    if family == "hunyuanvideo":
        pipe, call = tiny_hunyuanvideo(), SIZE | {"prompt_template": TEMPLATE, "guidance_scale": 1.0}
    else:
        pipe, call = tiny_cogvideox(), SIZE | {"negative_prompt": "blurry", "guidance_scale": 3.0}
    profile = calibrated(pipe, PROMPTS[:2], generation_kwargs=call)
    table, facts = profile.heads, profile.calibration
    assert table is not None and facts is not None and facts["projected"]
    assert table.predicted(table.choose(density=0.6))["error"] < 1
    pipe.enable_sparse_attention(profile, min_tokens=0)


def test_where_the_projection_cannot_be_read() -> None:
    pipe = tiny_wan()
    linear = pipe.transformer.blocks[0].attn1.to_out[0]
    assert pipe.transformer.config.num_attention_heads == 2 and linear.weight.shape == (128, 128)
    family = vidaccel.pipelines.family_of(pipe.transformer)
    weight = family.output_projection(pipe.transformer, 0)
    assert weight is not None and torch.equal(weight, linear.weight)
    linear.weight = torch.nn.Parameter(torch.zeros(8192, 1, dtype=torch.uint8), requires_grad=False)
    assert family.output_projection(pipe.transformer, 0) is None


def test_a_lora_hides_no_projection() -> None:
    peft = pytest.importorskip("peft")
    transformer = tiny_wan().transformer
    weight = transformer.blocks[1].attn1.to_out[0].weight
    transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_out.0"]))
    found = vidaccel.pipelines.family_of(transformer).output_projection(transformer, 1)
    assert found is not None and torch.equal(found, weight)


def test_projections_of_both_kinds_of_blocks() -> None:
    pipe = tiny_hunyuanvideo()
    family = vidaccel.pipelines.family_of(pipe.transformer)
    dual, single = (family.output_projection(pipe.transformer, at) for at in (0, 1))
    assert dual is not None and torch.equal(dual, pipe.transformer.transformer_blocks[0].attn.to_out[0].weight)
    whole = pipe.transformer.single_transformer_blocks[0].proj_out.weight
    assert single is not None and torch.equal(single, whole[:, :128]) and whole.shape[1] > 128


def test_progress() -> None:
    told: list[tuple[str, int, int]] = []
    calibrated(tiny_wan(), PROMPTS[:2], progress=lambda *each: told.append(each))
    assert told[0] == ("mapping prompt 1", 1, 8) and told[-1] == ("measuring prompt 2", 8, 8)


def test_cost_models() -> None:
    pipe = tiny_wan()
    by_model = calibrated(pipe, library="svg", cost=CostModel(per_range=500.0)).heads
    counted = calibrated(pipe, library="svg", cost="counted").heads
    assert by_model is not None and counted is not None and by_model != counted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_density": None}, "either a target density or a largest error"),
        ({"max_error": 0.1}, "either a target density or a largest error"),
        ({"target_density": 1.5}, "density=1.5 is not a number in"),
        ({"prompts": []}, "needs prompts"),
        ({"prompts": ["a circle", " "]}, "needs prompts"),
        ({"prompts": "a circle"}, "a list of texts"),
        ({"prompts": ["a circle"]}, "at least 2 prompts"),
        ({"library": "best"}, "unknown library 'best'"),
        ({"bands": 0}, "bands=0 is not a whole number of at least 1"),
        ({"rows": 1.5}, "rows=1.5 is not a whole number"),
        ({"block": 0}, "block=0 is not"),
        ({"cost": "guessed"}, "cost='guessed' is not measured, counted, density or a CostModel"),
        ({"generation_kwargs": {"prompt": "x"}}, "sets prompt itself"),
        ({"generation_kwargs": {"frames": 3}}, "WanPipeline takes no frames"),
        ({"bands": 9}, "9 bands are too many for 3 sparse steps"),
        ({"target_density": 0.001, "library": "svg"}, "density 0.001 is below"),
    ],
)  # fmt: skip
def test_bad_input(options: dict[str, Any], message: str) -> None:
    given = {"prompts": PROMPTS[:2], **options}
    with pytest.raises(ValueError, match=message):
        calibrated(tiny_wan(), **given)


def test_not_a_video_pipeline() -> None:
    with pytest.raises(ValueError, match="has no video transformer"):
        calibrate(object(), PROMPTS, target_density=0.5)
