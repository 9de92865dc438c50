"""``vidaccel generate --prompts``: many clips, alone and in two processes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests import commands
from tests.batch.clips import contents
from tests.launched import ended, launched
from tests.tiny import tiny_wan
from vidaccel.batch import folder as batch_folder
from vidaccel.eval.video import read_video
from vidaccel.processes import Crew
from vidaccel.profile import Profile

PROMPTS = ["a red circle moves left", "a blue square moves right", "a red square", "a blue circle"]
CALL = ["--steps", 3, "--height", 64, "--width", 96, "--frames", 9, "--guidance", 3.0, "--negative-prompt", "blurry",
        "--device", "cpu"]  # fmt: skip
RADIAL = ["--method", "radial", "--set", "block=16", "--set", "split=16", "--min-tokens", 0, "--backend", "reference",
          "--schedule", "dense_first_steps=1"]  # fmt: skip

run = functools.partial(commands.run, "generate")
refused = functools.partial(commands.refused, "generate")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "wan"
    tiny_wan().save_pretrained(path)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


def words(model: Path, prompts: Path, out: Path, *more: object) -> list[object]:
    return ["--model", model, "--prompts", prompts, "--out", out, *CALL, *more]


def test_each_clip_is_what_one_alone_would_be(model: Path, prompts: Path, tmp_path: Path) -> None:
    result = run(*words(model, prompts, tmp_path / "out", *RADIAL, "--seeds", "0,5", "--lossless", "--json"))
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["kind"] == "batch" and values["clips"] == values["done"] == 8 and values["failed"] == {}
    assert re.search(r"^2/8 a red circle mo..., seed 5: step 1 of 3", result.stderr, re.MULTILINE)
    name = "0001-a-blue-square-moves-right-seed5"
    single = run("--model", model, "--prompt", PROMPTS[1], "--seed", 5, "--out", tmp_path / "one.mkv", *CALL, *RADIAL,
                 "--json")  # fmt: skip
    assert single.exit_code == 0, single.output
    assert (read_video(tmp_path / "out" / f"{name}.mkv") == read_video(tmp_path / "one.mkv")).all()
    record, alone = json.loads((tmp_path / "out" / f"{name}.json").read_text()), json.loads(single.stdout)
    assert record["sparse"]["calls"] == alone["sparse"]["calls"] and record["sparse"]["calls"]["sparse"] > 0
    assert record["settings"]["attention"]["method"] == "radial" and record["settings"]["fps"] == 16.0
    assert record["settings"]["model"].startswith("sha256:") and record["settings"]["call"]["num_frames"] == 9


def test_it_goes_on_and_refuses_other_settings(model: Path, prompts: Path, tmp_path: Path) -> None:
    given = words(model, prompts, tmp_path / "out", "--method", "dense")
    prompts.write_text(PROMPTS[0] + "\n")
    assert run(*given).exit_code == 0
    before = contents(tmp_path / "out")
    prompts.write_text("\n".join(PROMPTS[:2]) + "\n")
    said = refused(*words(model, prompts, tmp_path / "out", *RADIAL))
    assert 'attention.method is "dense" there, and "radial" was given' in said
    assert "call.height is 64 there, and 48 was given" in refused(*given, "--height", 48)
    assert contents(tmp_path / "out") == before
    result = run(*given)
    assert result.exit_code == 0 and "2 of 2 clips are done (1 were before)" in result.stdout
    assert "1 of 2 clips are done already" in result.stderr and contents(tmp_path / "out").items() > before.items()


def test_profiles_and_caches_are_told_by_content(model: Path, prompts: Path, tmp_path: Path) -> None:
    prompts.write_text(PROMPTS[0] + "\n")
    profile = tmp_path / "mine.json"
    Profile("radial", {"block": 16, "split": 16}).save(profile)
    given = words(model, prompts, tmp_path / "out", "--method", profile, "--min-tokens", 0)
    assert run(*given).exit_code == 0
    assert run(*given).exit_code == 0
    moved = tmp_path / "other.json"
    moved.write_bytes(profile.read_bytes())
    same = words(model, prompts, tmp_path / "out", "--method", moved, "--min-tokens", 0)
    assert "(1 were before)" in run(*same).stdout
    Profile("radial", {"block": 32, "split": 16}).save(profile)
    assert "attention.profile is" in refused(*given)
    cache = ["--cache", "static", "--cache-set", "compute=[0, 1]", "--cache-set", "min_steps=1"]
    assert "attention.cache is none there" in refused(*same, *cache)


def test_lines_with_images_of_their_own(tmp_path: Path) -> None:
    tiny_wan(image=True).save_pretrained(tmp_path / "i2v")
    Image.new("RGB", (96, 64), (200, 10, 10)).save(tmp_path / "red.png")
    file = tmp_path / "clips.jsonl"
    file.write_text(json.dumps({"prompt": "a circle", "image": "red.png", "seed": 3}) + "\n"
                    + json.dumps({"prompt": "a square"}) + "\n")  # fmt: skip
    given = words(tmp_path / "i2v", file, tmp_path / "out", "--method", "dense")
    assert "needs a first frame: --image PATH" in refused(*given)
    assert run(*given, "--image", tmp_path / "red.png").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mp4")) == [
        "0000-a-circle-seed3.mp4", "0001-a-square-seed0.mp4"]  # fmt: skip


def test_failed_clips_make_exit_code_1(model: Path, prompts: Path, tmp_path: Path) -> None:
    # A height that the model does not take is known to the pipeline alone, when it runs.
    result = run(*words(model, prompts, tmp_path / "out", "--method", "dense", "--height", 65))
    assert result.exit_code == 1 and "0 of 4 clips are done" in result.stdout
    assert re.search("failed: 0000-a-red-circle-moves-left-seed0: ValueError: .*height", result.stdout)
    assert "not tried: 1 clips" in result.stdout and "the same command tries again" in result.stdout
    assert run(*words(model, prompts, tmp_path / "out", "--method", "dense")).exit_code == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--prompt", "a cat"], "give one prompt, --prompt TEXT, or a file of them"),
        (["--seed", 1, "--seeds", "2"], "give --seed for all prompts or --seeds, not both"),
        (["--seeds", "many"], "seeds 'many' are not numbers"),
        (["--prompts", "absent.txt"], "prompts file 'absent.txt' cannot be read"),
        (["--image", "absent.png"], "image 'absent.png' cannot be read"),
        (["--method", "nope"], "unknown method 'nope'"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--fps", "0"], "--fps 0.0 is not a number of frames"),
        (["--model", "owner"], "neither a pipeline's folder"),
    ],
)
def test_bad_batches_leave_nothing(model: Path, prompts: Path, tmp_path: Path, more: list[Any], said: str) -> None:
    assert said in refused(*words(model, prompts, tmp_path / "out", *more))
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_options_of_many_clips_are_not_those_of_one(model: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    one = ["--model", model, "--out", tmp_path / "a.mp4"]
    assert "give one prompt, --prompt TEXT" in refused(*one)
    assert "--seeds and --lossless go with --prompts" in refused(*one, "--prompt", "a", "--lossless")
    crew = Crew()
    crew.size = 2
    # The package has the command under the name of its module.
    monkeypatch.setattr(sys.modules["vidaccel.cli.generate"], "join", lambda: crew)
    assert "2 processes would all make the same clip: give --prompts FILE" in refused(*one, "--prompt", "a")


def test_ctrl_c_says_how_to_go_on(model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = batch_folder.Folder.keep

    def interrupt(self: Any, request: Any, *rest: Any) -> None:
        if request.number == 1:
            raise KeyboardInterrupt
        keep(self, request, *rest)

    given = words(model, prompts, tmp_path / "out", "--method", "dense")
    with monkeypatch.context() as patch:
        patch.setattr(batch_folder.Folder, "keep", interrupt)
        result = run(*given)
    assert result.exit_code == 130 and "the same command goes on from there" in result.stderr
    assert "(1 were before)" in run(*given).stdout


# several processes


@pytest.mark.slow
def test_a_killed_process_and_a_killed_job_lose_only_what_was_under_way(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    given = words(model, prompts, tmp_path / "out", *RADIAL, "--seeds", "0-3", "--lossless")
    job = launched("generate", *given)
    after(job, tmp_path / "out", 3)
    (lost,) = (each for each in psutil.Process(job.pid).children() if each.environ().get("RANK") == "1")
    lost.kill()
    code, _, stderr = ended(job)
    first = kept(tmp_path / "out")
    assert code == 1 and "rank" in stderr and 3 <= len(first) < 16
    # The whole job now, launcher and all, as a machine that is switched off.
    job = launched("generate", *given)
    after(job, tmp_path / "out", len(first) + 2)
    for each in [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each.pid, signal.SIGKILL)
    ended(job)
    second = kept(tmp_path / "out")
    assert len(first) + 2 <= len(second) < 16 and {name: second[name] for name in first} == first
    code, stdout, stderr = ended(launched("generate", *given, "--json"))
    assert code == 0, stderr
    values = json.loads(stdout)
    assert values["done"] == 16 and values["skipped"] == len(second) and values["failed"] == {}
    third = kept(tmp_path / "out")
    assert len(third) == 16 and {name: third[name] for name in second} == second
    assert stderr.count(f"2 processes share {16 - len(second)} clips") == 1
    # Both had a share: the main one shows its own clips.
    assert len({line.split()[0] for line in stderr.splitlines() if re.match(r"\d+/\d+ ", line)}) < 16 - len(second)
    assert run(*words(model, prompts, tmp_path / "alone", *RADIAL, "--seeds", "0-3", "--lossless")).exit_code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert len((tmp_path / "out" / "clips.jsonl").read_text().splitlines()) == 16
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [".lock"]


def kept(out: Path) -> dict[str, int]:
    """When each finished clip was written, by the name of its record."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("0*.json")}


def after(job: Any, out: Path, count: int) -> None:
    """Wait until so many clips are finished."""
    while len(kept(out)) < count:
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
