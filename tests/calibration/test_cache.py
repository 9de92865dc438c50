"""Calibrations of step caching on real pipelines with random weights, against numbers from hooks of the tests' own."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vidaccel
import vidaccel.calibration.cache
from tests import commands
from tests.calibration.cases import GUIDED, PROMPTS, SIZE
from tests.tiny import generate, tiny_cogvideox, tiny_hunyuanvideo, tiny_wan
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.caching.teacache import fit
from vidaccel.caching.track import rounded
from vidaccel.calibration import cache_measures as measures
from vidaccel.calibration import calibrate_cache

ALL = 10**6
"""Samples: every token."""
STEPS = GUIDED["num_inference_steps"]


def calibrated(pipe: Any, prompts: list[str] | None = None, **given: Any) -> CacheCalibration:
    call = {name: value for name, value in GUIDED.items() if name != "guidance_scale"}
    return calibrate_cache(pipe, prompts or PROMPTS[:2], **({"guidance_scale": 3.0, "samples": ALL} | call | given))


def arrays(pipe: Any, block_names: tuple[str, ...], prompt: str, seed: int, **call: Any) -> list[dict[str, Any]]:
    """Of every call of the transformer: latents, output, and what enters and leaves each block, as they are."""
    calls: list[dict[str, Any]] = []
    transformer, hooks = pipe.transformer, []

    def begun(module: Any, args: Any, kwargs: Any) -> None:
        calls.append({"latents": kwargs["hidden_states"].double().numpy(), "in": [], "out": []})

    def block(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        calls[-1]["in"].append((args[0] if args else kwargs["hidden_states"]).double().numpy())
        calls[-1]["out"].append((out if isinstance(out, Tensor) else out[0]).double().numpy())

    def ended(module: Any, args: Any, out: Any) -> None:
        calls[-1]["output"] = out[0].double().numpy()

    hooks.append(transformer.register_forward_pre_hook(begun, with_kwargs=True))
    for name in block_names:
        hooks += [each.register_forward_hook(block, with_kwargs=True) for each in getattr(transformer, name)]
    hooks.append(transformer.register_forward_hook(ended))
    pipe(prompt=prompt, generator=torch.Generator().manual_seed(seed), output_type="latent", **call)
    for hook in hooks:
        hook.remove()
    return calls


def l1(later: np.ndarray, earlier: np.ndarray, to: np.ndarray) -> float:
    return float(np.abs(later - earlier).mean() / np.abs(to).mean())


def of_run(run: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of one prompt's track by their definitions, but for `affine`; zeros where a step has none before."""
    steps = range(len(run))
    stacks = [each["out"][-1] - each["in"][0] for each in run]
    rests = [each["output"] - each["latents"] for each in run]
    outputs = [each["output"] for each in run]
    norms = [np.linalg.norm(each, axis=-1) for each in stacks]
    own = [[out - entered for entered, out in zip(each["in"], each["out"], strict=True)] for each in run]
    return {
        "ratio": [(norms[i] / norms[i - 1]).mean() if i else 1.0 for i in steps],
        "stack": [[l1(stacks[i], stacks[j], stacks[i]) for j in range(i)] for i in steps],
        "output": [[l1(rests[i], rests[j], rests[i]) for j in range(i)] for i in steps],
        "change": [l1(outputs[i], outputs[i - 1], outputs[i - 1]) if i else 0.0 for i in steps],
        "blocks": [[l1(after, own[i - 1][b], after) if i else 0.0 for b, after in enumerate(own[i])] for i in steps],
        "output_size": [np.abs(each).mean() for each in outputs],
        "residual_size": [np.abs(each).mean() for each in rests],
    }


def fits(runs: list[list[dict[str, Any]]], i: int, j: int) -> np.ndarray:
    """``(a, b)`` over all prompts."""
    held = np.concatenate([(run[i]["latents"] + run[j]["output"] - run[j]["latents"]).ravel() for run in runs])
    error = held - np.concatenate([run[i]["output"].ravel() for run in runs])
    found: np.ndarray = np.linalg.lstsq(np.stack([held, np.ones_like(held)], 1), error, rcond=None)[0]
    return found


