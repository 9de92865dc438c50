from __future__ import annotations

import functools
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests import commands
from tests.launched import ended
from tests.launched import launched as command
from tests.tiny import tiny_wan
from vidaccel.cli.output import say_error, speaking, time_left
from vidaccel.eval.clip import Clip
from vidaccel.eval.store import Store
from vidaccel.processes import Crew, Refused

PROMPTS = ["a red circle moves left", "a blue square moves right", "a red square", "a blue circle", "a circle"]
DEFAULTS: dict[str, Any] = {"num_frames": 33, "height": 64, "width": 96, "guidance_scale": 3.0, "fps": 8,
                            "negative_prompt": "blurry", "max_sequence_length": 16}  # fmt: skip
SIZE = ["--frames", "33", "--height", "64", "--width", "96", "--steps", "4"]
SETTINGS = """
model: {model}
method:
  - {{name: radial, block: 16, split: 16}}
density: [0.8, 0.9]
prompt: [{prompts}]
seed: [0, 1]
frames: 33
height: 64
width: 96
steps: 4
guidance: 3.0
backend: reference
device: cpu
quick: true
"""

run = functools.partial(commands.run, "eval")
refused = functools.partial(commands.refused, "eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "wan"
    tiny_wan().save_pretrained(path)
    return path


@pytest.fixture
def miniature(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`vidaccel_miniatures` with a tiny pipeline of random weights as its "wan"."""
    fake = SimpleNamespace(available=lambda: ["wan"], path=lambda name: folder, PROMPTS=PROMPTS,
                           generation_defaults=lambda name: dict(DEFAULTS))  # fmt: skip
    monkeypatch.setitem(sys.modules, "vidaccel_miniatures", fake)
    return folder


def write_settings(path: Path, model: Path, prompts: list[str] | None = None) -> Path:
    path.write_text(SETTINGS.format(model=model, prompts=", ".join(prompts or PROMPTS[:1])))
    return path


def test_a_miniature_with_its_defaults(miniature: Path, tmp_path: Path) -> None:
    result = run("--model", "miniature:wan", "--method", "radial", "--density", 0.8, "--steps", 2, "--quick", "--json",
                 "--out", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    # Four of five prompts, dense, radial and its two baselines.
    assert values["kind"] == "eval" and values["cells"] == 4 * 4 and values["failed"] == {} and values["skipped"] == 0
    labels = [row["label"] for row in values["rows"]]
    assert labels == ["dense", "radial", "fewer-steps for radial", "random for radial"]
    assert {row["cells"] for row in values["rows"]} == {4} and values["rows"][0]["identical"] == 4
    shown = result.stderr.splitlines()
    # Fewer steps in equal time may be one, on a machine that is busy with other work.
    assert sum(": step 1 of " in line for line in shown) == 16, "one line for each cell"
    line = re.compile(r"2/16 radial 0\.8, seed 0, a red circle mo\.\.\.: step 1 of 2, about \d+ (s|min) left")
    assert any(line.fullmatch(each) for each in shown)
    record = json.loads(next((tmp_path / "out").glob("cells/*radial-0.8*/record.json")).read_text())
    assert record["settings"]["num_frames"] == 33 and record["negative_prompt"] == "blurry"
    assert record["method"]["options"]["block"] == 16, "the miniature's own block"
    assert record["model"]["name"] == "miniature:wan" and record["model"]["digest"].startswith("sha256:")


def test_caches_cross_methods(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "eval.yaml"
    static = "{name: static, compute: [0, 2], min_steps: 1}"
    file.write_text(f"model: {folder}\nmethod: dense\ncache: [none, {static}]\nbaselines: [same-compute]\n")
    words = [file, "--prompt", PROMPTS[0], *SIZE, "--guidance", 1.0, "--quick", "--out", tmp_path / "out"]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "dense+static(compute=0 2, min_steps=1)" in result.stdout and "same-compute" in result.stdout
    assert "computed" in result.stdout and "3 of 3 cells are done" in result.stdout
    more = json.loads(run(*words, "--cache", "none", "--cache", "easycache", "--json").stdout)
    assert more["cells"] == 3 and more["skipped"] == 1 and not more["failed"]
    shares = {row["label"]: row["computed_share"] for row in more["rows"]}
    assert shares["dense"] is None and shares["dense+easycache"] == 1.0, "too few steps"
    assert shares["dense+static(compute=0 2, min_steps=1)"] == 0.5


def test_a_settings_file_and_flags_over_it(folder: Path, tmp_path: Path) -> None:
    file = write_settings(tmp_path / "eval.yaml", folder)
    words = [file, "--out", tmp_path / "out", "--no-baselines", "--density", 0.9, "--no-quick"]
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["cells"] == 2 and [row["requested_density"] for row in values["rows"]] == [0.9]
    assert values["rows"][0]["metrics"]["psnr"] > 0 and len(list(tmp_path.rglob("preview-lossy.mp4"))) == 2
    (tmp_path / "prompts.txt").write_text("a red circle moves left\n")
    again = run(*words, "--prompts-file", tmp_path / "prompts.txt")
    assert again.exit_code == 0 and "2 of 2 cells are done (2 were before)" in again.stdout
    assert "PSNR" in again.stdout and "radial" in again.stdout and "table.md" in again.stdout


def test_failed_cells_make_exit_code_1(folder: Path, tmp_path: Path) -> None:
    # A height that the model does not take is known to the pipeline alone, when it runs.
    result = run("--model", folder, "--prompt", PROMPTS[0], *SIZE, "--height", 65, "--out", tmp_path / "out",
                 "--no-baselines", "--method", "dense")  # fmt: skip
    assert result.exit_code == 1
    assert "0 of 1 cells are done" in result.stdout
    assert re.search("failed: wan-dense.*ValueError.*height", result.stdout)
    assert json.loads(next((tmp_path / "out").rglob("error.json")).read_text())["type"] == "ValueError"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "nope"], "unknown method 'nope'; choose dense, "),
        (["--density", "2"], r"density 2.0 is outside \(0, 1\]"),
        (["--method", "dense", "--density", "0.5"], "none of the methods dense takes a density"),
        (["--cache", "nope"], "unknown cache policy 'nope'; choose none, "),
        (["--seed", "-1"], "seed -1"),
        (["--steps", "0"], "steps 0"),
        (["--repeats", "0"], "repeats 0"),
        (["--backend", "magic"], "unknown backend 'magic'"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--dtype", "fp4"], "dtype 'fp4'"),
        (["--schedule", "pace=1"], "a schedule has no option 'pace'"),
        (["--prompts-file", "absent.txt"], "give prompts or a file of them"),
        (["--model", "owner"], "neither a pipeline's folder"),
        (["absent.yaml"], "settings file 'absent.yaml' cannot be read"),
    ],
)
def test_bad_evals_leave_nothing(folder: Path, tmp_path: Path, words: list[str], said: str) -> None:
    line = refused("--model", folder, "--prompt", PROMPTS[0], "--out", tmp_path / "out", *words)
    assert re.search(said, line) and not list(tmp_path.iterdir())


def test_what_an_eval_needs(folder: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    assert "--out DIR" in refused("--model", folder, "--prompt", "a")
    assert "needs a model" in refused("--prompt", "a", *out)
    assert "needs prompts" in refused("--model", folder, *out)
    (tmp_path / "eval.yaml").write_text("models: [x]\n")
    said = refused(tmp_path / "eval.yaml", *out)
    assert "no setting 'models'; it has model, prompts_file, dtype, device, out, method, density" in said
    (tmp_path / "eval.yaml").write_text("model: []\n")
    assert "model is an empty list" in refused(tmp_path / "eval.yaml", *out)
    (tmp_path / "eval.yaml").write_text("out: 3\n")
    assert "out: 3 is not a text" in refused(tmp_path / "eval.yaml")
    (tmp_path / "file").write_text("mine")
    words = ["--model", folder, "--prompt", "a", "--method", "dense", "--out", tmp_path / "file"]
    assert "cannot write into folder" in refused(*words) and not (tmp_path / "out").exists()


def test_other_families_are_refused_sparse_and_read_no_weights(folder: Path, tmp_path: Path) -> None:
    other, index = tmp_path / "other", json.loads((folder / "model_index.json").read_text())
    other.mkdir()
    index |= {"transformer": ["diffusers", "LatteTransformer3DModel"], "_class_name": "LattePipeline"}
    (other / "model_index.json").write_text(json.dumps(index))
    said = refused("--model", other, "--prompt", "a", "--method", "radial", "--out", tmp_path / "out")
    assert "a LattePipeline, runs dense only" in said and "its blocks attend within a frame" in said
    index["_class_name"] = "NoSuchPipeline"
    (other / "model_index.json").write_text(json.dumps(index))
    said = refused("--model", other, "--prompt", "a", "--method", "dense", "--out", tmp_path / "out")
    assert "NoSuchPipeline, which this version of diffusers does not have" in said and not (tmp_path / "out").exists()


def test_ctrl_c_says_how_to_go_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    words = ["--model", folder, "--prompt", PROMPTS[0], "--method", "dense", *SIZE, "--out", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr("vidaccel.eval.stage.Stage.measure", interrupt)
        result = run(*words)
    assert result.exit_code == 130 and "the same command goes on" in result.stderr and "Traceback" not in result.stderr
    assert run(*words).exit_code == 0


@pytest.mark.parametrize(("seconds", "words"), [
    (None, ""), (0.0, "about 1 s left"), (89.4, "about 89 s left"), (100.0, "about 2 min left"),
    (3600.0, "about 60 min left"), (7230.0, "about 2 h 0 min left"), (30000.0, "about 8 h 20 min left"),
])  # fmt: skip
def test_time_left_in_words(seconds: float | None, words: str) -> None:
    assert time_left(seconds) == words


def test_only_the_main_process_speaks_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    main, other = Crew(), Crew()
    other.rank = 3
    say_error(main, ValueError("no such\ncolour"))
    say_error(other, Refused("no such colour"))
    assert capsys.readouterr().err == "error: no such colour\n"
    say_error(other, ValueError("my own"))
    assert re.fullmatch(r"process 3 on .+: error: my own\n", capsys.readouterr().err)
    for crew, said in ((main, ""), (other, "process 3 on .+: KeyError: 'oops'\n")):
        with pytest.raises(KeyError), speaking(crew):
            raise KeyError("oops")
        assert re.fullmatch(said, capsys.readouterr().err)


# killed


def records(out: Path) -> dict[str, Any]:
    """All records of an eval without times, and each cell's clip; not of fewer steps, which are of the times."""
    found = {}
    for path in sorted(out.glob("cells/*/record.json")):
        record = json.loads(path.read_text())
        for name in ("created", "timing", "peak_memory_gib", "git", "device"):
            del record[name]
        if record["follow_up"]:
            record["follow_up"]["steps"] = None
        if (record["baseline"] or {}).get("kind") == "fewer-steps":
            parent = json.loads((out / "cells" / record["baseline"]["of"] / "record.json").read_text())
            steps = parent["follow_up"]["steps"]
            assert steps == record["baseline"]["steps"] == record["settings"]["num_inference_steps"]
            record["baseline"]["steps"] = record["settings"]["num_inference_steps"] = record["metrics"] = None
            found[record["cell"]] = record, None
        else:
            latents = Clip.load(path.parent / "clip.safetensors").latents
            assert latents is not None
            found[record["cell"]] = record, latents.tobytes()
    return found


def start(settings: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "vidaccel.cli", "eval", str(settings), "--out", str(out)],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip


@pytest.mark.slow
def test_killed_five_times_it_ends_with_the_same_records(folder: Path, tmp_path: Path) -> None:
    settings = write_settings(tmp_path / "eval.yaml", folder, PROMPTS[:3])
    draw, killed = random.Random(7), tmp_path / "killed"
    counts = []
    for _ in range(5):
        process = start(settings, killed)
        assert process.stderr is not None
        began, last, left = [time.monotonic()] * 2 + [draw.randint(2, 7)]
        while left:
            line = process.stderr.readline()
            assert line, "it ended before it was killed"
            left -= ": step " in line
            began, last = last, time.monotonic()
        # A random moment of a random cell: cells take about as long as the one before.
        time.sleep(draw.uniform(0.0, last - began))
        process.send_signal(signal.SIGKILL)
        process.stderr.close()
        assert process.wait() == -signal.SIGKILL
        counts.append(len(list(killed.glob("cells/[!.]*/record.json"))))
    assert counts == sorted(counts) and 0 < counts[-1] < 42
    for out in (killed, tmp_path / "undisturbed"):
        process = start(settings, out)
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
    ours, theirs = records(killed), records(tmp_path / "undisturbed")
    assert len(theirs) == 3 * 2 * (1 + 2 * 3) and ours == theirs
    lines = [(out / "records.jsonl").read_text().splitlines() for out in (killed, tmp_path / "undisturbed")]
    assert [[json.loads(line)["cell"] for line in each] for each in lines] == [list(theirs)] * 2
    assert not [path for path in killed.rglob(".*") if path.name != ".lock"]


# several processes

SMALL = ["--density", "0.8", "--seed", "3", "--steps", "3"]
"""Eight cells of two references."""


def launched(settings: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """Two processes under ``accelerate launch``."""
    return command("eval", settings, "--out", out, *SMALL, *more)


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Settings of an eval, and what one process makes of them."""
    path = tmp_path_factory.mktemp("alone")
    settings = write_settings(path / "eval.yaml", folder, PROMPTS[:2])
    assert run(settings, "--out", path / "out", *SMALL).exit_code == 0
    return settings, records(path / "out")


@pytest.mark.slow
def test_two_processes_make_the_records_of_one(alone: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    settings, expected = alone
    code, stdout, stderr = ended(launched(settings, tmp_path / "out", "--json"))
    assert code == 0, stderr
    values = json.loads(stdout)
    assert values["cells"] == len(expected) == 8 and values["failed"] == {} and values["skipped"] == 0
    assert records(tmp_path / "out") == expected
    assert len((tmp_path / "out" / "records.jsonl").read_text().splitlines()) == 8
    assert stderr.count("2 processes share 8 cells") == 1 and re.search(r": step 1 of \d, about \d+ s left", stderr)
    # Both had a share: the main one shows its own steps.
    assert 0 < len({line.split()[0] for line in stderr.splitlines() if re.match(r"\d/8 ", line)}) < 8
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.name != ".lock"]


@pytest.mark.slow
def test_a_lost_process_is_made_up_for(alone: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    settings, expected = alone
    out, process = tmp_path / "out", launched(settings, tmp_path / "out")
    while not (done := list(out.glob("cells/[!.]*/record.json"))):
        assert process.poll() is None
        time.sleep(0.02)
    (lost,) = (each for each in psutil.Process(process.pid).children() if each.environ().get("RANK") == "1")
    lost.kill()
    code, _, stderr = ended(process)
    assert code == 1 and "rank" in stderr and len(done) < 8
    before = {path: path.read_bytes() for path in out.glob("cells/[!.]*/*")}
    again = run(settings, "--out", out, *SMALL, "--json")
    assert again.exit_code == 0, again.output
    values = json.loads(again.stdout)
    assert values["skipped"] >= len(done) and values["failed"] == {}
    assert {path: path.read_bytes() for path in before} == before and records(out) == expected


@pytest.mark.slow
def test_a_second_job_is_refused_once(folder: Path, tmp_path: Path) -> None:
    settings = write_settings(tmp_path / "eval.yaml", folder, PROMPTS[:2])
    with Store(tmp_path / "out"):
        code, stdout, stderr = ended(launched(settings, tmp_path / "out"))
    assert code == 1 and stdout == "" and stderr.count("error: another eval is at work") == 1


@pytest.mark.slow
def test_failed_cells_of_all_processes_are_listed(folder: Path, tmp_path: Path) -> None:
    settings = write_settings(tmp_path / "eval.yaml", folder, PROMPTS[:2])
    # A height that the model does not take is known to the pipeline alone, when it runs.
    code, stdout, stderr = ended(launched(settings, tmp_path / "out", "--height", "65", "--no-baselines", "--json"))
    assert code == 1 and len(json.loads(stdout)["failed"]) == 2 and stderr.count(" failed: ValueError: ") == 2
