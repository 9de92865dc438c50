"""The trained miniature: a complete diffusers folder of the promised shape and size, loading offline."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "miniatures"))

import torch
import vidaccel_miniatures
from diffusers import WanPipeline
from safetensors import safe_open
from vidaccel_miniatures.captions import MAX_TOKENS
from vidaccel_miniatures.clips import sample_clip


@pytest.fixture(scope="module")
def folder() -> Path:
    return vidaccel_miniatures.path("wan")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> WanPipeline:
    return WanPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)


def test_available_and_unknown() -> None:
    assert "wan" in vidaccel_miniatures.available()
    with pytest.raises(ValueError, match="'nope'; available: .*wan"):
        vidaccel_miniatures.path("nope")


def test_generation_defaults() -> None:
    defaults = vidaccel_miniatures.generation_defaults("wan")
    assert {
        "height": 144,
        "width": 208,
        "num_frames": 49,
        "max_sequence_length": 32,
    }.items() <= defaults.items()
    assert len(vidaccel_miniatures.PROMPTS) == 4


def test_size_and_storage(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20_000_000
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert len(weights) == 3 and not [file for file in files if file.suffix in (".bin", ".pt", ".ckpt")]
    for file in weights:
        with safe_open(file, "pt") as handle:
            assert {handle.get_slice(key).get_dtype() for key in handle.keys()} == {"F16"}, file  # noqa: SIM118


def test_class_names_suit_old_and_new_transformers(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKLWan"]
    assert index["text_encoder"] == ["transformers", "UMT5EncoderModel"]
    assert index["tokenizer"] == ["transformers", "PreTrainedTokenizerFast"]
    assert not [f for f in folder.rglob("*.json") if "TokenizersBackend" in f.read_text()]


def test_grid_is_long_and_ragged(pipeline: WanPipeline) -> None:
    config, defaults = pipeline.transformer.config, vidaccel_miniatures.generation_defaults("wan")
    assert config.num_layers >= 4 and (config.num_attention_heads, config.attention_head_dim) == (4, 64)
    assert tuple(config.patch_size) == (1, 2, 2)
    frames = (defaults["num_frames"] - 1) // pipeline.vae_scale_factor_temporal + 1
    rows, columns = (defaults[side] // pipeline.vae_scale_factor_spatial // 2 for side in ("height", "width"))
    assert (frames, rows, columns) == (13, 9, 13)
    assert frames * rows * columns >= 1500


def test_every_caption_word_is_known(pipeline: WanPipeline) -> None:
    texts = [sample_clip(seed).text for seed in range(200)] + list(vidaccel_miniatures.PROMPTS)
    unknown = pipeline.tokenizer.unk_token_id
    for ids in pipeline.tokenizer(texts).input_ids:
        assert len(ids) <= MAX_TOKENS and unknown not in ids
    assert unknown in pipeline.tokenizer("A purple zeppelin!").input_ids


def test_generates_a_finite_video(pipeline: WanPipeline) -> None:
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(
        "an unseen zeppelin moves left", height=48, width=64, num_frames=5, num_inference_steps=2,
        guidance_scale=3.0, max_sequence_length=MAX_TOKENS, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    assert video.shape == (1, 5, 3, 48, 64) and bool(torch.isfinite(video).all()) and video.std() > 0


def test_the_autoencoder_restores_a_clip(pipeline: WanPipeline) -> None:
    from vidaccel_miniatures.clips import render

    frames = torch.from_numpy(render(sample_clip(11), 49, 96, 144, span=(0, 9))).float()
    video = frames.permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        restored = pipeline.vae.decode(pipeline.vae.encode(video).latent_dist.mode()).sample
    psnr = -10 * torch.log10(((restored - video) / 2).square().mean())
    assert psnr > 25
