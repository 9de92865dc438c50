from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vidaccel.calibration.generation
from tests import commands
from tests.calibration.cases import PROMPTS
from tests.tiny import tiny_wan
from vidaccel.profile import Profile
from vidaccel.report.profile import layer_picture

SIZE = ["--frames", "17", "--height", "64", "--width", "96", "--steps", "4", "--guidance", "3", "--device", "cpu"]
QUICK = ["--rows", "16", "--steps-per-band", "2", "--cost", "density"]

run = functools.partial(commands.run, "profile")
refused = functools.partial(commands.refused, "profile")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "wan"
    tiny_wan(layers=3).save_pretrained(path)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("# two\n" + "\n".join(PROMPTS[:2]) + "\n")
    return path


def test_a_profile_with_pictures(model: Path, prompts: Path, tmp_path: Path) -> None:
    out, pictures = tmp_path / "profile.json", tmp_path / "pictures"
    words = ["--model", model, "--prompts", prompts, "--out", out, *SIZE, *QUICK]
    result = run(*words, "--target-density", 0.6, "--picture", pictures)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{out}: ") and lines[0].endswith("s for 2 prompts")
    assert lines[1].startswith("predicted: density 0.") and lines[2].startswith("heads: ")
    assert "mapping prompt 1" in result.stderr and "measuring prompt 2" in result.stderr
    profile = Profile.load(out)
    assert profile.heads is not None and profile.options == {"density": 0.6}
    assert sorted(each.name for each in pictures.iterdir()) == [f"transformer-layer0{at}.png" for at in range(3)]
    with Image.open(pictures / "transformer-layer01.png") as picture:
        assert picture.size[0] > 400 and len(picture.convert("L").histogram()) == 256
    # The folder that kept the prompts is gone.
    assert sorted(each.name for each in tmp_path.iterdir()) == ["pictures", "profile.json", "prompts.txt"]


def test_json_and_a_work_folder_that_stays(model: Path, prompts: Path, tmp_path: Path) -> None:
    words = ["--model", model, "--prompts", prompts, "--out", tmp_path / "a.json", *SIZE, *QUICK, "--work",
             tmp_path / "work", "--library", "svg", "--json"]  # fmt: skip
    first = json.loads(run(*words, "--target-density", 0.8).stdout)
    assert first["kind"] == "profile" and first["prompts"] == 2 and first["goal"] == {"density": 0.8}
    assert first["predicted"]["density"] <= 0.8 and sum(first["kinds"].values()) == 6
    again = json.loads(run(*words, "--max-error", 0.9).stdout)
    assert again["goal"] == {"max_error": 0.9} and again["generating_seconds"] == first["generating_seconds"]


def test_a_further_size(model: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    words = ["--model", model, "--prompts", prompts, "--out", out, *SIZE, *QUICK, "--target-density", 0.8,
             "--also", "48x64", "--also", "64x96x9", "--library", "svg", "--work", tmp_path / "work"]  # fmt: skip
    result = run(*words)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[2].startswith("predicted on 5x3x4: density 0.") and lines[3].startswith("predicted on 3x4x6: density")
    assert "measuring prompt 2 at height=64, num_frames=9, width=96" in result.stderr
    assert [str(each.layout) for each in Profile.load(out).heads_at] == ["5x3x4", "3x4x6"]
    told = json.loads(run(*words, "--json").stdout)["further"]
    assert [each["grid"] for each in told] == ["5x3x4", "3x4x6"] and told[0]["predicted"]["density"] <= 0.8


def test_interrupted(model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "profile.json"
    words = ["--model", model, "--prompts", prompts, "--target-density", 0.6, "--out", out, *SIZE, *QUICK]
    real = vidaccel.calibration.generation.Generations._generate

    def generate(self: Any, prompt: int) -> None:
        if prompt == 1:
            raise KeyboardInterrupt
        real(self, prompt)

    with monkeypatch.context() as patch:
        patch.setattr(vidaccel.calibration.generation.Generations, "_generate", generate)
        result = run(*words)
    assert result.exit_code == 130 and result.stdout == "" and not out.exists()
    assert result.stderr.splitlines()[-1] == (
        f"stopped; what is done lies in {out}.work, and the same command goes on from there"
    )
    assert (tmp_path / "profile.json.work" / "prompt-000.safetensors").is_file()
    assert run(*words).exit_code == 0
    assert out.is_file() and not (tmp_path / "profile.json.work").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target-density", "0.5", "--out", "x.txt"], "--out 'x.txt' does not end in .json"),
        ([], "give either a target density or a largest error"),
        (["--target-density", "0.5", "--max-error", "0.1"], "give either a target density or a largest error"),
        (["--target-density", "2"], "density=2.0 is not a number in (0, 1]"),
        (["--target-density", "0.5", "--library", "none"], "unknown library 'none'"),
        (["--target-density", "0.5", "--cost", "free"], "cost='free' is not"),
        (["--target-density", "0.5", "--bands", "0"], "bands=0 is not"),
        (["--target-density", "0.5", "--also", "480"], "--also '480' is not HEIGHTxWIDTH or HEIGHTxWIDTHxFRAMES"),
        (["--target-density", "0.5", "--also", "0x48"], "height=0 is not a whole number of at least 1"),
        (["--target-density", "0.5", "--also", "48x64", "--also", "48x64"], "height=48, width=64 is calibrated twice"),
        (["--target-density", "0.5", "--model", "nowhere"], "model 'nowhere' is neither"),
        (["--target-density", "0.5", "--prompts", "gone.txt"], "prompts file 'gone.txt' cannot be read"),
    ],
)  # fmt: skip
def test_bad_input_before_loading(
    words: list[str], message: str, model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr("vidaccel.cli.loading.Model.load", lambda *_: pytest.fail("it was loaded"))
    given = ["--model", model, "--prompts", prompts, "--out", tmp_path / "profile.json", *SIZE, *QUICK]
    assert message in refused(*given, *words)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["prompts.txt"]


def test_no_head_to_draw() -> None:
    with pytest.raises(ValueError, match="no head"):
        layer_picture([], "a layer")


def test_heads_of_nothing_and_of_everything_can_be_drawn() -> None:
    """A layer that was not measured has maps of zeros; a dense head has no contour."""
    heads = [(("dense",), torch.zeros(4, 4), torch.ones(4, 4)), (("skip",), torch.eye(4), torch.zeros(4, 4))]
    assert layer_picture(heads, "a layer").startswith(b"\x89PNG")
