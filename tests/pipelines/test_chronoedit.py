"""ChronoEdit: with temporal reasoning the grid shrinks in mid-run to the first and the last frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

import vidaccel
from tests.pipelines.cases import DENSE, NEVER_DENSE, Everything
from tests.pipelines.models import chronoedit
from vidaccel.layout import TokenLayout

CALL: dict[str, Any] = {
    **chronoedit.MODELS["ChronoEditTransformer3DModel"].call, "enable_temporal_reasoning": True,
    "num_temporal_reasoning_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = chronoedit.pipeline()
    # The pipeline reaches into this scheduler's memory when it drops frames.
    made.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    return made


def generate(pipe: Any) -> np.ndarray:
    return np.asarray(pipe(**CALL, generator=torch.Generator().manual_seed(0)).frames)


def test_the_rest_of_the_run_has_the_smaller_grid(pipe: Any) -> None:
    stock, method = generate(pipe), Everything()
    assert stock.shape[2] == 2
    with vidaccel.enable(pipe, **DENSE) as session:
        assert np.array_equal(generate(pipe), stock)
    assert TokenLayout(**session.summary().to_dict()["layout"]) == TokenLayout(2, 4, 6)
    with vidaccel.enable(pipe, method, min_tokens=0, schedule=NEVER_DENSE) as session:
        np.testing.assert_allclose(generate(pipe), stock, atol=2e-3)
    assert session.runs == 1 and [entry[:4] for entry in method.log] == [
        (branch, layer, step, 4) for step in range(4) for branch in ("cond", "uncond") for layer in range(2)
    ]


@pytest.mark.parametrize("method", ["nabla", "radial", "semantic"])
def test_plans_that_are_kept_for_steps_are_not_of_the_old_grid(pipe: Any, method: str) -> None:
    options = {"radial": {"decay": 0.0, "split": 16, "sink": False}}.get(method, {"density": 0.4, "refresh": 10})
    with vidaccel.enable(pipe, method, min_tokens=0, block=16, schedule=NEVER_DENSE, **options) as session:
        found = generate(pipe)
    assert np.isfinite(found).all() and session.summary().to_dict()["calls"] == {"sparse": 16, "dense": 0}


@pytest.mark.parametrize("reuse", ["stack", "output", "prediction"])
def test_a_cache_begins_anew_with_the_grid(pipe: Any, reuse: str) -> None:
    cache = {"name": "static", "compute": [0], "min_steps": 1, "predictor": "hold", "reuse": reuse}
    with vidaccel.enable(pipe, None, cache=cache, schedule=NEVER_DENSE) as session:
        assert np.isfinite(generate(pipe)).all()
    assert session.summary().to_dict()["cache"]["computed_share"] == 0.5