def expected(runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The numbers of a track: means over the prompts."""
    each, steps = [of_run(run) for run in runs], range(len(runs[0]))
    means = {name: [np.mean([one[name][i] for one in each], axis=0) for i in steps] for name in each[0]}
    return means | {"affine": [[fits(runs, i, j) for j in range(i)] for i in steps]}


def assert_track(track: Any, wanted: dict[str, Any]) -> None:
    plain = track.to_dict()
    for name, rows in wanted.items():
        assert len(plain[name]) == len(rows)
        for row, right in zip(plain[name], rows, strict=True):
            assert np.allclose(row, right, rtol=2e-4, atol=1e-5), name


def test_tracks_of_wan() -> None:
    pipe = tiny_wan()
    found = calibrated(pipe)
    runs = [arrays(pipe, ("blocks",), PROMPTS[seed], seed, **GUIDED) for seed in (0, 1)]
    for place, branch in enumerate(("cond", "uncond")):
        assert_track(found.track("transformer", branch), expected([run[place::2] for run in runs]))
    times = pipe.scheduler.timesteps
    signals = [pipe.transformer.condition_embedder.time_embedder(
        pipe.transformer.condition_embedder.timesteps_proj(time[None])).detach().double().numpy()
        for time in times]  # fmt: skip
    distances = [l1(b, a, a) for a, b in zip(signals, signals[1:], strict=False)]
    assert found.track("transformer", "cond").time_distance == pytest.approx([0, *distances], rel=1e-3)
    assert list(found.tracks["transformer"]) == ["cond", "uncond"]
    assert (found.steps, found.scheduler, found.shift, found.guidance) == (4, type(pipe.scheduler).__name__, 3.0, 3.0)
    assert found.timesteps == pytest.approx(times.tolist()) and found.attention == "dense"
    assert found.prompts["count"] == 2 and set(found.versions) == {"vidaccel", "torch", "diffusers"}
    found.check({"transformer": vidaccel.api.facts(pipe.transformer)}, 4, found.scheduler, 3.0, 3.0)


def test_tracks_of_cogvideox_are_of_the_conditional_half() -> None:
    pipe = tiny_cogvideox()
    call = {name: value for name, value in GUIDED.items() if name != "max_sequence_length"}
    found = calibrate_cache(pipe, PROMPTS[:1], samples=ALL, **call)
    [run] = [arrays(pipe, ("transformer_blocks",), PROMPTS[0], 0, **call)]
    halves = [{name: [each[1:] for each in item] if isinstance(item, list) else item[1:]
               for name, item in each.items()} for each in run]  # fmt: skip
    assert run[0]["output"].shape[0] == 2 and list(found.tracks["transformer"]) == ["cond_uncond"]
    assert_track(found.track("transformer", "cond_uncond"), expected([halves]))
    # Without guidance there is one half only.
    alone = calibrate_cache(pipe, PROMPTS[:1], samples=ALL, **call | {"guidance_scale": 1.0})
    [run] = [arrays(pipe, ("transformer_blocks",), PROMPTS[0], 0, **call | {"guidance_scale": 1.0})]
    assert run[0]["output"].shape[0] == 1 and alone.guidance == 1.0
    assert_track(alone.track("transformer", "cond_uncond"), expected([run]))


def test_tracks_of_hunyuanvideo() -> None:
    pipe = tiny_hunyuanvideo()
    call = SIZE | {"prompt_template": {"template": "{}", "crop_start": 0}}
    found = calibrate_cache(pipe, PROMPTS[:1], samples=ALL, **call)
    run = arrays(pipe, ("transformer_blocks", "single_transformer_blocks"), PROMPTS[0], 0, **call)
    track = found.track("transformer", "cond")
    assert_track(track, expected([run]))
    # Of modulated inputs, which are of the prompt's latents, too.
    assert track.time_distance is not None and all(0 < each < 1 for each in track.time_distance[1:])


def test_each_expert_has_tracks() -> None:
    pipe = tiny_wan(two_experts=True)
    found = calibrated(pipe, num_inference_steps=6)
    covered = [found.covered(expert) for expert in ("transformer", "transformer_2")]
    assert covered[0].start == 0 and covered[0].stop == covered[1].start and covered[1].stop == 6
    assert all(len(each) > 1 for each in covered)
    with pytest.raises(ValueError, match="transformer_2 ran no step"):
        calibrated(pipe, num_inference_steps=1)


def test_samples_are_close_to_all_tokens() -> None:
    pipe = tiny_wan()
    whole, part = calibrated(pipe), calibrated(pipe, samples=60)
    one, other = whole.track("transformer", "cond"), part.track("transformer", "cond")
    assert one != other and (one.output, one.affine, one.change) == (other.output, other.affine, other.change)
    assert other.ratio == pytest.approx(one.ratio, rel=0.05)
    assert other.stack[3] == pytest.approx(one.stack[3], rel=0.2)


def test_generations_and_random_state_stay_as_they_are() -> None:
    pipe = tiny_wan()
    session = pipe.enable_sparse_attention("random", density=0.5, block=16, min_tokens=0)
    before, state = generate(pipe), torch.get_rng_state()
    hooks = [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in pipe.transformer.modules()]
    first = calibrated(pipe)
    assert torch.equal(torch.get_rng_state(), state)
    assert hooks == [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in pipe.transformer.modules()]
    assert pipe.transformer._vidaccel_session is session and np.array_equal(generate(pipe), before)
    vidaccel.disable(pipe)
    assert calibrated(pipe) == first, "what was enabled counted"


def test_under_sparse_attention() -> None:
    pipe = tiny_wan()
    dense = calibrated(pipe)
    with pytest.raises(ValueError, match="with the sparse attention that is enabled, and none is"):
        calibrated(pipe, sparse=True)
    setting = {"density": 0.3, "block": 16, "min_tokens": 0}
    pipe.enable_sparse_attention("random", **setting)
    sparse = calibrated(pipe, sparse=True)
    assert len(sparse.attention) == 64 and sparse.tracks != dense.tracks
    # Each is for runs like its own, and refused before the first forward of others.
    cache = {"name": "static", "computed_steps": 3, "min_steps": 1}
    pipe.enable_sparse_attention("random", **setting, cache=cache | {"file": sparse})
    generate(pipe)
    pipe.enable_sparse_attention("random", **setting | {"density": 0.4}, cache=cache | {"file": sparse})
    with pytest.raises(ValueError, match="was made with sparse attention"):
        generate(pipe)
    pipe.enable_sparse_attention("random", **setting, cache=cache | {"file": dense})
    with pytest.raises(ValueError, match="was made with dense attention"):
        generate(pipe)
    pipe.enable_sparse_attention(None, cache=cache | {"file": dense})
    with pytest.raises(ValueError, match="is for runs of"):
        generate(pipe, num_inference_steps=7)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=9.0)
    with pytest.raises(ValueError, match="was made with a shift of"):
        generate(pipe)
    with pytest.raises(ValueError, match="is not for this transformer"):
        tiny_wan(layers=3).enable_sparse_attention(None, cache=cache | {"file": dense})
    # The first step is dense in both.
    assert sparse.tracks["transformer"]["cond"].output_size[0] == dense.tracks["transformer"]["cond"].output_size[0]


def test_distances_and_changes_fit_a_polynomial() -> None:
    track = calibrated(tiny_wan(), num_inference_steps=9).track("transformer", "cond")
    assert track.time_distance is not None
    coefficients = fit(track.time_distance[1:], track.change[1:])
    assert np.polyval(coefficients, track.time_distance[1:]) == pytest.approx(track.change[1:], abs=0.2)


@pytest.mark.parametrize("at", [1, 5, 7, 14, 18])
def test_stopped_and_begun_again(tmp_path: Path, at: int) -> None:
    """Killed at any step, probes' too, it goes on behind the last finished generation and comes to the same file."""
    whole, steps = calibrated(tiny_wan(), PROMPTS[:3], out=tmp_path / "whole.json"), []

    def stop(what: str, done: int, total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    pipe = tiny_wan()
    with pytest.raises(KeyboardInterrupt):
        calibrated(pipe, PROMPTS[:3], work=tmp_path / "work", progress=stop)
    assert len(list((tmp_path / "work").glob("prompt-*"))) == (at - 1) // STEPS
    again = calibrated(pipe, PROMPTS[:3], work=tmp_path / "work", out=tmp_path / "again.json",
                       progress=lambda what, done, total: steps.append((done, total)))  # fmt: skip
    assert again == whole and (tmp_path / "again.json").read_text() == (tmp_path / "whole.json").read_text()
    assert steps[0] == (4 if at > 4 else 1, 20) and steps[-1] == (20, 20)
    for changed in ({"seed": 1}, {"samples": 7}, {"guidance_scale": 4.0}, {"num_inference_steps": 5}):
        with pytest.raises(ValueError, match="holds a calibration with other settings"):
            calibrated(pipe, PROMPTS[:3], work=tmp_path / "work", **changed)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompts": "one"}, "not one text"), ({"prompts": []}, "needs prompts"), ({"prompts": ["a", " "]}, "none empty"),
    ({"samples": 0}, "samples=0"), ({"seed": -1}, "seed=-1"), ({"seed": 1.5}, "seed=1.5"),
    ({"nothing": 3}, "takes no nothing"), ({"generator": None}, "sets generator itself"),
    ({"num_inference_steps": 251}, "1 to 250"), ({"num_inference_steps": 2.5}, "1 to 250"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "told"), BAD, ids=[told for _, told in BAD])
def test_bad_arguments_before_anything_runs(changed: dict[str, Any], told: str) -> None:
    pipe = tiny_wan()
    pipe.transformer.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=told):
        calibrate_cache(pipe, **({"prompts": PROMPTS[:1]} | GUIDED | changed))


