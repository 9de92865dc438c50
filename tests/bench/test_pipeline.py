"""`vidaccel bench model`: times in turns, attention's share, the limit, a record; the pipeline ends as it was."""

import json

import pytest
import torch
from typer.testing import CliRunner

import vidaccel
from tests.tiny import generate, tiny_wan
from vidaccel.bench import pipeline
from vidaccel.bench.measure import Spans
from vidaccel.bench.share import attention_timed, blocks_timed, limit
from vidaccel.cli.bench import bench
from vidaccel.session import ATTRIBUTE

PROMPT = "a red circle moves left"
CALL = {"num_frames": 17, "height": 64, "width": 96, "num_inference_steps": 4, "guidance_scale": 3.0,
        "negative_prompt": "blurry", "max_sequence_length": 16}  # fmt: skip
RADIAL = {"method": "radial", "block": 16, "split": 16, "min_tokens": 0}
SIZE = ["--frames", "17", "--height", "64", "--width", "96", "--steps", "4", "--repeats", "1", "--device", "cpu"]


def measured(pipe, **values):
    given = {"seed": 0, "repeats": 2, "enable_kwargs": RADIAL, "call": CALL, "fps": 8.0, **values}
    return pipeline.measure(pipe, "tiny", PROMPT, **given)


def test_limit_is_amdahls():
    assert limit(0.0, 0.1) == 1 and limit(0.5, 1.0) == 1
    assert limit(0.8, 0.25) == pytest.approx(2.5) and limit(0.75, 0.0) == 4


def test_record_and_prediction():
    seen = []
    record = measured(tiny_wan(layers=3), progress=lambda *step: seen.append(step)).to_dict()
    timing, found = record["timing"], record["prediction"]
    assert len(timing["dense"]) == len(timing["fast"]) == 2 and timing["denoising"]["speedup"] > 0
    # 4 steps of 2 passes on 3 layers: the first step and the first layer are dense.
    assert record["calls"] == {"sparse": 12, "dense": 12} and record["density"]["all_calls"] < 1
    assert found["density_all_calls"] == record["density"]["all_calls"]
    for part in (found["generation"], found["denoising"]):
        share = part["attention_share"]
        assert 0 < share < 1 and part["speedup"] == pytest.approx(limit(share, found["density_all_calls"]))
        assert 1 < part["speedup"] < part["free_attention"] == pytest.approx(1 / (1 - share))
    assert found["generation"]["attention_share"] < found["denoising"]["attention_share"]
    assert record["kind"] == "bench" and record["versions"]["torch"] and record["device"]["threads"]
    assert seen[-1] == ("attention", 4, 4)


@pytest.mark.parametrize("enabled", [False, True])
def test_the_pipeline_ends_as_it_was(enabled):
    pipe = tiny_wan()
    session = vidaccel.enable(pipe, **RADIAL) if enabled else None
    before = generate(pipe, prompt=PROMPT)
    processors = [block.attn1.processor for block in pipe.transformer.blocks]
    measured(pipe, repeats=1)
    assert pipe.transformer.__dict__.get(ATTRIBUTE) is session
    after = [block.attn1.processor for block in pipe.transformer.blocks]
    assert enabled or all(new is old for new, old in zip(after, processors, strict=True))
    assert not any("dense" in vars(each) for each in after), "our timers are gone"
    assert (generate(pipe, prompt=PROMPT) == before).all()


def test_timed_attention_is_every_call_and_changes_nothing():
    pipe, spans = tiny_wan(layers=3), Spans(torch.device("cpu"))
    stock = generate(pipe, prompt=PROMPT, num_inference_steps=2)
    with attention_timed(pipe, spans):
        timed = generate(pipe, prompt=PROMPT, num_inference_steps=2)
    assert (timed == stock).all() and len(spans.milliseconds()) == 2 * 2 * 3
    assert ATTRIBUTE not in pipe.transformer.__dict__


