"""`vidaccel inspect`: one command from a model to a page, and what it refuses before it loads one."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.tiny import tiny_wan
from vidaccel.cli import app
from vidaccel.cli.loading import Model

CALL = {"num_frames": 17, "height": 64, "width": 96, "guidance_scale": 3.0, "max_sequence_length": 16, "fps": 8}
RADIAL = ["--method", "radial", "--density", "0.7", "--schedule", "dense_first_steps=1", "--steps", "3"]


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["inspect", *map(str, words)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "wan"
    tiny_wan(layers=3).save_pretrained(path)
    return path


@pytest.fixture
def miniature(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny pipeline of random weights as the miniature "wan"."""
    fake = SimpleNamespace(available=lambda: ["wan"], path=lambda name: folder, PROMPTS=["a red circle moves left"],
                           generation_defaults=lambda name: dict(CALL))  # fmt: skip
    monkeypatch.setitem(sys.modules, "vidaccel_miniatures", fake)
    return "miniature:wan"


def test_a_page_and_a_record(miniature: str, tmp_path: Path) -> None:
    page, record = tmp_path / "new" / "page.html", tmp_path / "inspection" / "wan.json"
    result = run("--model", miniature, *RADIAL, "--layer", 2, "--layer", 0, "--step", 1, "--step", 2, "--head", 1,
                 "--out", page, "--record", record, "--seed", 4)  # fmt: skip
    assert result.exit_code == 0, result.output
    values = json.loads(record.read_text(encoding="utf-8"))
    assert [(each["step"], each["layer"]) for each in values["calls"]] == [(1, 0), (1, 2), (2, 0), (2, 2)]
    assert {head["head"] for each in values["calls"] for head in each["heads"]} == {1}
    assert (values["seed"], values["prompt"], values["model"]["name"]) == (4, "a red circle moves left", miniature)
    assert values["method"]["name"] == "radial" and values["method"]["options"]["block"] == 16
    assert page.read_text(encoding="utf-8").count('<svg class="cells"') == 6  # layer 0 is dense: no masks
    assert [each.name for each in (*page.parent.iterdir(), *record.parent.iterdir())] == ["page.html", "wan.json"]
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"step 2, layer 2 of transformer, sparse by radial, .*: 1 heads keep 0\.\d+ of their attention "
                        r"at a video density of 0\.\d+; least 0\.\d+, head 1", lines[3])  # fmt: skip
    assert lines[-1] == f"page: {page}, record: {record}"


def test_dense_shows_maps_alone(miniature: str, tmp_path: Path) -> None:
    result = run("--model", miniature, "--method", "dense", "--steps", 2, "--out", tmp_path / "page.html", "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["method"] == {"name": "dense", "options": {}} and len(values["calls"]) == 1
    assert (values["calls"][0]["step"], values["calls"][0]["layer"]) == (1, 1)  # the middle of 2 and of 3
    assert [head["head"] for head in values["calls"][0]["heads"]] == [0, 1]
    assert "A mask shows" not in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "page.png"], "'page.png' does not end in .html"),
        (["--out", "page.html", "--record", "page.txt"], "'page.txt' does not end in .json"),
        (["--out", "page.html", "--layer", "-1"], "--layer '-1' is neither a number from 0 nor 'all'"),
        (["--out", "page.html", "--head", "first"], "--head 'first' is neither a number from 0 nor 'all'"),
        (["--out", "page.html", "--method", "bend"], "unknown method 'bend'"),
        (["--out", "page.html", "--method", "dense", "--density", "0.5"], "method 'dense' takes no --density"),
        (["--out", "page.html", "--method", "radial", "--set", "colour=1"], "has no option 'colour'"),
        (["--out", "page.html", "--image", "no.png"], "image 'no.png' cannot be read"),
    ],
)
def test_bad_input_is_one_line_before_the_model_is_read(
    words: list[str], said: str, miniature: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Model, "load", lambda *args: pytest.fail("it was loaded"))
    result = run("--model", miniature, *words)
    assert result.exit_code == 2 and not result.stdout and len(result.stderr.splitlines()) == 1
    assert re.search(said, result.stderr) and not list(tmp_path.iterdir())


def test_a_model_needs_a_prompt(folder: Path, tmp_path: Path) -> None:
    result = run("--model", folder, "--out", tmp_path / "page.html")
    assert result.exit_code == 2 and "needs a prompt: --prompt TEXT" in result.stderr


def test_what_only_the_model_knows_leaves_no_file(miniature: str, tmp_path: Path) -> None:
    result = run("--model", miniature, *RADIAL, "--layer", 9, "--out", tmp_path / "page.html")
    assert result.exit_code == 2 and result.stderr.splitlines()[-1] == "error: layer 9 is not one of 0 to 2"
    assert not list(tmp_path.iterdir())
