"""The measurement of a miniature: tables, going on after a stop, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_cogvideox, tiny_hunyuanvideo, tiny_wan

TRAINING = Path(__file__).resolve().parents[2] / "miniatures" / "training"
CALL: dict[str, Any] = {"num_frames": 17, "height": 64, "width": 96, "num_inference_steps": 1, "guidance_scale": 3.0,
                        "max_sequence_length": 16}  # fmt: skip
FAMILIES = {"wan": (tiny_wan, {}), "cogvideox": (tiny_cogvideox, {}),
            "hunyuanvideo": (tiny_hunyuanvideo, {"prompt_template": {"template": "{}", "crop_start": 0}})}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def training_on_the_path() -> Iterator[None]:
    sys.path.insert(0, str(TRAINING))
    yield
    sys.path.remove(str(TRAINING))


def saved(folder: Path, name: str = "wan", seed: int = 0) -> Path:
    """A tiny miniature of random weights in `folder`."""
    build, more = FAMILIES[name]
    build(seed=seed).save_pretrained(folder)
    (folder / "generation.json").write_text(json.dumps({**CALL, **more}))
    return folder


def run(model: Path, out: Path, *words: object) -> dict[str, Any]:
    from measure import main

    main(["--model", str(model), "--out", str(out), "--restored", "1", *map(str, words)])
    values: dict[str, Any] = json.loads(out.read_text())
    return values


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_measured(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = saved(tmp_path / name, name), tmp_path / "measured.json"
    result = run(model, out, "--count", 2, "--picture", tmp_path / "p.png")
    assert result["clips"] == len(result["answers"]) == 2 and result["call"]["num_inference_steps"] == 1
    assert set(result["right"]) == set(result["confusion"]) == {"color", "direction", "shape", "background"}
    assert result["autoencoder"]["clips"] == 1 and 0 < result["autoencoder"]["psnr_mean"] < 30
    assert result["versions"]["torch"] == torch.__version__ and result["digest"].startswith("sha256:")
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.width == 5 * 96 // 2 and sheet.height == 2 * (64 // 2 + 16)
    assert "2 clips: color" in capsys.readouterr().out


def test_a_measurement_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import measure

    model, out = saved(tmp_path / "wan"), tmp_path / "measured.json"
    whole = run(model, tmp_path / "whole.json", "--count", 3)
    looked = measure.look

    def stops(frames: np.ndarray) -> Any:
        if len(list((tmp_path / "measured.parts").glob("clip_*.json"))) == 2:
            raise KeyboardInterrupt
        return looked(frames)

    monkeypatch.setattr(measure, "look", stops)
    with pytest.raises(KeyboardInterrupt):
        run(model, out, "--count", 3)
    assert not out.exists()
    seen: list[int] = []
    monkeypatch.setattr(measure, "look", lambda frames: (seen.append(1), looked(frames))[1])
    resumed = run(model, out, "--count", 3)
    assert len(seen) == 1, "clips that were done are made again"
    for result in (whole, resumed):
        for answer in result["answers"]:
            del answer["seconds"]
    assert resumed["answers"] == whole["answers"] and resumed["confusion"] == whole["confusion"]
    monkeypatch.setattr(measure, "load_pipeline", lambda *_: pytest.fail("a done measurement loads the model"))
    assert run(model, out, "--count", 2)["clips"] == 2


def test_another_models_answers_are_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import measure

    out = tmp_path / "measured.json"
    run(saved(tmp_path / "a"), out, "--count", 1)
    before = out.read_bytes()
    for model, more in ((saved(tmp_path / "b", seed=1), ()), (tmp_path / "a", ("--steps", 2)),
                        (tmp_path / "a", ("--seed", 1)), (tmp_path / "a", ("--small",))):  # fmt: skip
        with pytest.raises(SystemExit, match="another model or setting"):
            run(model, out, "--count", 1, *more)
    monkeypatch.setattr(measure, "vision", lambda: "sharper")
    with pytest.raises(SystemExit, match="by another vision"):
        run(tmp_path / "a", out, "--count", 1)
    assert out.read_bytes() == before


def test_what_is_no_miniature_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="no generation.json"):
        run(tmp_path, tmp_path / "measured.json")
    for count in ("0", "49", "-1", "many"):
        with pytest.raises(SystemExit):
            run(tmp_path, tmp_path / "measured.json", "--count", count)
        assert "not a number of clips from 1 to 48" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_combination_is_asked_for_once_and_mixed() -> None:
    from measure import wanted_first
    from vidaccel_miniatures.captions import held_out

    wanted = wanted_first()
    assert {(w["shape"], w["color"], w["direction"], w["background"]) for w in wanted} == set(held_out())
    assert len({w["color"] for w in wanted[:12]}) >= 5 and len({w["direction"] for w in wanted[:12]}) == 4


def answer(wanted: str, seen: str | None, pieces: float | None = 0.0) -> dict[str, Any]:
    """One whose colour is the question; everything else is right."""
    rest = {"direction": "left", "shape": "circle", "background": "plain"}
    return {"wanted": {"color": wanted, **rest}, "seen": {"color": seen, **rest, "pieces": pieces}}


def test_tables_are_counted() -> None:
    from judging import judge, markdown

    seen = (("red", "red", 0.0), ("red", "purple", 0.5), ("blue", None, None), ("blue", "blue", 0.0))
    judged = judge([answer(*each) for each in seen])
    assert judged["right"] == {"color": 0.5, "direction": 1.0, "shape": 1.0, "background": 1.0}
    assert judged["confusion"]["color"] == {"red": {"red": 1, "purple": 1}, "blue": {"nothing": 1, "blue": 1}}
    assert judged["all_right"] == 0.5 and judged["with_ghosts"] == 0.25 and judged["clips"] == 4
    text = markdown(judged)
    assert "| color: wanted, seen | red | blue | purple | nothing |" in text and "| red | 1 |  | 1 |  |" in text
    with pytest.raises(ValueError, match="no answers"):
        judge([])


def test_restoration_is_measured_in_decibels(tmp_path: Path) -> None:
    """An autoencoder that makes everything grey has the PSNR of the clip against grey."""
    from measure import Measurement, wanted_first
    from vidaccel_miniatures.clips import clip_of, render

    job = Measurement(saved(tmp_path / "wan"), tmp_path / "parts", {}, 5)
    vae, found = job.pipe.vae, job.restored(0)
    vae.decode = lambda latents: type("Out", (), {"sample": torch.zeros(1, 3, 17, 64, 96)})()
    grey = job.restored(0)
    clip = render(clip_of(**wanted_first()[0], seed=5), 17, 64, 96) / 255
    assert grey["psnr"] == pytest.approx(-10 * np.log10(np.mean((clip - 0.5) ** 2)), abs=1e-3)
    assert found["psnr"] != grey["psnr"]
