"""The trained miniatures: complete diffusers folders of the promised shape and size, loading offline."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "miniatures"))

import torch
import vidaccel_miniatures
from diffusers import DiffusionPipeline
from safetensors import safe_open
from vidaccel_miniatures.captions import MAX_TOKENS
from vidaccel_miniatures.clips import render, sample_clip

CLASSES = {
    "wan": ("WanPipeline", "WanTransformer3DModel", "AutoencoderKLWan", "UMT5EncoderModel"),
    "hunyuanvideo": (
        "HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel", "AutoencoderKLHunyuanVideo", "LlamaModel"
    ),
    "cogvideox": ("CogVideoXPipeline", "CogVideoXTransformer3DModel", "AutoencoderKLCogVideoX", "T5EncoderModel"),
}  # fmt: skip
SCHEDULERS = {"cogvideox": "CogVideoXDDIMScheduler"}


@pytest.fixture(scope="module", params=list(CLASSES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str) -> Path:
    return vidaccel_miniatures.path(name)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_available_and_unknown() -> None:
    assert set(vidaccel_miniatures.available()) == set(CLASSES)
    with pytest.raises(ValueError, match="'nope'; available: .*wan"):
        vidaccel_miniatures.path("nope")


def test_generation_defaults(name: str) -> None:
    defaults = vidaccel_miniatures.generation_defaults(name)
    sizes = {"height": 144, "width": 208, "num_frames": 49, "max_sequence_length": 32, "num_inference_steps": 20}
    assert sizes.items() <= defaults.items()
    assert len(vidaccel_miniatures.PROMPTS) == 4


def test_size_and_storage(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20_000_000
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert len(weights) >= 3 and not [file for file in files if file.suffix in (".bin", ".pt", ".ckpt")]
    for file in weights:
        with safe_open(file, "pt") as handle:
            assert {handle.get_slice(key).get_dtype() for key in handle.keys()} == {"F16"}, file  # noqa: SIM118


def test_all_together_are_small() -> None:
    folders = [vidaccel_miniatures.path(name) for name in vidaccel_miniatures.available()]
    assert sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file()) <= 55_000_000


def test_class_names_suit_old_and_new_transformers(name: str, folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    pipeline, transformer, vae, encoder = CLASSES[name]
    assert index["_class_name"] == pipeline
    assert index["transformer"] == ["diffusers", transformer] and index["vae"] == ["diffusers", vae]
    assert index["text_encoder"] == ["transformers", encoder]
    assert index["tokenizer"] == ["transformers", "PreTrainedTokenizerFast"]
    assert index["scheduler"] == ["diffusers", SCHEDULERS.get(name, "FlowMatchEulerDiscreteScheduler")]
    assert not [f for f in folder.rglob("*.json") if "TokenizersBackend" in f.read_text()]


def test_grid_is_long_and_ragged(name: str, pipeline: Any) -> None:
    config, defaults = pipeline.transformer.config, vidaccel_miniatures.generation_defaults(name)
    layers = config.num_layers + config.get("num_single_layers", 0)
    assert layers >= 4 and (config.num_attention_heads, config.attention_head_dim) == (4, 64)
    assert tuple(config.patch_size)[1:] == (2, 2) if name == "wan" else config.patch_size == 2
    frames = (defaults["num_frames"] - 1) // pipeline.vae_scale_factor_temporal + 1
    rows, columns = (defaults[side] // pipeline.vae_scale_factor_spatial // 2 for side in ("height", "width"))
    assert (frames, rows, columns) == (13, 9, 13)
    assert frames * rows * columns >= 1500


def test_every_caption_word_is_known(pipeline: Any) -> None:
    texts = [sample_clip(seed).text for seed in range(500)] + list(vidaccel_miniatures.PROMPTS)
    unknown = pipeline.tokenizer.unk_token_id
    for ids in pipeline.tokenizer(texts).input_ids:
        assert len(ids) <= MAX_TOKENS and unknown not in ids
    assert unknown in pipeline.tokenizer("A purple zeppelin!").input_ids


def test_training_is_documented(folder: Path) -> None:
    facts = json.loads((folder / "training.json").read_text())
    for run in facts["transformer"]:
        assert run["step"] > 100 and run["seconds"] > 60 and {"seed", "workers", "device"} <= set(run)
    assert facts["autoencoder"]["psnr"] > 20


def test_generates_a_finite_video(name: str, pipeline: Any) -> None:
    kept = {key: value for key, value in vidaccel_miniatures.generation_defaults(name).items()
            if key not in ("height", "width", "num_frames", "num_inference_steps")}  # fmt: skip
    video = pipeline("an unseen zeppelin moves left", height=48, width=64, num_frames=9, num_inference_steps=2,
                     output_type="pt", generator=torch.Generator().manual_seed(0), **kept).frames  # fmt: skip
    assert video.shape == (1, 9, 3, 48, 64) and bool(torch.isfinite(video).all()) and video.std() > 0


def test_words_matter(name: str, pipeline: Any) -> None:
    """No prompt word is cropped away on its way to the transformer: each changes what the transformer gets."""
    kept = {key: value for key, value in vidaccel_miniatures.generation_defaults(name).items()
            if key in ("max_sequence_length", "prompt_template")}  # fmt: skip
    words = ["a", "red", "circle", "moves", "left", "over", "soft", "clouds"]
    changed = [" ".join([*words[:i], "yellow", *words[i + 1 :]]) for i in range(len(words))]
    base, *others = (pipeline.encode_prompt(text, **kept)[0] for text in (" ".join(words), *changed))
    assert all((other - base).abs().max() > 0.1 for other in others)


def test_the_autoencoder_restores_a_clip(pipeline: Any) -> None:
    frames = torch.from_numpy(render(sample_clip(11), 49, 96, 144, span=(0, 9))).float()
    video = frames.permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        restored = pipeline.vae.decode(pipeline.vae.encode(video).latent_dist.mode()).sample
    psnr = -10 * torch.log10(((restored - video) / 2).square().mean())
    assert psnr > 22