def test_calls_that_are_not_one_for_each_step_and_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_wan()
    with monkeypatch.context() as patched:
        patched.setattr(type(vidaccel.pipelines.family_of(pipe.transformer)), "branches", ("cond",))
        with pytest.raises(ValueError, match="called the model 2 times in a step; a calibration knows cond"):
            calibrated(pipe)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in pipe.transformer.modules())
    true = pipe.scheduler.set_timesteps

    def repeats(*args: Any, **kwargs: Any) -> None:
        true(*args, **kwargs)
        pipe.scheduler.timesteps = torch.cat([pipe.scheduler.timesteps[:2], pipe.scheduler.timesteps[:1]])

    monkeypatch.setattr(pipe.scheduler, "set_timesteps", repeats)
    with pytest.raises(ValueError, match="ran twice in one generation"):
        calibrated(pipe)


def test_a_cache_hides_steps_from_a_calibration() -> None:
    pipe = tiny_wan()
    vidaccel.enable(pipe, None, cache={"name": "static", "compute": [0, 2, 3], "min_steps": 1})
    with pytest.raises(ValueError, match="a cache is enabled on the pipeline"):
        calibrated(pipe, sparse=True)
    assert calibrated(pipe) == calibrated(tiny_wan())


def test_measures_at_their_edges() -> None:
    zeros, ones = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    assert measures.relative(zeros, zeros, zeros) == 0 and measures.relative(ones, zeros, zeros) == 1e12
    assert measures.norm_ratio(ones, zeros) == 1.0
    assert measures.norm_ratio(2 * ones, torch.cat([zeros[:, :1], ones[:, :2]], 1)) == pytest.approx(2.0)
    assert measures.line(measures.moments(ones, 3 * ones)) == (0.0, 3.0)
    assert measures.line([0.0] * 5) == (0.0, 0.0)
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    # What adds up over parts is the fit of the whole.
    parts = [measures.moments(each, 0.25 * each - 1.5) for each in (x[:20], x[20:])]
    assert measures.line(np.sum(parts, 0).tolist()) == pytest.approx((0.25, -1.5))
    assert rounded(0.123456789) == 0.12346 and rounded(-1234567.0) == -1234600.0


