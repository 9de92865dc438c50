from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vidaccel
from tests.tiny import generate, tiny_wan
from vidaccel.eval import compare
from vidaccel.eval.evidence import comparison_record
from vidaccel.eval.record import to_json
from vidaccel.session import ATTRIBUTE

CALL: dict[str, Any] = {"num_frames": 17, "height": 64, "width": 96, "num_inference_steps": 4, "guidance_scale": 3.0,
                        "negative_prompt": "blurry", "max_sequence_length": 16}  # fmt: skip
RADIAL: dict[str, Any] = {"method": "radial", "block": 16, "split": 16, "min_tokens": 0, "backend": "reference"}
PROMPT = "a red circle moves left"


def processors(pipe: Any) -> list[Any]:
    return [block.attn1.processor for block in pipe.transformer.blocks]


def run(pipe: Any, **overrides: Any) -> Any:
    return compare(pipe, PROMPT, **{"seed": 5, "repeats": 2, "enable_kwargs": RADIAL, "generation_kwargs": CALL,
                                    **overrides})  # fmt: skip


def test_both_sides_are_what_they_say() -> None:
    pipe = tiny_wan(layers=3)
    stock = generate(pipe, seed=5, prompt=PROMPT)
    with vidaccel.enable(pipe, **RADIAL):
        sparse = generate(pipe, seed=5, prompt=PROMPT)
    seen = run(pipe)
    assert len(seen.dense) == len(seen.fast) == 2
    assert all(np.array_equal(each.frames, stock) for each in seen.dense)
    assert all(np.array_equal(each.frames, sparse) for each in seen.fast)
    assert not np.array_equal(stock, sparse)
    error = np.square(stock.astype(float) - sparse.astype(float)).mean()
    assert seen.metrics["psnr"] == pytest.approx(-10 * np.log10(error))


def test_summary_is_of_a_whole_fast_run() -> None:
    seen = run(tiny_wan(layers=3)).summary.to_dict()
    # 4 steps of 2 passes on 3 layers: the first step and the first layer are dense.
    assert seen["calls"] == {"sparse": 3 * 2 * 2, "dense": 4 * 2 * 3 - 12}
    assert seen["backend"] == "reference" and seen["steps"] == 4 and 0 < seen["density"]["video_density"] < 1


def test_runs_alternate_after_a_warm_up() -> None:
    seen: list[tuple[str, int, int]] = []
    run(tiny_wan(), progress=lambda *step: seen.append(step))
    labels = [label for label, _, _ in seen]
    order = [label for i, label in enumerate(labels) if i == 0 or label != labels[i - 1]]
    assert order == ["warm-up dense", "warm-up fast", "dense", "fast", "dense", "fast"]
    total = 2 * 2 + 4 * 4
    assert [step for _, step, _ in seen] == list(range(1, total + 1)) and {end for _, _, end in seen} == {total}


def test_warm_up_runs_the_sparse_code_of_a_schedule_that_starts_late() -> None:
    pipe, calls = tiny_wan(), []
    late = {**RADIAL, "schedule": {"dense_first_steps": 4}}
    original = vidaccel.calls.kernels.attention

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vidaccel.calls.kernels, "attention", spy)
        seen = run(pipe, enable_kwargs=late, repeats=1)
    # Two steps, two passes, two layers of warm-up; the timed run is all dense and keeps its own schedule.
    assert len(calls) == 8 and seen.summary.to_dict()["calls"]["sparse"] == 0
    assert seen.summary.schedule["dense_first_steps"] == 4
    assert seen.metrics["psnr"] is None and "identical" in seen.metrics["psnr_reason"]


def test_timing_is_of_the_runs() -> None:
    seen = run(tiny_wan(), repeats=3)
    timing = seen.timing()
    assert timing["dense"] == [each.seconds for each in seen.dense]
    assert timing["dense_median"] == sorted(timing["dense"])[1]
    assert timing["speedup"] == pytest.approx(timing["dense_median"] / timing["fast_median"])
    assert all(0 < each.denoising < each.seconds for each in (*seen.dense, *seen.fast))
    assert "without decoding" in timing["note"]


