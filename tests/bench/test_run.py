"""The whole run: its order, its end in time, its lines, its exit code."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from vidaccel.bench import budget, costs, measure, models, run, shapes, steps, tuning
from vidaccel.bench.attention import Board
from vidaccel.bench.budget import Budget, Task
from vidaccel.cli.bench import bench
from vidaccel.costs import CostModel
from vidaccel.report.performance import read_lines

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu" / "all.py"


def setting(**values) -> run.Setting:
    given = {"device": torch.device("cpu"), "dtype": torch.float32, "smoke": True, "densities": (0.3,),
             "options": run.SMOKE_OPTIONS, "minutes": None}  # fmt: skip
    return run.Setting(**{**given, **values})


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks are not part of the source distribution")
def test_the_script_runs_end_to_end(tmp_path):
    """What runs on a GPU, at tiny shapes: every part has its lines, each with its provenance, and none is red."""
    out = tmp_path / "kernels.jsonl"
    start = time.monotonic()
    done = subprocess.run([sys.executable, str(SCRIPT), "--smoke", "--out", str(out)], cwd=tmp_path,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = read_lines(out)
    assert time.monotonic() - start < 240
    cases = {line["case"] for line in lines}
    assert cases == {"attention", "costs", "model", "planning"}
    assert {line.get("model") for line in lines if line["case"] == "model"} == {each.name for each in models.SMOKE}
    assert not [line for line in lines if {"red", "failed", "skipped"} & set(line)]
    for line in lines:
        assert line["benchmark"] == "kernels" and line["smoke"] and line["seed"] == 0
        assert {"created", "git", "device", "versions"} <= set(line) and line["versions"]["torch"]
    attention = [line for line in lines if line["case"] == "attention"]
    assert all(line["error"] <= line["tolerance"] for line in attention)
    assert all(line["p20_ms"] <= line["p50_ms"] <= line["p80_ms"] for line in attention)
    assert "Smoke test" in done.stdout and "#### Whole transformers" in done.stdout


def test_order_is_that_of_importance():
    tasks = sorted(run.tasks(run.Setting(torch.device("cuda"), torch.bfloat16)), key=lambda task: task.rank)
    place = {task.name: at for at, task in enumerate(tasks)}
    assert len(place) == 5 * (1 + 3 * 6 + 1) + 3 + 1
    assert place["wan-14b-720p random 0.2"] < place["model wan-14b-720p"] < place["wan-1.3b-480p dense"]
    assert place["cogvideox1.5-5b clustered 1"] < place["wan-14b-720p banded 0.5"]
    # A shape's dense time is the yardstick of all its others.
    for shape in shapes.SHAPES:
        assert min(at for name, at in place.items() if shape.name in name) == place[f"{shape.name} dense"]


def test_budget_ends_and_says_what_was_left_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])

    def lines(name, seconds):
        def make():
            for number in range(3):
                now[0] += seconds
                yield {"line": f"{name} {number}"}

        return make

    tasks = [
        Task("last", 3, lines("last", 1)), Task("first", 1, lines("first", 10)),
        Task("long", 2, lines("long", 20), 40), Task("second", 2, lines("second", 9)),
    ]  # fmt: skip
    left: list[str] = []
    done = [line["line"] for line in Budget(50 / 60).run(tasks, left)]
    assert done == ["first 0", "first 1", "first 2", "second 0", "second 1", "second 2"]
    assert left == ["long", "second, whatever comes after its 3", "last"]


def test_lines_are_written_as_they_come(tmp_path):
    out, seen = tmp_path / "new" / "lines.jsonl", []

    def say(text):
        seen.append((text, len(out.read_text().splitlines())))

    outcome = run.run(setting(parts=("attention",), shape=("smoke-64",), kinds=("banded",)), out, say)
    assert [count for _, count in seen] == list(range(1, len(outcome.lines) + 1)) and not outcome.wrong
    assert [json.loads(text) for text in out.read_text().splitlines()] == outcome.lines


def test_a_wrong_kernel_is_found_and_the_exit_code_is_one(tmp_path, monkeypatch):
    from vidaccel import kernels

    right = kernels.backend("cpu").attention

    def wrong(*args, **kwargs):
        out, lse = right(*args, **kwargs)
        return out * 1.05, lse

    monkeypatch.setattr(kernels.backend("cpu"), "attention", wrong)
    arguments = ["--part", "attention", "--shape", "smoke-64", "--kind", "random", "--density", "0.3"]
    result = CliRunner().invoke(bench, ["kernels", "--smoke", *arguments, "--out", str(tmp_path / "lines.jsonl")])
    assert result.exit_code == 1
    ours = next(line for line in read_lines(tmp_path / "lines.jsonl") if line["implementation"] == "vidaccel")
    assert "error 0.05" in ours["red"] and "p50_ms" not in ours
    assert "| smoke-64 random | vidaccel | red |" in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(tmp_path):
    result = CliRunner().invoke(bench, ["kernels", "--out", str(tmp_path / "lines.jsonl")])
    assert result.exit_code == 2 and "--smoke" in result.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("values, problem", [
    ({"shape": ("wan",)}, "unknown shape 'wan'"), ({"model": ("wan",)}, "unknown model 'wan'"),
    ({"parts": ("kernels",)}, "choose attention, models, planning, costs, tuning"), ({"kinds": ("band",)}, "banded"),
    ({"densities": (0.0,)}, "density 0.0"), ({"minutes": 0.0}, "minutes 0.0"),
])  # fmt: skip
def test_refuses(values, problem):
    with pytest.raises(ValueError, match=problem):
        setting(**values)


def test_costs_have_one_line_with_coefficients_that_make_a_model():
    (task,) = run.tasks(setting(parts=("costs",)))
    (line,) = task.lines()
    assert CostModel.of(line["coefficients"]).head_dim == line["head_dim"] == 64
    assert 0 <= line["median_error"] <= line["largest_error"] and "misses by" in run.described(line)


def test_costs_that_cannot_be_measured_are_a_failure_of_ours(monkeypatch):
    monkeypatch.setattr(costs, "SMOKE", ((2, 64, 16, 100),))
    (task,) = run.tasks(setting(parts=("costs",)))
    (line,) = task.lines()
    assert line["failed"].startswith("ValueError: tokens=100") and line["ours"] and run.described(line)


def test_tuning_says_that_it_needs_a_gpu():
    (line,) = [line for task in run.tasks(setting(parts=("tuning",), shape=("smoke-64",))) for line in task.lines()]
    assert "cpu" in line["skipped"] and run.described(line)


def test_a_sweep_marks_the_fastest_that_is_right(monkeypatch):
    from vidaccel import kernels

    def make(seconds, factor):
        def kernel(plan, query):
            def run(*inputs):
                time.sleep(seconds)
                return kernels.attention(*inputs, plan, backend_name="cpu")[0] * factor

            return run

        return kernel

    board, candidates = Board(torch.device("cpu"), torch.float32, 0), {
        "slow": make(0.03, 1), "wrong": make(0, 1.1), "quick": make(0.005, 1),
    }  # fmt: skip
    *each, best = tuning.sweep(board, shapes.SMOKE[1], 64, candidates)
    assert [line["row"] for line in each] == ["slow", "wrong", "quick"] and "red" in each[1]
    assert best["row"] == "quick" and best["fastest_of"] == 2


def test_real_models_have_the_published_sizes():
    found = {}
    for model in models.MODELS:
        assert model.why_not() is None
        found[model.name] = sum(each.numel() for each in model.build(torch.device("meta"), torch.bfloat16).parameters())
    assert {name: round(count / 1e9, 1) for name, count in found.items()} == {
        "wan-14b-720p": 14.3, "wan-1.3b-480p": 1.4, "hunyuanvideo-720p": 12.8,
    }  # fmt: skip
    assert [model.layout.tokens for model in models.MODELS] == [75_600, 32_760, 118_800]


def test_models_are_made_in_their_type_and_the_default_comes_back():
    before = torch.get_default_dtype()
    wan = models.SMOKE[0].build(torch.device("cpu"), torch.bfloat16)
    kinds = {name: each.dtype for name, each in wan.named_parameters()}
    assert kinds["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert kinds["blocks.0.scale_shift_table"] == torch.float32
    assert torch.get_default_dtype() == before and not any(each.requires_grad for each in wan.parameters())


def test_a_model_without_a_family_is_skipped_with_its_reason(monkeypatch):
    import dataclasses

    strange = dataclasses.replace(models.SMOKE[0], transformer="LatteTransformer3DModel")
    (line,) = steps.lines(strange, "radial", {}, torch.device("cpu"), torch.float32, 0, 1)
    assert line["skipped"] == "vidaccel has no sparse attention for LatteTransformer3DModel yet"
    nowhere = dataclasses.replace(strange, transformer="NoSuchTransformer")
    assert "has no NoSuchTransformer" in str(nowhere.why_not())


def test_a_models_line(monkeypatch):
    (line,) = steps.lines(models.SMOKE[0], "radial", run.SMOKE_OPTIONS, torch.device("cpu"), torch.float32, 0, 2)
    assert line["label"] == "random weights: speed only" and line["layers"] == 2 and line["tokens"] == 594
    assert len(line["dense_s"]) == len(line["sparse_s"]) == 2 and line["backend"] == "cpu"
    assert line["density"] == pytest.approx(0.5, abs=0.02), "no layer and no step is dense"
    assert 0 < line["attention_share"] < 1
    assert line["predicted_limit"] == pytest.approx(1 / (1 - line["attention_share"] * (1 - line["density"])))
    # Blocks are inside the pass, attention inside the blocks.
    assert 2 * line["attention_ms"] < 1e3 * max(line["dense_s"]) and line["dense_block_ms"] < 1e3 * max(line["dense_s"])


def test_a_sparse_pass_that_is_not_finite_is_red(monkeypatch):
    from vidaccel import kernels

    right = kernels.backend("cpu").attention

    def wrong(*args, **kwargs):
        out, lse = right(*args, **kwargs)
        return out * float("nan"), lse

    monkeypatch.setattr(kernels.backend("cpu"), "attention", wrong)
    (line,) = steps.lines(models.SMOKE[0], "radial", run.SMOKE_OPTIONS, torch.device("cpu"), torch.float32, 0, 1)
    assert "red" in line and "speedup" not in line


def test_spans_are_the_parts_of_a_run():
    spans = measure.Spans(torch.device("cpu"))
    slow = spans.around(lambda seconds: time.sleep(seconds))
    for seconds in (0.02, 0.01, 0.03):
        slow(seconds)
    times = spans.milliseconds()
    assert len(times) == 3 and all(took >= due for took, due in zip(times, (20, 10, 30), strict=True))
    assert spans.median() == sorted(times)[1]
    assert measure.Spans(torch.device("cpu")).median() is None


def test_percentiles_take_the_inputs_in_turns():
    seen = []
    inputs = [(torch.zeros(1),), (torch.ones(1),)]
    found = measure.percentiles(lambda each: seen.append(int(each)), inputs)
    assert seen == [0, 1, 0, 1, 0, 1] and list(found) == list(measure.FIELDS)
    assert sorted(found.values()) == list(found.values())


@pytest.mark.gpu
def test_tuning_on_a_gpu():
    lines = list(tuning.lines(Board(torch.device("cuda"), torch.float16, 0), shapes.SMOKE[1]))
    assert lines[-1]["fastest_of"] > 1 and not [line for line in lines if "red" in line]
