from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.eval.cases import plan
from vidaccel.eval.clip import Clip
from vidaccel.eval.runner import Run
from vidaccel.eval.store import Store, reference_name
from vidaccel.files import write_text

CONFIG: dict[str, Any] = {"model": "sha256:0", "prompt": "größer", "seed": 3, "guidance": 1.0}


def clip(seed: int = 0) -> Clip:
    draw = np.random.default_rng(seed)
    return Clip(draw.integers(0, 256, (5, 32, 48, 3), np.uint8), draw.standard_normal((1, 4, 2, 3, 5), np.float32))


def test_clips_come_back_bit_by_bit(tmp_path: Path) -> None:
    for kept in (clip(), Clip(clip().frames, None), Clip(None, clip().latents)):
        kept.save(tmp_path / "clip.safetensors")
        assert Clip.load(tmp_path / "clip.safetensors").same(kept)
    assert not clip(0).same(clip(1)) and not clip().same(Clip(clip().frames, None))
    assert not clip().same(Clip(clip().frames[:4], clip().latents))  # type: ignore[index]


def test_clips_are_rounded_and_finite() -> None:
    frames = np.full((2, 8, 8, 3), 0.5, np.float32)
    made = Clip.of(Run(frames, 1.0, None, None)).frames
    assert made is not None and made.dtype == np.uint8 and (made == 128).all()
    with pytest.raises(ValueError, match="finite"):
        Clip.of(Run(frames * np.nan, 1.0, None, None))
    with pytest.raises(ValueError, match="not finite"):
        Clip.of(Run(frames, 1.0, None, np.full(3, np.inf, np.float32)))


def test_references_come_back_and_only_their_own(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        assert store.reference(CONFIG) == (None, None)
        store.keep_reference(CONFIG, clip(), {"timing": {}})
        found, wrong = store.reference(CONFIG)
        assert found is not None and found.same(clip()) and wrong is None
        assert store.reference({**CONFIG, "seed": 4}) == (None, None)


@pytest.mark.parametrize("harm", ["cut", "changed", "foreign", "no config", "no clip"])
def test_damaged_references_are_not_used(tmp_path: Path, harm: str) -> None:
    with Store(tmp_path) as store:
        store.keep_reference(CONFIG, clip(), {})
        folder = store.references / reference_name(CONFIG)
        path, about = folder / "clip.safetensors", folder / "config.json"
        data = path.read_bytes()
        if harm == "cut":
            path.write_bytes(data[:-100])
        elif harm == "changed":
            clip(1).save(path)
        elif harm == "foreign":
            about.write_text(about.read_text().replace('"seed": 3', '"seed": 5'))
        else:
            (about if harm == "no config" else path).unlink()
        found, wrong = store.reference(CONFIG)
        assert found is None and wrong is not None and folder.name in wrong
        store.keep_reference(CONFIG, clip(2), {})
        again, wrong = store.reference(CONFIG)
        assert again is not None and again.same(clip(2)) and wrong is None


def test_only_one_eval_at_a_time(tmp_path: Path) -> None:
    with Store(tmp_path), pytest.raises(ValueError, match="another eval is at work"):
        Store(tmp_path).__enter__()
    with Store(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="cannot write into folder"):
        Store(tmp_path / "file").__enter__()
    with pytest.raises(ValueError, match="cannot write into folder"):
        Store(tmp_path / "file" / "below").__enter__()
    assert (tmp_path / "file").read_text() == "mine"


def test_what_a_kill_left_half_written_is_swept(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.keep_reference(CONFIG, clip(), {})
    half = tmp_path / "cells" / ".radial.part"
    half.mkdir()
    (half / "record.json").write_text("{}")
    with Store(tmp_path) as store:
        assert not half.exists() and store.records() == [] and store.reference(CONFIG)[0] is not None


def test_a_folder_that_breaks_off_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        store.keep_reference(CONFIG, clip(), {})
        monkeypatch.setattr("vidaccel.eval.store.file_digest", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.keep_reference(CONFIG, clip(1), {})
        monkeypatch.undo()
        found, _ = store.reference(CONFIG)
        assert found is not None and found.same(clip()), "the old one stays"
        assert [path.name for path in store.references.iterdir()] == [reference_name(CONFIG)]


def test_errors_are_kept_until_the_cell_is_done(tmp_path: Path) -> None:
    cell = plan()[0]

    class Record:
        def write(self, path: Path) -> None:
            write_text(path, json.dumps({"cell": cell.name}))

    with Store(tmp_path) as store:
        try:
            raise RuntimeError("out of memory")
        except RuntimeError as error:
            store.keep_error(cell, error)
        kept = store.error(cell)
        assert kept is not None and kept["type"] == "RuntimeError" and kept["message"] == "out of memory"
        assert "test_store.py" in kept["traceback"]
        assert store.record(cell) is None and store.records() == []
        store.keep_cell(cell, Record(), clip())  # type: ignore[arg-type]
        assert store.error(cell) is None and store.record(cell) == {"cell": cell.name}
        folder = store.cells / cell.name
        assert sorted(path.name for path in folder.iterdir()) == [
            "clip.safetensors", "config.json", "preview-lossy.mp4", "record.json",
        ]  # fmt: skip
        assert json.loads((folder / "config.json").read_text())["config"] == json.loads(json.dumps(cell.config))


@pytest.mark.parametrize("harm", ["another config", "no clip", "cut clip", "no record", "broken record"])
def test_a_cell_that_is_not_whole_is_not_done(tmp_path: Path, harm: str) -> None:
    cell = plan()[0]

    class Record:
        def write(self, path: Path) -> None:
            write_text(path, "{}")

    with Store(tmp_path) as store:
        store.keep_cell(cell, Record(), clip())  # type: ignore[arg-type]
        assert store.record(cell) == {}
        folder = store.cells / cell.name
        if harm == "another config":
            text = (folder / "config.json").read_text()
            (folder / "config.json").write_text(text.replace('"repeats": 1', '"repeats": 2'))
        elif harm == "cut clip":
            (folder / "clip.safetensors").write_bytes(b"cut")
        elif harm == "broken record":
            (folder / "record.json").write_text("{")
        else:
            (folder / ("record.json" if harm == "no record" else "clip.safetensors")).unlink()
        assert store.record(cell) is None