def test_timed_blocks_are_those_around_attention():
    pipe, spans = tiny_wan(layers=3), Spans(torch.device("cpu"))
    with blocks_timed(pipe.transformer, spans):
        generate(pipe, prompt=PROMPT, num_inference_steps=1)
    assert len(spans.milliseconds()) == 2 * 3
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in pipe.transformer.blocks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    tiny_wan().save_pretrained(path)
    return str(path)


def test_command_writes_a_record(folder, tmp_path):
    out = tmp_path / "records" / "mine.json"
    options = ["--set", "block=16", "--set", "split=16", "--prompt", PROMPT, "--out", str(out)]
    result = CliRunner().invoke(bench, ["model", "--model", folder, *SIZE, *options])
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert record["model"]["name"] == folder and record["settings"]["num_inference_steps"] == 4
    # Without a miniature's settings min_tokens counts, and so few tokens stay dense: said, not hidden.
    assert record["calls"]["sparse"] == 0 and "stay dense" in result.stdout
    assert "attention is" in result.stdout and "limits this setting to 1.00x" in result.stdout


def test_command_prints_json(folder):
    options = ["--set", "block=16", "--set", "split=16", "--schedule", "dense_first_steps=1", "--json"]
    result = CliRunner().invoke(bench, ["model", "--model", folder, *SIZE, *options])
    record = json.loads(result.stdout)
    assert record["schedule"]["dense_first_steps"] == 1 and record["prompt"].startswith("A red fox")


@pytest.mark.parametrize("options, problem", [
    (["--method", "nothing"], "unknown method 'nothing'"), (["--density", "2"], "density 2"),
    (["--set", "colour=red"], "no option 'colour'"), (["--schedule", "x=1"], "no option 'x'"),
    (["--device", "cuda:9"], "device 'cuda:9'"), (["--dtype", "fp8"], "fp32, bf16, fp16"),
])  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(folder, tmp_path, options, problem):
    out = tmp_path / "new" / "record.json"
    result = CliRunner().invoke(bench, ["model", "--model", folder, *options, "--out", str(out)])
    assert result.exit_code == 2 and result.stderr.splitlines()[-1].startswith("error: ") and problem in result.stderr
    assert not out.parent.exists()


def test_limit_of_a_cache():
    """A step that is passed by takes nothing, and what is not a step is as long as ever."""
    assert limit(0.5, 1.0, 0.5) == pytest.approx(2) and limit(0.5, 0.0, 0.5) == pytest.approx(4)
    assert limit(0.4, 0.5, 0.5, 0.8) == pytest.approx(1 / (0.2 + 0.5 * (0.8 - 0.2)))


@pytest.mark.parametrize("method", ["radial", None])
def test_a_cache_is_part_of_the_prediction(method):
    given = RADIAL if method else {"method": None}
    cache = {"name": "static", "compute": [0, 1, 2], "predictor": "hold", "min_steps": 1}
    found = measured(tiny_wan(layers=3), repeats=1, enable_kwargs={**given, "cache": cache}).to_dict()
    assert found["prediction"]["computed_share"] == 0.75 == found["cached"]["blocks_share"]
    density = found["prediction"]["density_all_calls"]
    # The first step of four and the first of three layers are dense; of the others' calls two steps ran.
    assert density == 1.0 if method is None else found["density"]["all_calls"] < density < 1
    part = found["prediction"]["denoising"]
    assert part["speedup"] == pytest.approx(limit(part["attention_share"], density, 0.75))


def test_the_command_takes_a_cache():
    words = ["model", "--model", "miniature:wan", *SIZE, "--cache", "static", "--cache-set", "compute=[0,2]",
             "--cache-set", "min_steps=1", "--method", "dense", "--json"]  # fmt: skip
    result = CliRunner().invoke(bench, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["cached"]["computed_steps"] == [0, 2] and found["prediction"]["computed_share"] == 0.5
    for more in ([], ["--cache", "rehash", "--density", "0.5"]):
        result = CliRunner().invoke(bench, ["model", "--model", "miniature:wan", *SIZE, "--method", "dense", *more])
        assert result.exit_code != 0 and "needs a --cache" in f"{result.output}{result.exception}"
