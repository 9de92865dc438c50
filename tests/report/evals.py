"""Folders of evals, made by hand: records of every field, and clips of moving shapes."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidaccel.eval.clip import Clip
from vidaccel.eval.metrics import metric_names
from vidaccel.eval.record import CellRecord

PROMPTS = ("a red disc over a board", "a blue square over a board")
EMPTY = {item.name: None for item in dataclasses.fields(CellRecord)}
MAP = {"layers": 3, "steps": [
    {"kinds": "DDD", "density": [1.0, 1.0, 1.0]}, {"kinds": "DSS", "density": [1.0, 0.25, 0.35]},
    {"kinds": "RRR", "density": [None] * 3}, {"kinds": "PMS", "density": [None, 0.6, 0.3]},
]}  # fmt: skip
SPLIT = {
    "dense": {"text": 0.5, "plan": 0.0, "permute": 0.0, "attention": 6.0, "rest": 2.5, "vae": 1.0},
    "fast": {"text": 0.5, "plan": 0.25, "permute": 0.25, "attention": 2.0, "rest": 2.0, "vae": 1.0},
    "note": "one run of each",
}  # fmt: skip


def record(label: str = "radial", density: float | None = 0.3, *, psnr: float | None = 30.0, speed: float | None = 2.0,
           prompt: int = 0, seed: int = 0, model: str = "miniature:wan", latents: bool = False,
           baseline: str | None = None, cache: str = "none", sparse: bool = True, **values: Any) -> dict[str, Any]:
    """The record of one cell; `psnr` None stands for a clip identical to its reference."""
    metrics: dict[str, Any] = {name: None for each in metric_names() for name in (each, f"{each}_reason")}
    metrics |= {"identical": psnr is None, "latent_error": 0.0 if psnr is None else 10 ** (-psnr / 20)}
    if not latents:
        metrics |= {"psnr": psnr, "psnr_reason": "the clips are identical" if psnr is None else None,
                    "ssim": 1.0 if psnr is None else 0.9}
    name = baseline or label
    row = f"{model} {name} of {label} {density} {cache}"
    made = {
        "kind": "cell", "created": f"2026-01-02T03:04:0{seed}+00:00", "vidaccel": "0.1.0", "git": "abc123",
        "seed": seed, "prompt": PROMPTS[prompt], "model": {"name": model, "digest": "sha256:0"},
        "settings": {"width": 208, "height": 144, "num_frames": 49, "num_inference_steps": 20, "fps": 16.0,
                     "output": "latent" if latents else "np"},
        "device": {"name": "Some CPU", "threads": 1, "gpu": None},
        "versions": {"torch": "2.13.0", "diffusers": "0.42.1", "vidaccel": "0.1.0"},
        "method": {"name": name, "options": {"decay": 0.2}}, "schedule": {"dense_first_steps": 0.25},
        "backend": "cpu", "density": {"video_density": 0.31, "all_calls": 0.6} if sparse else None,
        "timing": {"speedup": speed, "dense": [10.0], "fast": [5.0]}, "metrics": metrics, "calls": {}, "notes": [],
        "files": {"clip": "clip.safetensors"}, "cell": f"cell-{zlib.crc32(row.encode())}-{prompt}-{seed}",
        "label": f"{baseline} for {label}" if baseline else label, "requested_density": density, "cache": cache,
        "baseline": None if baseline is None else {"kind": baseline, "label": label, "of": "c", "of_steps": 20},
        "reference": f"reference-{prompt}-{seed}", "row": row,
        "cached": None if cache == "none" else {"blocks_share": 0.5, "setting": {"name": "easycache"}},
    }  # fmt: skip
    return {**EMPTY, **made, **values}


def dense(**values: Any) -> dict[str, Any]:
    return record("dense", None, **{"psnr": None, "speed": 1.0, "sparse": False, **values})


def eval_of_all() -> list[dict[str, Any]]:
    """Every kind of row over both prompts, and a model of which there are only latents."""
    rows: list[dict[str, Any]] = []
    cache = "easycache(threshold=0.1)"
    for prompt, shift in enumerate((0.0, 1.5)):
        rows.append(dense(prompt=prompt))
        for label, density, psnr, speed, more in (
            ("radial", 0.3, 30.0, 1.8, {"map": MAP, "split": SPLIT}), ("radial", 0.5, 34.0, 1.4, {}),
            ("radial", 0.3, 24.0, 1.7, {"baseline": "fewer-steps", "sparse": False}),
            ("radial", 0.3, 18.0, 1.75, {"baseline": "random"}),
            (f"dense+{cache}", None, 33.0, 1.9, {"sparse": False, "cache": cache}),
            (f"radial+{cache}", 0.3, 29.0, 2.6, {"cache": cache}),
        ):  # fmt: skip
            rows.append(record(label, density, psnr=psnr + shift, speed=speed + shift / 20, prompt=prompt, **more))
    rows += [record("svg", 0.25, model="org/other", latents=True, psnr=20.0), dense(model="org/other", latents=True)]
    return rows


def write(folder: Path, records: Sequence[dict[str, Any]], frames: Sequence[np.ndarray] = ()) -> Path:
    """An eval's folder; of `frames`, clips, the first is every reference and the others those of the cells in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    for at, each in enumerate(records):
        if not frames or each["settings"]["output"] == "latent":
            continue
        own = 0 if each["metrics"]["identical"] else 1 + at % (len(frames) - 1)
        for part, clip in (("cells/" + each["cell"], frames[own]), ("references/" + each["reference"], frames[0])):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Clip(clip, None).save(folder / part / "clip.safetensors")
    return folder
