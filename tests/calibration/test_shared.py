"""Calibrations whose generations several processes share."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.calibration.cases import GUIDED, PROMPTS
from tests.crews import in_crew
from tests.launched import ended, launched
from tests.tiny import tiny_wan
from vidaccel.calibration import cache as cached
from vidaccel.calibration import run as heads
from vidaccel.calibration.generation import Generations
from vidaccel.cli import app
from vidaccel.processes import Crew
from vidaccel.processes import launched as processes

OPTIONS: dict[str, Any] = {
    "target_density": 0.6, "max_error": None, "bands": 1, "rows": 16, "steps_per_band": 2, "library_name": "all",
    "block": None, "seed": 0, "cost": "density", "generation_kwargs": GUIDED,
}  # fmt: skip
ALSO = [{"height": 48, "width": 64}]
MORE = [*PROMPTS, "a blue circle moves right"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "POLL", 0.005)
    pipes()


@functools.cache
def pipes() -> list[Any]:
    """Of each process the same model; made one after the other, as they draw from torch's one generator."""
    return [tiny_wan() for _ in range(3)]


def pipe_of(crew: Crew | None) -> Any:
    return pipes()[0 if crew is None else crew.rank]


def profiled(work: Path | None, crew: Crew | None = None, progress: Any = None, **options: Any) -> Any:
    given = {**OPTIONS, **options}
    return heads.measured(pipe_of(crew), MORE, work=work, progress=progress, crew=crew, **given)


def cache_of(work: Path | None, crew: Crew | None = None, progress: Any = None, **options: Any) -> Any:
    given = {"samples": 32, "probes": 2, "seed": 0, "sparse": False, **options}
    call = GUIDED | {"num_inference_steps": 6}
    return cached.measured(pipe_of(crew), PROMPTS, call, work=work, progress=progress, crew=crew, **given)


@functools.cache
def alone() -> Any:
    return profiled(None, also=ALSO).profile


def test_three_processes_make_the_profile_of_one(tmp_path: Path) -> None:
    told: dict[int, list[str]] = {0: [], 1: [], 2: []}
    main, *others = in_crew(
        3, lambda crew: profiled(tmp_path, crew, lambda what, *_: told[crew.rank].append(what), also=ALSO), 300
    )
    assert others == [None, None], others
    assert main.profile == alone() and main.profile.to_dict() == alone().to_dict()
    measured = [{what for what in each if what != "other processes"} for each in told.values()]
    for what in ("mapping prompt 1", "measuring prompt 3", "measuring prompt 4 at height=48, width=64"):
        assert sum(what in each for each in measured) == 1, "each prompt is of one process"
    assert len(list(tmp_path.rglob("prompt-*.safetensors"))) == 4 + 2


def test_a_job_of_two_goes_on_with_what_one_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Generations._measure

    def stopping(self: Any, prompt: int) -> None:
        if prompt == 2:
            raise ValueError("no room")
        measure(self, prompt)

    with monkeypatch.context() as patch:
        patch.setattr(Generations, "_measure", stopping)
        found = in_crew(2, lambda crew: profiled(tmp_path, crew, also=ALSO), 300)
    assert all(isinstance(each, ValueError) and str(each).endswith("no room") for each in found), found
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("prompt-*")}
    assert sorted(before) == ["prompt-000.safetensors", "prompt-001.safetensors", "prompt-003.safetensors"]
    assert profiled(tmp_path, also=ALSO).profile == alone()
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before


def test_two_processes_make_the_cache_calibration_of_one(tmp_path: Path) -> None:
    told: dict[int, list[str]] = {0: [], 1: []}
    main, other = in_crew(2, lambda crew: cache_of(tmp_path, crew, lambda what, *_: told[crew.rank].append(what)), 300)
    assert other is None and main.to_dict() == cache_of(None).to_dict()
    every = [{what for what in each if what != "other processes"} for each in told.values()]
    assert not every[0] & every[1] and len(every[0] | every[1]) == 3 + 2


def test_processes_need_one_folder_and_one_setting(tmp_path: Path) -> None:
    for found in in_crew(2, lambda crew: cache_of(None, crew), 300):
        assert isinstance(found, ValueError) and "2 processes share a calibration by its work folder" in str(found)
    for found in in_crew(2, lambda crew: cache_of(tmp_path, crew, seed=crew.rank), 300):
        assert isinstance(found, ValueError) and "holds a calibration with other settings" in str(found)
        assert "process 1 on " in str(found) or type(found) is ValueError


@pytest.mark.slow
def test_launched_they_write_the_files_of_one_process(tmp_path: Path) -> None:
    tiny_wan().save_pretrained(tmp_path / "wan")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    size = ["--frames", 17, "--height", 64, "--width", 96, "--steps", 4, "--guidance", 3, "--device", "cpu"]
    both = ["--model", tmp_path / "wan", "--prompts", tmp_path / "prompts.txt", *size, "--json"]
    commands = {"profile": ["--rows", 16, "--steps-per-band", 2, "--cost", "density", "--target-density", 0.6],
                "calibrate-cache": ["--samples", 32, "--probes", 2]}  # fmt: skip
    for name, more in commands.items():
        files = [tmp_path / f"{name}-{who}.json" for who in ("two", "one")]
        code, stdout, stderr = ended(launched(name, *both, *more, "--out", files[0]))
        assert code == 0, stderr
        values = json.loads(stdout)
        assert values["prompts"] == 3 and values["file"] == str(files[0])
        result = CliRunner().invoke(app, [name, *map(str, [*both, *more, "--out", files[1]])])
        assert result.exit_code == 0, result.output
        assert files[0].read_bytes() == files[1].read_bytes()
        assert not files[0].with_name(f"{files[0].name}.work").exists()
    code, stdout, stderr = ended(launched("profile", *both, "--target-density", 2, "--out", tmp_path / "x.json"))
    assert code == 1 and stdout == "" and stderr.count("error: density=2.0 is not a number in (0, 1]") == 1