@pytest.mark.parametrize("configured", [None, {"desc": "mine"}])
def test_the_pipeline_ends_as_it_was(configured: dict[str, Any] | None) -> None:
    pipe = tiny_wan()
    del pipe._progress_bar_config
    if configured is not None:
        pipe.set_progress_bar_config(**configured)
    before = processors(pipe)
    run(pipe, repeats=1)
    assert all(now is then for now, then in zip(processors(pipe), before, strict=True))
    assert pipe.__dict__.get("_progress_bar_config") == configured
    assert not pipe.transformer._forward_pre_hooks


def test_what_was_enabled_is_set_aside_and_put_back() -> None:
    pipe = tiny_wan()
    stock = generate(pipe, seed=5, prompt=PROMPT)
    mine = vidaccel.enable(pipe, **{**RADIAL, "backend": "reference"})
    seen = run(pipe, repeats=1)
    assert np.array_equal(seen.dense[0].frames, stock)
    assert getattr(pipe.transformer, ATTRIBUTE) is mine
    vidaccel.disable(pipe)
    assert np.array_equal(generate(pipe, seed=5, prompt=PROMPT), stock)


@pytest.mark.parametrize("during", ["dense", "fast", "warm-up fast"])
def test_an_exception_leaves_the_pipeline_as_it_was(during: str) -> None:
    pipe = tiny_wan()
    before, configured = processors(pipe), dict(pipe._progress_bar_config)

    def interrupt(label: str, done: int, total: int) -> None:
        if label == during:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pipe, progress=interrupt)
    assert all(now is then for now, then in zip(processors(pipe), before, strict=True))
    assert not hasattr(pipe.transformer, ATTRIBUTE) and pipe._progress_bar_config == configured


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"repeats": 0}, "repeats=0"), ({"enable_kwargs": {"method": "nope"}}, "unknown method 'nope'"),
     ({"enable_kwargs": {"method": "radial", "density": 2.0}}, r"outside \(0, 1\]")],
)  # fmt: skip
def test_bad_settings_are_refused_before_anything_runs(wrong: dict[str, Any], said: str) -> None:
    pipe = tiny_wan()
    before = processors(pipe)
    with pytest.raises(ValueError, match=said):
        run(pipe, **wrong, progress=lambda *_: pytest.fail("it ran"))
    assert all(now is then for now, then in zip(processors(pipe), before, strict=True))


def test_record_of_a_comparison() -> None:
    pipe = tiny_wan(layers=3)
    record = comparison_record("demo", pipe, "tiny", PROMPT, 5, run(pipe), CALL, 8.0, None).to_dict()
    to_json(record)
    assert record["model"] == {"name": "tiny", "pipeline": "WanPipeline", "transformer": "WanTransformer3DModel",
                               "layers": 3, "heads": 2, "head_dim": 64}  # fmt: skip
    assert record["settings"] == {"height": 64, "width": 96, "num_frames": 17, "num_inference_steps": 4, "fps": 8.0,
                                  "guidance_scale": 3.0, "dtype": "float32", "device": "cpu"}  # fmt: skip
    assert record["layout"] == {"frames": 5, "height": 4, "width": 6, "text_before": 0, "text_after": 0}
    assert record["method"]["name"] == "radial" and record["negative_prompt"] == "blurry" and record["seed"] == 5
    assert set(record["density"]) == {"density", "video_density", "computed_density", "all_calls"}
    assert len(record["real_sizes"]) == 6 and any("counted work" in note for note in record["notes"])


def test_two_experts_and_gpu_free_seeds() -> None:
    """Both experts run sparse, and the noise depends on the seed alone."""
    pipe = tiny_wan(two_experts=True)
    seen = run(pipe, repeats=1)
    assert seen.summary.to_dict()["calls"]["sparse"] == 3 * 2 * 1
    torch.manual_seed(1234)
    assert np.array_equal(run(pipe, repeats=1).dense[0].frames, seen.dense[0].frames)
