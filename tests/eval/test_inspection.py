"""Inspections of real tiny pipelines: what the layers had, against the captured queries and keys."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vidaccel
from tests.eval.test_attended import by_cell, kept_of, weights_of
from tests.methods.test_head_profile import THIN, profile
from tests.methods.test_mixed import at, mixed
from tests.tiny import tiny_cogvideox, tiny_hunyuanvideo, tiny_wan
from vidaccel.eval.inspected import _short
from vidaccel.eval.inspection import MOST_HEADS, inspect, observing
from vidaccel.site import Observed

PROMPT = "a red circle moves left"
CALL = {"num_frames": 17, "height": 64, "width": 96, "num_inference_steps": 3, "guidance_scale": 3.0,
        "max_sequence_length": 16}  # fmt: skip
HUNYUAN = {"prompt_template": {"template": "{}", "crop_start": 0}}
PIPELINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "wan": (tiny_wan, {}), "hunyuanvideo": (tiny_hunyuanvideo, HUNYUAN), "cogvideox": (tiny_cogvideox, {}),
}  # fmt: skip
SPARSE = {"schedule": {"dense_first_steps": 1, "dense_first_layers": 0}, "min_tokens": 0}
RADIAL = {"method": "radial", "block": 16, "density": 0.7, **SPARSE}


def latents(pipe: Any, more: Mapping[str, Any]) -> Tensor:
    found: Tensor = pipe(prompt=PROMPT, generator=torch.Generator().manual_seed(0), output_type="latent",
                         **{**CALL, **more}).frames  # fmt: skip
    return found


def pixels(encoded: str, cells: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(encoded), np.uint8).reshape(cells, cells) / 255


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("enable", [None, RADIAL, {"method": "svg", "block": 16, **SPARSE}])
def test_output_is_bit_identical(name: str, enable: dict[str, Any] | None) -> None:
    build, more = PIPELINES[name]
    pipe, seen = build(), []
    if enable is not None:
        vidaccel.enable(pipe, **enable)
    without = latents(pipe, more)
    stated = vidaccel.summary(pipe).to_dict() if enable is not None else None
    with observing(pipe, seen.append, enable) as session:
        inside = latents(pipe, more)
        counted = session.summary().to_dict()
    assert torch.equal(inside, without) and torch.equal(latents(pipe, more), without)
    passes = 2 if name == "wan" else 1
    assert len(seen) == 3 * 2 * passes
    assert sum(each.plan.mask is not None for each in seen) == (4 * passes if enable else 0)
    if stated is not None:
        assert {key: counted[key] for key in ("calls", "density", "layout")} == {
            key: stated[key] for key in ("calls", "density", "layout")
        }


@pytest.mark.parametrize("name", PIPELINES)
def test_maps_and_masks_are_those_of_the_layers(name: str) -> None:
    """Of every call, all cells, and each head's kept mass, from the queries and keys of the pass with the prompt."""
    build, more = PIPELINES[name]
    pipe, calls = build(), {}

    def keep(seen: Observed) -> None:
        calls.setdefault((seen.site.step, seen.site.layer), seen)

    with observing(pipe, keep, RADIAL):
        latents(pipe, more)
    found = inspect(pipe, PROMPT, enable=RADIAL, steps=[0, 2], layers="all", generation_kwargs={**CALL, **more})
    assert [(each["step"], each["layer"]) for each in found.calls] == [(0, 0), (0, 1), (2, 0), (2, 1)]
    for call in found.calls:
        check_call(call, calls[call["step"], call["layer"]], dense=call["step"] == 0)
    assert not hasattr(pipe, "_vidaccel_session")


