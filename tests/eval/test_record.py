from __future__ import annotations

import json
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

import vidaccel
from vidaccel.eval import env
from vidaccel.eval.record import Record, to_json

VALUES: dict[str, Any] = {
    "kind": "demo", "seed": 3, "prompt": "a red circle", "negative_prompt": None, "model": {"name": "tiny"},
    "settings": {"height": 64}, "method": {"name": "radial", "options": {}}, "schedule": {}, "backend": "cpu",
    "layout": None, "density": None, "timing": {"speedup": 1.25}, "metrics": {"psnr": None}, "calls": {"dense": 1},
    "notes": ["größer"], "mask_png": None, "real_sizes": [], "files": {},
}  # fmt: skip


def test_capture_knows_where_it_was_made() -> None:
    record = Record.capture(**VALUES)
    age = datetime.now(timezone.utc) - datetime.fromisoformat(record.created)
    assert record.created.endswith("+00:00") and abs(age.total_seconds()) < 60
    assert record.vidaccel == vidaccel.__version__
    assert record.versions["torch"] == torch.__version__ and record.versions["diffusers"]
    assert record.device["name"] and record.device["threads"] == torch.get_num_threads()
    assert record.device["memory_gib"] is None or record.device["memory_gib"] > 0.1
    assert record.peak_memory_gib is None or 0.05 < record.peak_memory_gib < 1000


def test_written_record_is_strict_json(tmp_path: Path) -> None:
    record = Record.capture(**VALUES)
    path = record.write(tmp_path / "record.json")
    text = path.read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read == record.to_dict() and read["notes"] == ["größer"]
    assert [item.name for item in tmp_path.iterdir()] == ["record.json"]


def test_infinity_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    record = Record.capture(**{**VALUES, "timing": {"speedup": float("inf")}})
    with pytest.raises(ValueError, match="JSON"):
        record.write(tmp_path / "record.json")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="JSON"):
        to_json({"psnr": float("nan")})


def test_a_record_is_whole() -> None:
    with pytest.raises(TypeError, match="timing"):
        Record.capture(**{name: value for name, value in VALUES.items() if name != "timing"})


def test_git_revision_is_the_checkouts() -> None:
    root = Path(env.__file__).parents[2]
    told = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    if told.returncode or not (root / ".git").exists():
        assert env.git_revision() is None
    else:
        assert re.fullmatch(rf"{told.stdout.strip()}(-dirty)?", env.git_revision() or "")


def test_git_revision_of_an_installed_package_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "vidaccel" / "eval" / "env.py"
    monkeypatch.setattr(env, "__file__", str(package))
    assert env.git_revision() is None


def test_gpu_is_named_with_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Imaginary 9000")
    monkeypatch.setattr(env, "_output", lambda *command: "570.1\n570.1" if command[0] == "nvidia-smi" else None)
    assert env.device()["gpu"].startswith("Imaginary 9000, ") and env.device()["gpu"].endswith("driver 570.1")
