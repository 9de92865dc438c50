"""A session that looks for values that are not finite, and one that computes in fewer bits."""

import pytest
import torch

import vidaccel
from tests import tiny
from vidaccel import debug

SPARSE = {"method": "radial", "block": 16, "split": 16, "min_tokens": 0}
SCHEDULE = {"dense_first_steps": 1, "dense_first_layers": 0}


@pytest.fixture
def pipe():
    return tiny.tiny_wan()


def spoil(pipe, layer, step):
    """Make one key of a layer infinite from a step on."""
    count = {"calls": 0}

    def hook(module, args, output):
        count["calls"] += 1
        if count["calls"] > 2 * step:
            output = output.clone()
            output[0, 3, 5] = torch.inf
        return output

    return pipe.transformer.blocks[layer].attn1.to_k.register_forward_hook(hook)


@pytest.mark.parametrize("step, how", [(0, "dense in first steps"), (2, "sparse by radial, precision torch.float32")])
def test_finite_check_names_layer_step_and_input(pipe, step, how):
    spoil(pipe, layer=1, step=step)
    vidaccel.enable(pipe, **SPARSE, schedule=SCHEDULE, check_finite=True)
    message = rf"layer 1 of transformer at step {step} \(cond, {how}\) is not finite in heads \[.*\]; so are .*key"
    with pytest.raises(FloatingPointError, match=message):
        tiny.generate(pipe)


def test_finite_check_changes_nothing_else(pipe):
    with vidaccel.enable(pipe, **SPARSE, schedule=SCHEDULE):
        expected = tiny.generate(pipe)
    with vidaccel.enable(pipe, **SPARSE, schedule=SCHEDULE, check_finite=True) as session:
        assert (tiny.generate(pipe) == expected).all()
    assert session.summary().to_dict()["calls"] == {"sparse": 12, "dense": 4}


def test_without_the_check_nothing_is_said(pipe):
    spoil(pipe, layer=1, step=0)
    vidaccel.enable(pipe, **SPARSE, schedule=SCHEDULE)
    tiny.generate(pipe)


def test_finite_check_finds_an_output_that_overflows():
    query, out = torch.ones(1, 4, 2, 8), torch.ones(1, 4, 2, 8)
    out[0, 1, 1, 3] = torch.nan
    debug.check_finite(query, query, query, query, "here")
    with pytest.raises(FloatingPointError, match=r"here is not finite in heads \[1\]; query, key and value are finite"):
        debug.check_finite(out, query, query, query, "here")


def test_relative_error():
    exact = torch.randn(1, 9, 2, 4).bfloat16()
    assert debug.relative_error(exact, exact) == 0
    assert float(debug.relative_error(exact * 2, exact)) == pytest.approx(1)
    assert float(debug.relative_error(torch.zeros(3), torch.zeros(3))) == 0


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_fewer_bits_are_measured_and_told(pipe, precision):
    with vidaccel.enable(pipe, **SPARSE, schedule=SCHEDULE, backend="reference", precision=precision) as session:
        found = tiny.generate(pipe)
    summary = session.summary()
    error = summary.to_dict()["precision_error"]
    assert summary.to_dict()["precision"] == precision
    assert 0 < error["mean"] <= error["worst"] < 0.1 and error["worst_at"]["expert"] == "transformer"
    assert f"precision {precision}: outputs differ" in str(summary)
    with vidaccel.enable(pipe, **SPARSE, schedule=SCHEDULE, backend="reference"):
        assert 0 < abs(tiny.generate(pipe) - found).mean() < 0.05


def test_precision_that_no_backend_has_is_refused_before_anything_changes(pipe):
    stock = pipe.transformer.blocks[0].attn1.processor
    for precision, message in (("int8", "no backend can run"), ("int4", "choose int8, fp8")):
        with pytest.raises(ValueError, match=message):
            vidaccel.enable(pipe, **SPARSE, precision=precision)
    assert pipe.transformer.blocks[0].attn1.processor is stock


def test_a_profile_sets_the_precision_and_the_call_overrides_it(pipe):
    profile = vidaccel.Profile("radial", {"block": 16, "split": 16}, precision="int8")
    with vidaccel.enable(pipe, profile, min_tokens=0, backend="reference") as session:
        assert session.setting.precision == "int8"
    with vidaccel.enable(pipe, profile, min_tokens=0, backend="reference", precision="fp8") as session:
        assert session.setting.precision == "fp8"
