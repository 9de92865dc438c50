"""Fitted sums of outputs on real pipelines: against hooks that add up what was computed, and for what they gain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vidaccel
from tests import tiny
from tests.caching.cases import FAMILIES, run
from vidaccel.caching import Cache
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.caching.predictors import Fitted, Hold
from vidaccel.caching.static import Static
from vidaccel.miniature import generation_defaults
from vidaccel.pipelines import experts

STEPS = 8
COMPUTE = (0, 1, 3, 6)


@contextmanager
def by_hooks(pipe: Any, compute: tuple[int, ...], known: CacheCalibration, outputs: int) -> Iterator[None]:
    """Every step is computed, and where it should not have been, the output is replaced by the fitted sum."""
    assert known.guided is not None
    at: dict[str, Any] = {"step": -1, "last": None, "call": 0, "expert": None}
    seen: dict[tuple[str, int], dict[int, Tensor]] = {}

    def hook(expert: str) -> Any:
        def replaced(module: Any, args: Any, kwargs: Any, out: Any) -> Any:
            now = float(kwargs["timestep"].max())
            at["call"] = at["call"] + 1 if now == at["last"] else 0
            at["step"] += now != at["last"]
            at["last"] = now
            kept = seen.setdefault((expert, at["call"]), {})
            if at["step"] in compute or not kept:
                kept[at["step"]] = out[0]
                return None
            past = list(kept)[-outputs:]
            weights = known.guided.fit(past, at["step"])  # type: ignore[union-attr]
            return (sum(weight * kept[step] for weight, step in zip(weights, past, strict=True)), *out[1:])

        return replaced

    hooks = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in experts(pipe).items()]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_reused_steps_are_the_fitted_sums(family: str, outputs: int) -> None:
    pipe = FAMILIES[family][0]()
    own = {name: value for name, value in tiny.wan_inputs(pipe).items() if name not in ("generator", "output_type")}
    call = {**own, **FAMILIES[family][1], "num_inference_steps": STEPS}
    known = vidaccel.calibrate_cache(pipe, [str(call.pop("prompt"))], probes=0, **call)
    with by_hooks(pipe, COMPUTE, known, outputs):
        expected = run(family, pipe, num_inference_steps=STEPS)
    cache = Cache(Static(compute=COMPUTE), Fitted(outputs, known), min_steps=1)
    with vidaccel.enable(pipe, None, cache=cache) as session:
        np.testing.assert_allclose(run(family, pipe, num_inference_steps=STEPS), expected, atol=2e-4)
        made = session.summary().to_dict()["cache"]
    assert made["predictor"]["name"] == "fitted" and made["fitted_to"] == known.digest
    given = {"reused"} if outputs == 1 else {"predicted"}
    assert {each["what"] for each in made["decisions"]} == {"computed"} | given


def test_a_run_that_the_fit_is_not_for_is_refused() -> None:
    pipe = tiny.tiny_wan()
    call = {name: value for name, value in tiny.wan_inputs(pipe).items() if name not in ("generator", "output_type")}
    known = vidaccel.calibrate_cache(pipe, [call.pop("prompt")], probes=0, **{**call, "num_inference_steps": 4})
    cache = Cache(Static(compute=(0, 2)), Fitted(2, known), min_steps=1)
    with vidaccel.enable(pipe, None, cache=cache), pytest.raises(ValueError, match="is for runs of 4 steps, not of 5"):
        run("wan", pipe, num_inference_steps=5)
    other = tiny.tiny_wan(layers=3)
    with pytest.raises(ValueError, match="is not for this transformer"):
        vidaccel.enable(other, None, cache=Cache(Static(compute=(0, 2)), Fitted(2, known)))


def test_the_fit_beats_holding_on_a_trained_model() -> None:
    """On the miniature, with a prompt that its calibration has not seen; by far, or this is no test of quality."""
    pipe = vidaccel.load_miniature("hunyuanvideo")
    own = {name: value for name, value in generation_defaults("hunyuanvideo").items() if name != "fps"}
    call = {**own, "prompt": "a yellow square drifts left", "num_inference_steps": 20, "height": 96, "width": 144,
            "num_frames": 13, "output_type": "latent"}  # fmt: skip

    def latents() -> Tensor:
        found: Tensor = pipe(generator=torch.Generator().manual_seed(3), **call).frames.double()
        return found

    dense = latents()
    errors = {}
    for name, predictor in (("hold", Hold()), ("fitted", None)):
        cache = {"name": "static", "file": "miniature:hunyuanvideo/cache-20.json", "computed_steps": 10}
        with vidaccel.enable(pipe, None, cache={**cache, **({"predictor": predictor} if predictor else {})}) as session:
            errors[name] = (latents() - dense).norm() / dense.norm()
            assert session.summary().to_dict()["cache"]["computed_share"] == 0.5
    assert errors["fitted"] < 0.7 * errors["hold"]
