"""`vidaccel plan --gpus`: how several GPUs share a step."""

from __future__ import annotations

import functools
import re

import pytest

from tests import commands

SMALL = ("--model", "wan2.1-t2v-14b", "--grid", "5x16x16")

run = functools.partial(commands.run, "plan")
values_of = functools.partial(commands.values_of, "plan")


def test_every_way_and_the_best() -> None:
    values = values_of("radial", "--density", 0.5, "--block", 16, "--gpus", 8, *SMALL)
    rows = values["degrees"]
    assert values["best"] == rows[0] and [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    assert all(row["guidance"] * row["ring"] * row["ulysses"] == 8 for row in rows) and len(rows) == 7
    assert all(row["speedup"] == pytest.approx(values["one_gpu_seconds"] / row["seconds"]) for row in rows)
    assert values["density"] == pytest.approx(0.5, abs=0.05) and values["tokens"] == 5 * 16 * 16
    parts = ("linear", "attention", "exchange", "ring_exchange", "gather")
    assert rows[0]["seconds"] == pytest.approx(sum(rows[0][part] for part in parts))
    assert values["machine"]["gpu"] == "h100" and values["machine"]["link"]["name"] == "nvlink4"
    assert any("600" in line or "60%" in line for line in values["assumptions"])


def test_as_text() -> None:
    result = run("draft", "--density", 0.3, "--gpus", 4, *SMALL, "--interconnect", "25", "--assume", "latency_us=0")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Wan2.1-T2V-14B 5x16x16, 1,280 tokens, draft at density 0.30, 4 x h100")
    assert lines[1].split()[:3] == ["guidance", "ring", "ulysses"]
    refused = "not guidance 1 x ring 4 x ulysses 1: in a ring: method 'draft' plans"
    assert any(line.startswith(refused) for line in lines)
    assert any(line.startswith("best: ") and "ContextParallelConfig(ulysses_degree=" in line for line in lines)
    assert any("25 GB/s of 25 GB/s a GPU" in line for line in lines) and "assumed:" in lines


def test_a_pattern_and_dense() -> None:
    band = values_of("pattern:band", "--density", 0.4, "--gpus", 2, *SMALL)
    dense = values_of("dense", "--gpus", 2, *SMALL)
    assert band["density"] == pytest.approx(0.4, abs=0.06) and dense["density"] == 1
    assert dense["best"]["seconds"] == dense["best"]["dense_seconds"]
    one = values_of("dense", "--gpus", 1, *SMALL)
    assert one["config"] is None and one["best"]["efficiency"] == 1 and one["best"]["seconds"] == one["one_gpu_seconds"]


def test_what_a_split_needs_is_said() -> None:
    both = values_of("dense", "--gpus", 8)
    assert both["best"]["guidance"] == 2 and both["config"] == "ContextParallelConfig(ulysses_degree=4, mesh=mesh)"
    values = values_of("dense", "--gpus", 3, *SMALL)
    assert values["best"]["needs"] == "ulysses_anything"
    assert values["config"] == "ContextParallelConfig(ulysses_degree=3, ulysses_anything=True)"
    ring = next(row for row in values["degrees"] if row["ring"] == 3)
    assert ring["needs"] == "ring_anything"


def test_fewer_gpus_that_are_faster_are_named() -> None:
    """By 32, 118,800 tokens divide in a ring over four nodes alone; by 24 and 30 they do better."""
    values = values_of("dense", "--model", "hunyuanvideo", "--gpus", 32)
    assert (values["best"]["ring"], values["fewer"]["gpus"]) in {(32, 24), (32, 30)}
    assert values["fewer"]["seconds"] < values["best"]["seconds"] / 2
    text = run("dense", "--model", "hunyuanvideo", "--gpus", 32).stdout
    assert f"fewer are faster: {values['fewer']['gpus']} GPUs as guidance 1" in text
    assert values_of("dense", "--model", "hunyuanvideo", "--gpus", 24)["fewer"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["radial"], "a plan needs a grid: give --grid, or --gpus and --model"),
        (["radial", "--grid", "3x3x3", "--gpu", "h100"], "--gpu says how GPUs share a step: give --gpus, too"),
        (["radial", "--grid", "3x3x3", "--assume", "linear=1"], "--assume says how"),
        (["radial", "--gpus", "2", "--heads", "4"], "--heads does not go with --gpus"),
        (["radial", "--gpus", "2", "--family", "hunyuanvideo"], "--family does not go with --gpus"),
        (["radial", "--gpus", "2", "--picture", "a.png"], "--picture does not go with --gpus"),
        (["radial", "--gpus", "2", "--model", "sora"], "unknown model 'sora'; choose wan2.1-t2v-14b"),
        (["radial", "--gpus", "2", "--gpu", "k80"], "unknown GPU 'k80'"),
        (["radial", "--gpus", "2", "--interconnect", "wire"], "interconnect 'wire'"),
        (["radial", "--gpus", "2", "--assume", "speed=2"], "a prediction has no option 'speed'; it has attention"),
        (["radial", "--gpus", "2", "--assume", "linear=2"], r"assumed linear=2(\.0)? is not a share"),
        (["nope", "--gpus", "2"], "unknown method 'nope'"),
        (["dense", "--gpus", "2", "--density", "0.5"], "dense attention has no options"),
        (["dense", "--gpus", "2", "--model", "hunyuanvideo", "--grid", "1x1x1"],
         "cannot be shared by 2 GPUs .*1 video tokens for 2 processes"),
        (["mixed", "--gpus", "2"], "does not tell its density before a run|needs"),
    ],
)
def test_bad_questions_are_one_line(words: list[str], said: str) -> None:
    result = run(*words, "--json")
    assert result.exit_code == 2 and not result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and re.search(said, lines[0])
