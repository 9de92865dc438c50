"""Scorers: found by name, VBench by a stand-in for its package that does as its public interface says."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vidaccel.eval.metrics import scorer, vbench
from vidaccel.eval.metrics.scorer import scorers

PACKAGE = '''
"""Scores a clip by its mean, its size and its prompt, through VBench's interface."""
import json, os
import imageio.v2 as imageio
import numpy as np

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.output_path = output_path
        os.makedirs(output_path, exist_ok=True)

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False, read_frame=False,
                 mode="vbench_standard", **kwargs):
        assert mode == "custom_input" and os.path.isfile(videos_path) and videos_path.endswith(".mp4")
        frames = np.stack(list(imageio.get_reader(videos_path, format="FFMPEG").iter_data()))
        score = float(frames.astype(float).mean() + len(prompt_list[0]) * 1000)
        if prompt_list[0] == "none":
            score = None
        of_clip = {"video_path": videos_path, "video_results": 100 * score if score else 0}
        results = {dimension_list[0]: [score, [of_clip]]}
        with open(os.path.join(self.output_path, name + "_eval_results.json"), "w") as file:
            json.dump(results, file)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of VBench's name that can be imported."""
    folder = tmp_path / "site" / "vbench"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "vbench", raising=False)
    yield folder
    sys.modules.pop("vbench", None)


def test_vbench_scores_the_very_bytes(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    frames = np.random.default_rng(0).integers(0, 256, (5, 47, 63, 3), np.uint8)
    (judge,) = scorers(["vbench:imaging_quality", "vbench:imaging_quality"])
    assert (judge.name, judge.better, judge.version) == ("vbench:imaging_quality", "higher", "unknown")
    assert judge.score(frames, 8, "red") == pytest.approx(3000 + frames.astype(float).mean(), rel=1e-12)
    assert not list(scratch.iterdir())
    with pytest.raises(ValueError, match="gave None for imaging_quality"):
        judge.score(frames, 8, "none")
    assert not list(scratch.iterdir())


def test_vbench_of_its_own_version(package: Path) -> None:
    about = package.parent / "vbench-0.1.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vbench\nVersion: 0.1.5\n")
    importlib.invalidate_caches()
    assert scorers(["vbench:dynamic_degree"])[0].version == "0.1.5"


def test_what_cannot_work_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no dimension 'colour' for clips of one's own; choose vbench:DIMENSION of"):
        scorers(["vbench:colour"])
    with pytest.raises(ValueError, match="no dimension ''"):
        scorers(["vbench"])
    monkeypatch.setattr(vbench, "PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(ValueError, match="'vbench:imaging_quality' needs the package vbench, which is not installed"):
        scorers(["vbench:imaging_quality"])
    with pytest.raises(ValueError, match="unknown scorer 'fvd'; there are vbench"):
        scorers(["fvd"])
    with pytest.raises(ValueError, match="name a scorer"):
        scorers([])


class Bright:
    """Brings a scorer, as a distribution would."""

    better, version = "higher", "1"

    def __init__(self, option: str) -> None:
        self.name = "bright" + (f":{option}" if option else "")

    def score(self, frames: np.ndarray, fps: float, prompt: str) -> float:
        return float(frames.mean())


def test_others_bring_scorers_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(group: str) -> list[Any]:
        assert group == "vidaccel.scorers"
        return [SimpleNamespace(name="bright", load=lambda: Bright), SimpleNamespace(name="wrong", load=lambda: named)]

    def named(option: str) -> Bright:
        return Bright("other")

    monkeypatch.setattr(scorer, "entry_points", points)
    first, second = scorers(["bright", "bright:red"])
    assert (first.name, second.name) == ("bright", "bright:red")
    assert first.score(np.full((1, 2, 2, 3), 7, np.uint8), 8, "") == 7
    with pytest.raises(ValueError, match="scorer 'wrong' calls itself 'bright:other'"):
        scorers(["wrong"])
    with pytest.raises(ValueError, match="there are vbench, bright, wrong"):
        scorers(["fvd"])