def check_call(call: dict[str, Any], seen: Observed, dense: bool) -> None:
    tokens = seen.site.layout.tokens
    length = tokens if seen.key_lengths is None else int(seen.key_lengths[-1])
    assert call["tokens"] == length and call["dense"] == dense and seen.site.branch in ("cond", "cond_uncond")
    cells = len(call["edges"]) - 1
    for values, head in itertools.zip_longest(call["heads"], range(2)):
        weights = weights_of(seen.query[-1, :, head], seen.key[-1, :, head], length)
        expected = by_cell(weights, tuple(call["edges"])) * length
        assert values["map"]["most"] == pytest.approx(expected.max(), rel=1e-3)
        shown = pixels(values["map"]["bytes"], cells)
        np.testing.assert_allclose(shown, (expected / expected.max()) ** 0.4, atol=0.6 / 255)
        if dense:
            assert values["mask"] is values["kept_mass"] is values["best_mass"] is None and values["density"] == 1
            continue
        kept = kept_of(seen.plan, head, tokens, length)
        np.testing.assert_allclose(pixels(values["mask"]["bytes"], cells), by_cell(kept * 1.0, tuple(call["edges"])),
                                   atol=0.6 / 255)  # fmt: skip
        layout = seen.site.layout
        mass = np.sort((weights * kept)[layout.video_start : layout.video_end].sum(1))
        assert values["kept_mass"]["mean"] == pytest.approx(mass.mean(), abs=2e-5)
        assert values["kept_mass"]["least"] == pytest.approx(mass[0], abs=2e-5)
        assert values["kept_mass"]["worst_hundredth"] == pytest.approx(mass[0], abs=2e-5)  # 1 % of 120 rows is one
        assert values["kept_mass"]["mean"] <= values["best_mass"] + 1e-5 and values["video_density"] < 1


def test_padded_text_is_left_out() -> None:
    found = inspect(tiny_hunyuanvideo(), PROMPT, generation_kwargs={**CALL, **HUNYUAN})
    (call,) = found.calls
    assert call["layout"]["text_after"] == 16 and 120 < call["tokens"] < 136


def test_profiled_heads_say_their_pattern_and_error() -> None:
    found = inspect(tiny_wan(), PROMPT, enable={"method": profile(), "min_tokens": 0}, steps=[0, 2], layers="all",
                    generation_kwargs=CALL)  # fmt: skip
    patterns = {(call["step"], call["layer"]): [each["pattern"] for each in call["heads"]] for call in found.calls}
    thin = patterns[2, 1][0]
    assert thin == {**THIN.to_dict(), "calibrated": thin["calibrated"]} and thin["calibrated"]["error"] == 1e-9
    assert [each["name"] for each in patterns[2, 0]] == ["band", "skip"]
    assert [each["name"] for each in patterns[0, 1]] == ["dense", "dense"]
    assert [call["dense"] for call in found.calls] == [False, True, False, False]


def test_mixed_heads_say_which_of_them_choose() -> None:
    made = mixed()
    site = at(0, 0)
    heads = made.heads_have(site, {})
    assert heads is not None and made.resisting(site) == (1,)
    assert [each["name"] for each in heads] == [made.patterns(site)[0].name, "nabla", made.patterns(site)[2].name]


def test_masks_within_patterns_are_left_out() -> None:
    shown = _short({"name": "cells", "cells": "A" * 99, "of": [{"cells": "A" * 99, "axes": "FHW"}]})
    assert shown == {"name": "cells", "of": [{"axes": "FHW"}]}


@pytest.mark.parametrize("method", ["svg", "semantic"])
def test_reordered_methods_are_shown_at_the_tokens_own_places(method: str) -> None:
    calls: list[Observed] = []
    enable = {"method": method, "block": 16, **SPARSE}
    with observing(pipe := tiny_wan(), calls.append, enable):
        latents(pipe, {})
    seen = next(each for each in calls if (each.site.step, each.site.layer) == (2, 1))
    found = inspect(pipe, PROMPT, enable=enable, steps=[2], layers=[1], generation_kwargs=CALL).calls[0]
    check_call(found, seen, dense=False)
    for head, values in enumerate(found["heads"]):
        order = seen.plan.key_order
        assert order is not None
        own = order[head % len(order)]
        moved = float((own != torch.arange(120)).double().mean())
        assert values["order"]["keys_moved"] == pytest.approx(moved, abs=1e-4)
        if method == "semantic":
            assert values["order"]["groups"]["count"] > 1 and values["pattern"] is None
        else:
            assert values["pattern"]["name"] == "band" and (values["pattern"]["axes"] == "FHW") == (
                values["order"]["keys_moved"] == 0
            )


