"""Going on after an end that nobody planned."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from tests.calibration.cases import PROMPTS, calibrated
from tests.tiny import tiny_wan
from vidaccel.calibration.work import SETTINGS, Work
from vidaccel.costs import CostModel

CHILD = """
import sys, torch
torch.set_num_threads({threads})
from tests.calibration.cases import calibrated
from tests.tiny import tiny_wan
calibrated(tiny_wan(), work={work!r}, progress=lambda *told: print(*told, flush=True))
"""
STEPS = 4 * len(PROMPTS)


class Stop(Exception):
    pass


def stopping_after(steps: int) -> Any:
    """A callback that fails at a step."""
    def progress(what: str, done: int, total: int) -> None:
        if done >= steps:
            raise Stop

    return progress


def test_goes_on_after_an_error(tmp_path: Path) -> None:
    pipe, expected = tiny_wan(), calibrated(tiny_wan())
    for steps, whole in ((2, 0), (6, 1), (9, 2)):
        with pytest.raises(Stop):
            calibrated(pipe, work=tmp_path, progress=stopping_after(steps))
        assert len(list(tmp_path.glob("prompt-*.safetensors"))) == whole
        assert "_vidaccel_session" not in pipe.transformer.__dict__
    told: list[int] = []
    assert calibrated(pipe, work=tmp_path, progress=lambda what, done, total: told.append(done)) == expected
    assert told == [4, 8, 9, 10, 11, 12, 12]
    told.clear()
    # Another goal asks nothing new of the model.
    goal = {"target_density": None, "max_error": 0.5}
    other = calibrated(pipe, work=tmp_path, progress=lambda what, done, total: told.append(done), **goal)
    assert told == [4, 8, 12] and other.heads == expected.heads and other.options == {"max_error": 0.5}


def test_killed_at_random_moments(tmp_path: Path) -> None:
    expected = calibrated(tiny_wan())
    root, work = Path(__file__).resolve().parents[2], tmp_path / "work"
    code = CHILD.format(threads=torch.get_num_threads(), work=str(work))
    draw = random.Random()
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True,
                                 env=os.environ | {"PYTHONPATH": str(root)})  # fmt: skip
        assert child.stdout is not None
        for _ in range(draw.randrange(1, STEPS - 1)):
            if not child.stdout.readline():  # the second has fewer left, and may be done
                break
        time.sleep(draw.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.stdout.close()
        assert child.wait() in (-signal.SIGKILL, 0)
    assert (work / SETTINGS).is_file()
    assert calibrated(tiny_wan(), work=work) == expected


@pytest.mark.parametrize(
    "options",
    [{"seed": 1}, {"rows": 17}, {"library": "svg"}, {"prompts": PROMPTS[:2]}, {"bands": 2}, {"steps_per_band": 1}],
    ids=lambda each: next(iter(each)),
)  # fmt: skip
def test_other_settings_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    pipe = tiny_wan()
    with pytest.raises(Stop):
        calibrated(pipe, work=tmp_path, progress=stopping_after(1))
    with pytest.raises(ValueError, match="holds a calibration with other settings"):
        calibrated(pipe, work=tmp_path, **options)


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        calibrated(tiny_wan(), work=tmp_path, progress=stopping_after(1))
    with pytest.raises(ValueError, match="other settings: choose another"):
        calibrated(tiny_wan(seed=1), work=tmp_path)


def test_spoiled_files_are_named(tmp_path: Path) -> None:
    calibrated(tiny_wan(), work=tmp_path)
    spoiled = tmp_path / "prompt-001.safetensors"
    whole = spoiled.read_bytes()
    spoiled.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="prompt-001.safetensors' cannot be read: delete it"):
        calibrated(tiny_wan(), work=tmp_path)
    spoiled.unlink()
    calibrated(tiny_wan(), work=tmp_path)
    again, before = load(spoiled.read_bytes()), load(whole)
    assert again.keys() == before.keys() and all(torch.equal(again[name], before[name]) for name in before)
    (tmp_path / SETTINGS).write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        calibrated(tiny_wan(), work=tmp_path)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("")
    with pytest.raises(ValueError, match="cannot be used"):
        calibrated(tiny_wan(), work=tmp_path / "work")


def test_files_of_other_settings_among_ours(tmp_path: Path) -> None:
    first = Work(tmp_path / "a", "one", {})
    first.save(0, {"x": torch.ones(2)}, {})
    second = Work(tmp_path / "b", "two", {})
    (tmp_path / "b" / "prompt-000.safetensors").write_bytes((tmp_path / "a" / "prompt-000.safetensors").read_bytes())
    with pytest.raises(ValueError, match="is of other settings"):
        second.load(0)


def test_the_kernel_is_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def measured(*given: Any) -> CostModel:
        asked.append(given)
        return CostModel(per_range=300.0, source="timed")

    monkeypatch.setattr(CostModel, "measured", measured)
    first = calibrated(tiny_wan(), work=tmp_path, library="svg", cost="measured")
    assert calibrated(tiny_wan(), work=tmp_path, library="svg", cost="measured") == first
    # Two heads of 64, blocks of 16, and 32 of those at least.
    assert asked == [(torch.device("cpu"), torch.float32, 2, 64, 16, 512)]
    assert first.calibration is not None and first.calibration["cost"]["source"] == "timed"


def test_what_is_noted_first_stays(tmp_path: Path) -> None:
    """A cost model that was measured serves after a restart, too."""
    assert Work(tmp_path, "one", {}).note("cost", lambda: 1) == 1
    assert Work(tmp_path, "one", {}).note("cost", lambda: 2) == 1
    assert json.loads((tmp_path / SETTINGS).read_text())["cost"] == 1
    assert not list(tmp_path.glob(".*"))
