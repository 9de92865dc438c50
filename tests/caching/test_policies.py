"""Every policy that needs no file on every family: what it never reuses is stock, and what it reuses is reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers import FirstBlockCacheConfig

import vidaccel
from tests import tiny
from tests.caching.cases import FAMILIES, run
from vidaccel.caching import POLICIES

LOOSE: dict[str, dict[str, Any]] = {
    "easycache": {"threshold": 1e3}, "first_block": {"threshold": 1e3}, "rehash": {"threshold": 1e3},
    "teacache": {"threshold": 1e3, "coefficients": (0.0, 0.0, 0.0, 1.0, 0.0)},
}  # fmt: skip
"""Everything is near enough."""
STEPS = {"num_inference_steps": 8}


def setting(name: str, **changes: Any) -> dict[str, Any]:
    return {"method": None, "cache": {"name": name, "predictor": "hold", "min_steps": 1, **LOOSE[name], **changes}}


def test_no_policy_is_forgotten() -> None:
    """Those that are not here need a calibration file, and say so."""
    for name in set(POLICIES) - set(LOOSE):
        with pytest.raises((ValueError, TypeError), match="calibration|file|compute"):
            vidaccel.caching.cache(name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", LOOSE)
def test_policy(name: str, family: str) -> None:
    pipe = FAMILIES[family][0]()
    stock = run(family, pipe, **STEPS)
    with vidaccel.enable(pipe, **setting(name, threshold=1e-9)):
        assert np.array_equal(run(family, pipe, **STEPS), stock)
    with vidaccel.enable(pipe, **setting(name)) as session:
        first = run(family, pipe, **STEPS)
        made = session.summary().to_dict()["cache"]
        assert np.abs(first - stock).max() > 1e-4 and made["computed_share"] < 0.8
        assert {each["what"] for each in made["decisions"]} == {"computed", "reused"}
        last = max(each["step"] for each in made["decisions"])
        assert all(each["what"] == "computed" for each in made["decisions"] if each["step"] in (0, last))
        assert np.array_equal(run(family, pipe, **STEPS), first)
        assert "r" in str(session.summary()).split("from step 0: ")[1]
    assert np.array_equal(run(family, pipe, **STEPS), stock)


@pytest.mark.parametrize("name", LOOSE)
def test_predicted(name: str) -> None:
    pipe = tiny.tiny_wan()
    with vidaccel.enable(pipe, **setting(name, first_steps=4)):
        held = run("wan", pipe, **STEPS)
    with vidaccel.enable(pipe, **setting(name, first_steps=4, predictor="taylor")) as session:
        predicted = run("wan", pipe, **STEPS)
        assert {each["what"] for each in session.summary().to_dict()["cache"]["decisions"]} == {"computed", "predicted"}
    assert np.abs(predicted - held).max() > 1e-4


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.3])
def test_first_block_is_diffusers_own(threshold: float) -> None:
    """Without what the plan forces, the same clip as by diffusers' hooks; both run the first block in every step."""
    pipe = tiny.tiny_wan(layers=3)
    cache = {"name": "first_block", "threshold": threshold, "first_steps": 0, "last_steps": 0, "min_steps": 1,
             "predictor": "hold"}  # fmt: skip
    with vidaccel.enable(pipe, None, cache=cache) as session:
        ours = run("wan", pipe, **STEPS)
        reused = session.summary().to_dict()["cache"]["computed_share"] < 1
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    theirs = run("wan", pipe, **STEPS)
    pipe.transformer.disable_cache()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert reused or np.array_equal(ours, run("wan", pipe, **STEPS))


def test_blocks_before_a_segment_are_counted() -> None:
    """The first block attends in reused steps, too."""
    pipe = tiny.tiny_wan(layers=3)
    with vidaccel.enable(pipe, "radial", min_tokens=0, cache={"name": "first_block", "threshold": 1e3, "min_steps": 1},
                         schedule={"dense_first_steps": 0, "dense_first_layers": 0}) as session:  # fmt: skip
        run("wan", pipe, **STEPS)
        calls = session.summary().to_dict()["calls"]
    # Eight steps of two passes: the first and the last are computed.
    assert calls == {"sparse": 2 * (2 * 3 + 6), "dense": 0, "spared": 2 * 6 * 2}