def test_both_experts_of_wan_22_are_seen() -> None:
    pipe = tiny_wan(two_experts=True)
    found = inspect(pipe, PROMPT, steps=[0, 2], layers=[1], heads=[0], generation_kwargs=CALL)
    assert [each["expert"] for each in found.calls] == ["transformer", "transformer_2"]
    assert all([values["head"] for values in each["heads"]] == [0] for each in found.calls)
    assert found.method == {"name": "dense", "options": {}} and found.backend is None
    assert {each["how"] for each in found.calls} == {"dense"}


def test_what_was_enabled_comes_back() -> None:
    pipe = tiny_wan()
    session = vidaccel.enable(pipe, **RADIAL)
    inspect(pipe, PROMPT, generation_kwargs=CALL)
    assert pipe._vidaccel_session is session and session.observer is None


def test_record_is_strict_json_and_small(tmp_path: Path) -> None:
    found = inspect(tiny_wan(), PROMPT, enable=RADIAL, generation_kwargs=CALL, seed=3, name="tiny")
    path = found.write(tmp_path / "new")
    assert path == tmp_path / "new" / "inspection.json" and [each.name for each in path.parent.iterdir()] == [path.name]
    values = json.loads(path.read_text(encoding="utf-8"))
    assert values == found.to_dict() and path.stat().st_size < 20_000
    assert (values["seed"], values["prompt"], values["model"]["name"]) == (3, PROMPT, "tiny")
    assert values["settings"]["num_inference_steps"] == 3 and values["method"]["name"] == "radial"
    assert [(each["step"], each["layer"], len(each["heads"])) for each in values["calls"]] == [(1, 1, 2)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": [3]}, "step 3 is not one of 0 to 2"),
        ({"layers": [0, -1]}, "layer -1 is not one of 0 to 1"),
        ({"heads": [True]}, "head True is not one of 0 to 1"),
        ({"heads": []}, "no head is named"),
        ({"layers": "every"}, "layers are numbers from 0 to 1 or 'all', not 'every'"),
        ({"generation_kwargs": {"prompt": "x"}}, "an inspection sets prompt itself"),
        ({"generation_kwargs": {"colour": "x"}}, "takes no colour"),
        ({"enable": {"method": "radial", "cache": "easycache"}}, "takes no cache"),
        ({"enable": {"method": "bend"}}, "unknown method 'bend'"),
        ({"steps": "all", "layers": "all", "generation_kwargs": {"num_inference_steps": 99}},
         f"99 steps x 2 layers x 2 heads are 396 maps, and one inspection shows at most {MOST_HEADS}"),
    ],
)  # fmt: skip
def test_what_cannot_be_inspected_is_refused_before_the_run(
    given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny_wan()
    monkeypatch.setattr(pipe.transformer, "forward", lambda *args, **kwargs: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=said):
        inspect(pipe, PROMPT, **{"generation_kwargs": CALL, **given})
    assert not hasattr(pipe, "_vidaccel_session")


def test_a_call_that_is_not_seen_is_an_error() -> None:
    """Masked calls are the stock processor's."""
    kwargs = {**CALL, "num_inference_steps": 3}
    pipe = tiny_wan()
    stop = pipe.scheduler.set_timesteps

    def fewer(steps: int, **more: Any) -> None:
        stop(steps - 1, **more)

    pipe.scheduler.set_timesteps = fewer
    with pytest.raises(ValueError, match="no self-attention was seen at step 2 in layer 1"):
        inspect(pipe, PROMPT, steps=[2], generation_kwargs=kwargs)


def test_nothing_is_observed_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an observer no call is described, and static plans go the way that compiles."""
    from vidaccel.pipelines.processor import Mode

    pipe = tiny_wan()
    session = vidaccel.enable(pipe, **RADIAL)
    monkeypatch.setattr(Observed, "__init__", lambda *args, **kwargs: pytest.fail("a call was described"))
    latents(pipe, {})
    assert session.observer is None
    assert all(block.attn1.processor.mode is Mode.STATIC for block in pipe.transformer.blocks)
