"""What an eval has beside its figures: maps, where the time goes, lossless videos, first frames, scores."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.eval.cases import ImagePipeline, plan, source
from tests.tiny import tiny_image, tiny_wan
from vidaccel.cli import app
from vidaccel.eval import bench, breakdown
from vidaccel.eval.breakdown import PARTS
from vidaccel.eval.clip import Clip
from vidaccel.eval.first_frame import first_of, prepared
from vidaccel.eval.runner import Runner
from vidaccel.eval.scoring import score_folder
from vidaccel.eval.settings import Settings
from vidaccel.eval.sources import Source
from vidaccel.eval.video import read_video, to_uint8

PROMPT = "a red circle moves left"
CALL: dict[str, Any] = {"steps": 4, "height": 64, "width": 96, "frames": 33, "guidance": 3.0,
                        "negative_prompt": "blurry"}  # fmt: skip
RADIAL: dict[str, Any] = {"name": "radial", "block": 16, "split": 16, "density": 0.8}
VALUES: dict[str, Any] = {**CALL, "method": RADIAL, "prompt": PROMPT, "seed": 5, "backend": "cpu"}


def records(out: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted(out.glob("cells/*/record.json"))]
    return {f"{each['label'].split('(')[0]} {each['prompt']} {each['seed']}": each for each in found}


def unloaded(pipe: Any) -> Source:
    """The same model, which must not be loaded."""
    known = Source.of(pipe)
    return Source(known.name, known.pipeline, known.transformer, lambda: pytest.fail("it was loaded"), known.identify,
                  known.dtype, known.device)  # fmt: skip


def test_maps_are_always_there(tmp_path: Path) -> None:
    cache = {"name": "static", "compute": [0, 2], "min_steps": 1, "predictor": "hold"}
    bench.run(tiny_wan(), tmp_path, **{**VALUES, "quick": True, "method": ["dense", RADIAL], "cache": ["none", cache],
                                       "baselines": ["dense"]})  # fmt: skip
    made = {each["label"].split("(")[0].split("+")[0] + ("+" if each["cached"] else ""): each["map"]
            for each in (json.loads(path.read_text()) for path in tmp_path.glob("cells/*/record.json"))}  # fmt: skip
    assert made["dense"] is None and made["radial"]["layers"] == 2
    assert [step["kinds"] for step in made["radial"]["steps"]] == ["DD", "DS", "DS", "DS"]
    assert [step["kinds"] for step in made["dense+"]["steps"]] == ["DD", "RR", "DD", "RR"]
    assert [step["kinds"] for step in made["radial+"]["steps"]][::2] == ["DD", "DS"]


def test_time_is_broken_down_once_for_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, labels, original = tiny_wan(), [], Runner.run
    monkeypatch.setattr(Runner, "run", lambda self, label, *args, **kwargs: (
        labels.append(label), original(self, label, *args, **kwargs))[1])  # fmt: skip
    values = {**VALUES, "quick": True, "seed": [5, 6], "baselines": ["dense", "fewer-steps"]}
    bench.run(pipe, tmp_path, **values)
    before, timed = records(tmp_path), labels.count("run")
    assert all(each["split"] is None for each in before.values())
    # Asked for later: nothing is timed again, and only the breakdown is run.
    result = bench.run(pipe, tmp_path, **values, breakdown=True)
    after = records(tmp_path)
    assert (result.cells, result.skipped, result.failed) == (6, 5, {}) and labels.count("run") == timed + 2
    split, after[f"radial {PROMPT} 5"]["split"] = after[f"radial {PROMPT} 5"]["split"], None
    assert set(split) == {"dense", "fast", "note"} and list(split["dense"]) == list(split["fast"]) == list(PARTS)
    assert split["dense"]["plan"] == pytest.approx(0, abs=1) and split["fast"]["attention"] > 0
    assert split["dense"]["vae"] == 0 < split["dense"]["text"]
    assert after == before and (tmp_path / "records.jsonl").read_text().count('"split": {') == 1
    assert bench.run(unloaded(pipe), tmp_path, Settings.of({**values, "breakdown": True})).skipped == 6


def test_a_breakdown_that_fails_leaves_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, values = tiny_wan(), {**VALUES, "quick": True, "baselines": False, "breakdown": True}
    with monkeypatch.context() as patch:
        patch.setattr(breakdown, "parts_of", lambda *_: 1 / 0)
        result = bench.run(pipe, tmp_path, **values)
    assert list(result.failed.values()) == ["breakdown: ZeroDivisionError: division by zero"]
    (kept,) = records(tmp_path).values()
    assert kept["split"] is None and kept["metrics"]["latent_error"] > 0 and not list(tmp_path.rglob("error.json"))
    assert bench.run(pipe, tmp_path, **values).failed == {}
    (again,) = records(tmp_path).values()
    assert again == {**kept, "split": again["split"]} and again["split"]["fast"]["attention"] > 0


def test_videos_without_loss_are_made_with_the_clip_or_from_it(tmp_path: Path) -> None:
    pipe, values = tiny_wan(), {**VALUES, "baselines": False, "frames": 17, "method": "dense"}
    bench.run(pipe, tmp_path / "now", **values, lossless=True)
    bench.run(pipe, tmp_path / "later", **values)
    (record,) = records(tmp_path / "later").values()
    assert "video_lossless" not in record["files"]
    bench.run(unloaded(pipe), tmp_path / "later", Settings.of({**values, "lossless": True}))
    for out in (tmp_path / "now", tmp_path / "later"):
        (record,) = records(out).values()
        folder = out / "cells" / record["cell"]
        clip = Clip.load(folder / record["files"]["clip"])
        assert record["files"]["video_lossless"] == "video-lossless.mkv"
        assert np.array_equal(read_video(folder / "video-lossless.mkv"), clip.frames)
    with pytest.raises(ValueError, match="quick decodes nothing"):
        Settings.of({**values, "lossless": True, "quick": True})


def test_the_first_frame_is_compared_with_the_image(tmp_path: Path) -> None:
    pipe, path = tiny_wan(image=True), tmp_path / "first.png"
    tiny_image(0).resize((120, 100)).save(path)
    values = {**VALUES, "method": "dense", "image": str(path), "frames": 17}
    assert bench.run(pipe, tmp_path / "out", **values).failed == {}
    (record,) = records(tmp_path / "out").values()
    clip = Clip.load(tmp_path / "out" / "cells" / record["cell"] / "clip.safetensors")
    assert clip.frames is not None
    image = (pipe.video_processor.preprocess(tiny_image(0).resize((120, 100)), 64, 96)[0].permute(1, 2, 0) + 1) / 2
    error = np.square(image.double().numpy() - clip.frames[0] / 255).mean()
    assert record["metrics"]["first_frame_psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-4)
    assert record["metrics"]["first_frame_ssim"] is not None and record["settings"]["image"].startswith("sha256:")
    assert "preprocess" not in pipe.video_processor.__dict__
    # Another image is another reference, wherever it lies; the same one elsewhere is not.
    path.rename(tmp_path / "moved.png")
    moved = {**values, "image": str(tmp_path / "moved.png")}
    assert bench.run(pipe, tmp_path / "out", **moved).skipped == 1
    tiny_image(1).save(path)
    assert bench.run(pipe, tmp_path / "out", **{**values, "quick": True}).skipped == 0
    every = [json.loads(path.read_text()) for path in tmp_path.glob("out/cells/*/record.json")]
    (quick,) = (each for each in every if each["settings"]["output"] == "latent")
    assert quick["metrics"]["first_frame_psnr_reason"] == "the clip was not decoded"
    assert len(list((tmp_path / "out" / "references").iterdir())) == 2


def test_images_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    tiny_image(0).save(tmp_path / "first.png")
    with pytest.raises(ValueError, match="Pipeline takes no image"):
        plan({"image": str(tmp_path / "first.png")})
    with pytest.raises(ValueError, match="ImagePipeline needs a first frame: image, the path of one"):
        plan({}, source(pipeline=ImagePipeline))
    for name in ("text.png", "absent.png"):
        with pytest.raises(ValueError, match=f"{name}' cannot be read"):
            plan({"image": str(tmp_path / name)}, source(pipeline=ImagePipeline))
    (cell,) = plan({"image": str(tmp_path / "first.png"), "method": "dense"}, source(pipeline=ImagePipeline))
    assert cell.call["image"].startswith("sha256:") and str(tmp_path) not in json.dumps(cell.config)


def test_an_image_that_is_not_seen_is_no_image() -> None:
    pipe, frames = tiny_wan(image=True), np.zeros((5, 64, 96, 3))
    with prepared(pipe) as seen:
        pipe.video_processor.preprocess(tiny_image(0), 64, 96)
        pipe.video_processor.preprocess(tiny_image(1), 64, 96)
    found = first_of(seen, frames)
    assert found is not None and np.array_equal(to_uint8(found[None])[0], np.asarray(tiny_image(0)))
    assert first_of(seen, frames[:, :32]) is None and first_of([], frames) is None
    with prepared(object()) as seen:
        assert seen == []


class Judge:
    """Scores by brightness, and fails where it is told to."""

    better, version = "lower", "3"

    def __init__(self, option: str) -> None:
        self.name, self.seen = "judge" + (f":{option}" if option else ""), []
        self.broken: str | None = None

    def score(self, frames: np.ndarray, fps: float, prompt: str) -> float:
        self.seen.append((fps, prompt))
        if prompt == self.broken:
            raise OSError("no\nweights")
        return float(frames.mean())


def test_clips_are_scored_dense_and_fast_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge("")
    monkeypatch.setattr("vidaccel.eval.metrics.scorer.known", lambda: {"judge": lambda: lambda option: judge})
    bench.run(tiny_wan(), tmp_path, **{**VALUES, "frames": 17, "method": "dense", "prompt": [PROMPT, "a blue square"]})
    judge.broken = PROMPT
    first = score_folder(tmp_path, ["judge"])
    assert first.made == 1 and first.kept == 0 and list(first.missing.values()) == ["OSError: no weights"]
    kept = records(tmp_path)
    assert kept[f"dense {PROMPT} 5"]["metrics"]["judge_reason"] == "OSError: no weights"
    assert len(judge.seen) == 2 and {fps for fps, _ in judge.seen} == {16.0}
    judge.broken = None
    result = CliRunner().invoke(app, ["score", str(tmp_path), "--scorer", "judge"])
    assert result.exit_code == 0, result.output
    assert "1 new scores, 1 were there before" in result.stdout and len(judge.seen) == 3
    for record in records(tmp_path).values():
        clip = Clip.load(tmp_path / "cells" / record["cell"] / "clip.safetensors")
        assert clip.frames is not None and record["metrics"]["judge"] == pytest.approx(clip.frames.mean())
        assert record["metrics"]["judge_reason"] is None
        assert record["scores"] == {"judge": {"better": "lower", "version": "3"}}
    (row,) = csv.DictReader((tmp_path / "table.csv").open())
    mean = np.mean([each["metrics"]["judge"] for each in records(tmp_path).values()])
    assert float(row["judge"]) == pytest.approx(mean) and row["judge_cells"] == "2"
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[0].endswith("| judge |") and table[2].endswith(f"| {mean:.4f} |")
    assert json.loads((tmp_path / "records.jsonl").read_text().splitlines()[0])["scores"]


def test_folders_that_cannot_be_scored_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidaccel.eval.metrics.scorer.known", lambda: {"judge": lambda: Judge})
    with pytest.raises(ValueError, match="is not the folder of an eval: it has no cells"):
        score_folder(tmp_path / "absent", ["judge"])
    assert not (tmp_path / "absent").exists()
    (tmp_path / "cells").mkdir()
    with pytest.raises(ValueError, match="has no finished cell"):
        score_folder(tmp_path, ["judge"])
    result = CliRunner().invoke(app, ["score", str(tmp_path), "--scorer", "fvd"])
    assert result.exit_code == 2 and "unknown scorer 'fvd'" in result.stderr


def test_undecoded_clips_have_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidaccel.eval.metrics.scorer.known", lambda: {"judge": lambda: Judge})
    bench.run(tiny_wan(), tmp_path, **{**VALUES, "quick": True, "method": "dense"})
    result = CliRunner().invoke(app, ["score", str(tmp_path), "--scorer", "judge:a", "--json"])
    assert result.exit_code == 1
    values = json.loads(result.stdout)
    assert values["made"] == 0 and list(values["missing"].values()) == ["the clip was not decoded"]
