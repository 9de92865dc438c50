from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vidaccel
from tests.tiny import generate, tiny_wan
from vidaccel import miniature


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for `vidaccel_miniatures` whose "wan" is a tiny pipeline in fp16; its folder."""
    folder = tmp_path / "wan"
    tiny_wan(seed=3).to(torch.float16).save_pretrained(folder)
    fake = SimpleNamespace(available=lambda: ["wan"], path=lambda name: folder,
                           generation_defaults=lambda name: {"height": 64}, PROMPTS=["a red circle"])  # fmt: skip
    monkeypatch.setitem(sys.modules, "vidaccel_miniatures", fake)
    return folder


def test_miniature_loads_in_one_dtype_and_runs(installed: Path, recwarn: pytest.WarningsRecorder) -> None:
    pipe = vidaccel.load_miniature("wan")
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder)
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.float32}
    assert all(not part.training for part in parts)
    frames = generate(pipe, num_inference_steps=1)
    assert frames.shape == (17, 64, 96, 3) and np.isfinite(frames).all()
    assert not [warning for warning in recwarn if "torch_dtype" in str(warning.message)]


def test_wan_keeps_its_vae_in_fp32(installed: Path) -> None:
    pipe = vidaccel.load_miniature("wan", torch_dtype=torch.bfloat16)
    dtypes = {name: getattr(pipe, name).dtype for name in ("transformer", "text_encoder", "vae")}
    assert dtypes == {"transformer": torch.bfloat16, "text_encoder": torch.bfloat16, "vae": torch.float32}


def test_names_resolve(installed: Path, tmp_path: Path) -> None:
    assert miniature.resolve_model("miniature:wan") == str(installed)
    assert miniature.resolve_model(str(installed)) == str(installed)
    assert miniature.resolve_model("Wan-AI/Wan2.1-T2V-14B-Diffusers") == "Wan-AI/Wan2.1-T2V-14B-Diffusers"
    assert miniature.available() == ["wan"] and miniature.generation_defaults("wan") == {"height": 64}


def test_what_names_no_model_is_refused(installed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'nope'; choose wan"):
        miniature.resolve_model("miniature:nope")
    with pytest.raises(ValueError, match="has no model_index.json"):
        miniature.resolve_model(str(tmp_path))
    (tmp_path / "file").write_text("")
    for wrong in (str(tmp_path / "file"), str(tmp_path / "absent"), "wan", "", "a/b/c"):
        with pytest.raises(ValueError, match="neither a pipeline's folder nor a repository id"):
            miniature.resolve_model(wrong)


def test_a_broken_folder_is_one_error(installed: Path) -> None:
    (installed / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        miniature.load_pipeline(str(installed), torch.float32)


def test_a_broken_index_is_one_error(installed: Path) -> None:
    (installed / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        miniature.model_index(str(installed))


def test_index_names_the_classes(installed: Path) -> None:
    index = miniature.model_index(str(installed))
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"] and index["_class_name"] == "WanPipeline"
    assert json.loads((installed / "model_index.json").read_text())["transformer"] == index["transformer"]


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vidaccel_miniatures", None)
    assert miniature.available() == []
    with pytest.raises(ValueError, match=r"pip install 'vidaccel\[demo\]'"):
        vidaccel.load_miniature("wan")