WORDS = ["--frames", "17", "--height", "64", "--width", "96", "--steps", "4", "--guidance", "3", "--device", "cpu"]

run = functools.partial(commands.run, "calibrate-cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "wan"
    tiny_wan().save_pretrained(path)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("# two\n" + "\n".join(PROMPTS[:2]) + "\n")
    return path


def test_command(model: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache.json"
    result = run("--model", model, "--prompts", prompts, "--out", out, *WORDS)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{out}: 4 steps, 2 prompts, ") and "transformer uncond: 0." in result.stdout
    assert "measuring prompt 2" in result.stderr
    made = CacheCalibration.load(out)
    assert made.steps == 4 and sorted(each.name for each in tmp_path.iterdir()) == ["cache.json", "prompts.txt"]
    found = json.loads(run("--model", model, "--prompts", prompts, "--out", out, *WORDS, "--json").stdout)
    assert found["kind"] == "cache calibration" and found["sha256"] == made.digest and found["guidance"] == 3.0
    assert found["next_change"]["transformer"]["cond"] == [row[-1] for row in
                                                           made.track("transformer", "cond").stack[1:]]  # fmt: skip


def test_command_under_sparse_attention(model: Path, prompts: Path, tmp_path: Path) -> None:
    """For runs with the same options, of the command line or of `enable`."""
    out = tmp_path / "cache.json"
    words = ["--method", "random", "--density", "0.5", "--set", "block=16", "--schedule", "dense_first_steps=1"]
    result = run("--model", model, "--prompts", prompts, "--out", out, *WORDS, *words)
    assert result.exit_code == 0, result.output
    pipe = tiny_wan()
    session = pipe.enable_sparse_attention("random", density=0.5, block=16, schedule={"dense_first_steps": 1})
    assert CacheCalibration.load(out).attention == session.setting.attention != "dense"
    refused = run("--model", model, "--prompts", prompts, "--out", out, *WORDS, "--density", "0.5")
    assert refused.exit_code and "method 'dense' takes no --density" in refused.stderr


def test_command_stopped_and_begun_again(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, measured = tmp_path / "cache.json", []
    words = ["--model", model, "--prompts", prompts, "--out", out, *WORDS]
    true = vidaccel.calibration.cache.Runs._measured

    def stops(self: Any, index: int, progress: Any) -> Any:
        measured.append(index)
        if index == 1:
            raise KeyboardInterrupt
        return true(self, index, progress)

    monkeypatch.setattr(vidaccel.calibration.cache.Runs, "_measured", stops)
    result = run(*words)
    assert result.exit_code == 130 and "goes on from there" in result.stderr and not out.exists()

    def goes_on(self: Any, index: int, progress: Any) -> Any:
        measured.append(index)
        return true(self, index, progress)

    monkeypatch.setattr(vidaccel.calibration.cache.Runs, "_measured", goes_on)
    assert run(*words).exit_code == 0
    assert measured == [0, 1, 1] and sorted(each.name for each in tmp_path.iterdir()) == ["cache.json", "prompts.txt"]


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--out", "a.txt"], "does not end in .json"), (["--prompts", "none.txt"], "none.txt"),
     (["--samples", "0"], "samples=0"), (["--device", "cray"], "cray"), (["--dtype", "int8"], "int8"),
     (["--model", "none"], "none")],
)  # fmt: skip
def test_command_refuses_before_it_loads(
    words: list[str], told: str, model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidaccel.cli.loading.Model.load", lambda *_: pytest.fail("it was loaded"))
    given: dict[str, Any] = {"--model": model, "--prompts": prompts, "--out": tmp_path / "a.json"}
    given |= dict(zip(words[::2], words[1::2], strict=True))
    result = run(*[word for pair in given.items() for word in pair], *WORDS[:-2])
    assert result.exit_code == 2 and result.stdout == "" and told in result.stderr.splitlines()[-1]
    assert [each.name for each in tmp_path.iterdir()] == ["prompts.txt"]
