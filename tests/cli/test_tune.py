"""``vidaccel tune``: from the command line to a profile, and what it refuses."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests import commands
from tests.launched import ended, launched
from tests.tiny import tiny_wan
from tests.tune.cases import steady
from vidaccel.profile import Profile
from vidaccel.tune import ready

pytest.importorskip("optuna")
PROMPTS = ["a red circle moves left", "a blue square moves right", "a red square", "a blue circle"]
SIZE = ["--frames", 17, "--height", 64, "--width", 96, "--steps", 6, "--guidance", 1.0]

run = functools.partial(commands.run, "tune")
refused = functools.partial(commands.refused, "tune")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "wan"
    tiny_wan().save_pretrained(path)
    return path


@pytest.fixture
def words(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A tuning of few candidates and one method; its budget is never spent."""
    steady(monkeypatch)
    monkeypatch.setattr(ready, "methods", lambda heads, block: iter([("radial", {"block": 16})]))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return ["--model", folder, "--prompts", tmp_path / "prompts.txt", *SIZE, "--budget", "200h", "--trials", 3,
            "--out", tmp_path / "tuned.json"]  # fmt: skip


def test_it_writes_a_profile_that_loads(words: list[Any], tmp_path: Path) -> None:
    result = run(*words, "--target", "speedup>=0.01", "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["kind"] == "tuned" and values["met"] and values["trials"] == 3
    profile = Profile.load(tmp_path / "tuned.json")
    assert [each.to_dict() for each in profile.points] == values["points"]
    assert profile.aim is not None and profile.aim.to_dict() == values["chosen"]
    assert values["chosen"]["evidence"]["call"]["num_inference_steps"] == 6
    shown = result.stderr.splitlines()
    assert any(re.fullmatch(r"\d+:\d\d left: loading", line) for line in shown)
    assert any("left: pace of radial" in line for line in shown) and any("left: measuring: " in line for line in shown)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.txt", "tuned.json"], "the work is tidied up"


def test_out_of_reach_ends_with_1_and_what_there_is(words: list[Any], tmp_path: Path) -> None:
    result = run(*words, "--target", "speedup>=500")
    assert result.exit_code == 1, result.output
    assert "speedup>=500 is not met by anything that was found; the settings marked * come nearest" in result.stdout
    assert "means and 95 % intervals over 2 prompts; 3 candidates" in result.stdout and "*" in result.stdout
    assert Profile.load(tmp_path / "tuned.json").points
    # With another target it goes on from there, and searches nothing again.
    again = run(*words, "--target", "speedup>=0.01")
    assert again.exit_code == 0 and "searching" not in again.stderr
    assert not [line for line in again.stderr.splitlines() if re.search(r"left: \d+ candidates", line)]
    assert not (tmp_path / "tuned.json.work").exists()


def test_ctrl_c_writes_nothing_and_says_how_to_go_on(
    words: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vidaccel.tune.search.Search.run", interrupt)
        result = run(*words)
    assert result.exit_code == 130 and "the same command goes on from there" in result.stderr
    assert not (tmp_path / "tuned.json").exists() and (tmp_path / "tuned.json.work" / "journal.jsonl").exists()
    assert run(*words, "--target", "speedup>=0.01").exit_code == 0


@pytest.mark.parametrize(
    "more, said",
    [
        (["--target", "psnr"], "target 'psnr' is not METRIC>=NUMBER"),
        (["--target", "vmaf>=3"], "names 'vmaf'"),
        (["--budget", "soon"], "budget 'soon' is not a time such as 90s, 30m or 1.5h"),
        (["--out", "tuned.yaml"], "does not end in .json"),
        (["--prompts", "absent.txt"], "prompts file 'absent.txt' cannot be read"),
        (["--model", "owner"], "neither a pipeline's folder"),
        (["--heads", "absent.json"], "no profile at absent.json"),
        (["--cache-file", "absent.json"], "no cache calibration at absent.json"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--dtype", "fp64"], "dtype 'fp64' is not one of"),
    ],
)
def test_bad_input_leaves_nothing(words: list[Any], tmp_path: Path, more: list[str], said: str) -> None:
    assert said in refused(*words, *more)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_one_prompt_is_too_few(words: list[Any], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle")
    assert "a tuning needs 2 prompts or more" in refused(*words)
    assert not (tmp_path / "tuned.json.work").exists()


def test_without_optuna_it_says_what_to_install(words: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "optuna" else find(name, *more))
    assert "pip install 'vidaccel[tune]'" in refused(*words)


@pytest.mark.slow
def test_two_processes_write_one_profile(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    given = ["--model", folder, "--prompts", tmp_path / "prompts.txt", *SIZE, "--budget", "200h", "--trials", 2,
             "--target", "speedup>=0.01", "--out", tmp_path / "tuned.json", "--device", "cpu", "--json"]  # fmt: skip
    code, stdout, stderr = ended(launched("tune", *given))
    assert code == 0, stderr
    values = json.loads(stdout)
    assert values["kind"] == "tuned" and values["met"] and values["trials"] == 2
    profile = Profile.load(tmp_path / "tuned.json")
    assert [each.to_dict() for each in profile.points] == values["points"]
    assert profile.aim is not None and profile.aim.evidence["prompts"]["count"] == 2
    assert stderr.count("left: loading") == 1 and "left: measuring on 2 prompts at once" in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.txt", "tuned.json"], "the work is tidied up"
    code, stdout, stderr = ended(launched("tune", *given, "--target", "beauty>=3"))
    assert code == 1 and stdout == "" and stderr.count("error: target 'beauty>=3'") == 1
