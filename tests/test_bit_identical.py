"""Dense steps are the stock pipeline's bit for bit, and disabling gives it back.

`make versions` runs this file on every supported diffusers."""

import numpy as np
import pytest

import vidaccel
from tests import tiny

PIPELINES = {
    "t2v": {},
    "two experts": {"two_experts": True},
    "timestep per token": {"expand_timesteps": True},
    "i2v 2.1": {"image": True, "clip": True},
    "i2v 2.2": {"image": True},
    "first and last frame": {"image": True, "clip": True, "last_image": True},
    "i2v, timestep per token": {"image": True, "expand_timesteps": True},
}


@pytest.fixture(params=PIPELINES, scope="module")
def pipe(request):
    return tiny.tiny_wan(**PIPELINES[request.param])


def processors(pipe):
    return [
        module.processor
        for expert in (pipe.transformer, pipe.transformer_2)
        if expert is not None
        for block in expert.blocks
        for module in (block.attn1, block.attn2)
    ]


def test_dense_steps_are_bit_identical_and_disable_restores_the_same_objects(pipe):
    stock, before = tiny.generate(pipe), processors(pipe)
    pipe.enable_sparse_attention("radial", block=16, min_tokens=0, schedule={"dense_first_steps": 1.0})
    assert np.array_equal(tiny.generate(pipe), stock)
    calls = pipe.sparse_attention_summary().to_dict()["calls"]
    assert calls["sparse"] == 0 and calls["dense"] == 2 * 4 * 2
    pipe.disable_sparse_attention()
    assert all(now is then for now, then in zip(processors(pipe), before, strict=True))
    assert np.array_equal(tiny.generate(pipe), stock)


def test_a_mask_that_keeps_everything_is_stock_to_rounding(pipe):
    stock = tiny.generate(pipe, output_type="latent")
    for backend in ("reference", "cpu"):
        with vidaccel.enable(
            pipe,
            "radial",
            density=1.0,
            block=16,
            min_tokens=0,
            backend=backend,
            schedule={"dense_first_steps": 0, "dense_first_layers": 0},
        ) as session:
            full = tiny.generate(pipe, output_type="latent")
        tally = session.summary().to_dict()
        assert tally["calls"] == {"sparse": 16, "dense": 0} and tally["density"]["density"] == 1.0
        # 1e-5 a call; four steps with guidance 3 add up.
        assert np.linalg.norm(full - stock) < 5e-5 * np.linalg.norm(stock)


def test_a_sparse_run_differs_and_repeats_exactly(pipe):
    stock = tiny.generate(pipe)
    with vidaccel.enable(
        pipe,
        "radial",
        decay=0.0,
        block=16,
        split=16,
        min_tokens=0,
        schedule={"dense_first_steps": 1, "dense_first_layers": 1},
    ) as session:
        first, second = tiny.generate(pipe), tiny.generate(pipe)
    assert np.array_equal(first, second) and not np.array_equal(first, stock)
    tally = session.summary().to_dict()
    assert tally["calls"] == {"sparse": 6, "dense": 10} and tally["runs"] == 2 and tally["steps"] == 4
    assert 0 < tally["density"]["density"] < tally["density"]["all_calls"] < 1
