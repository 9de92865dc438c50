"""Classes that are known and not supported say why, and what they say is so in the installed diffusers."""

from __future__ import annotations

import inspect
import re
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    FluxTransformer2DModel,
    LatteTransformer3DModel,
    ModelMixin,
    SanaVideoTransformer3DModel,
    UNet2DModel,
)
from diffusers.models.cache_utils import CacheMixin
from torch import nn

import vidaccel
from tests.pipelines.cases import NEVER_DENSE, forward
from vidaccel.pipelines import supported_classes
from vidaccel.pipelines.refused import IMAGE, IMAGES, REFUSED, SOUND, SOUNDS, UNET, refusal

SPARSE: dict[str, Any] = {"min_tokens": 0, "num_inference_steps": 4, "schedule": NEVER_DENSE}


def made() -> list[str]:
    """Names of all transformer classes that the installed diffusers has."""
    named = [name for name in dir(diffusers) if re.search("Transformer|DiT", name)]
    found = {name: getattr(diffusers, name) for name in named if not re.search("Pipeline|ControlNet|Vae", name)}
    return [name for name, cls in found.items() if inspect.isclass(cls) and issubclass(cls, ModelMixin)]


def test_every_transformer_of_diffusers_is_supported_or_refused_with_a_reason() -> None:
    supported = {cls.__name__ for cls in supported_classes()}
    assert len(supported) >= 15
    for name in made():
        assert (name in supported) != (refusal(name) is not None), name


def test_what_is_refused_exists_and_says_what_is_supported() -> None:
    supported = {cls.__name__ for cls in supported_classes()}
    gone = [name for name in (*REFUSED, *IMAGES, *SOUNDS) if not hasattr(diffusers, name)]
    assert not gone, f"not in this diffusers: {gone}"
    for name, each in REFUSED.items():
        named = re.findall(r"\b(\w+(?:Model|Transformer))\b", each.instead)
        assert set(named) <= supported, name
        assert ("caches run on it" in each.instead) <= issubclass(getattr(diffusers, name), CacheMixin)
    for name in re.findall(r"\w+CacheConfig", IMAGE.instead):
        assert hasattr(diffusers, name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("FluxTransformer2DModel", IMAGE), ("JoyImageEditTransformer3DModel", IMAGE), ("UNetMotionModel", UNET),
     ("UNet3DConditionModel", UNET), ("AceStepTransformer1DModel", SOUND), ("StableAudioDiTModel", SOUND),
     ("LatteTransformer3DModel", REFUSED["LatteTransformer3DModel"]), ("WanTransformer3DModel", None),
     ("SomebodysTransformer3DModel", None)],
)  # fmt: skip
def test_kinds_are_told_by_name(name: str, expected: Any) -> None:
    assert refusal(name) is expected


def latte() -> nn.Module:
    torch.manual_seed(1)
    return LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=64, in_channels=4, out_channels=4, num_layers=1, caption_channels=16,
        cross_attention_dim=128, sample_size=8, patch_size=2, video_length=5,
    ).eval()  # fmt: skip


def sana() -> nn.Module:
    return SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, caption_channels=16,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32,
    )  # fmt: skip


def test_enable_says_why_and_changes_nothing() -> None:
    flux = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=16, joint_attention_dim=16,
        pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    for transformer, why in ((latte(), "within a frame or along one place"), (sana(), "self-attention is linear"),
                             (flux, "single images")):  # fmt: skip
        name = type(transformer).__name__
        with pytest.raises(ValueError, match=f"^{name} is not supported: .*{why}"):
            vidaccel.enable(transformer, "radial", **SPARSE)
        with pytest.raises(ValueError, match=f"^{name} is not supported: "):
            vidaccel.enable(transformer, None, cache="easycache")
        assert not transformer._forward_pre_hooks


def test_generic_does_not_get_round_it() -> None:
    with pytest.raises(ValueError, match="SanaLinearAttnProcessor3_0 of transformer_blocks.0.attn1 calls neither"):
        vidaccel.enable(sana(), "radial", **SPARSE, family="generic")
    transformer = latte()
    call = {"hidden_states": torch.randn(1, 4, 5, 8, 8), "timestep": torch.tensor([5]),
            "encoder_hidden_states": torch.randn(1, 6, 16)}  # fmt: skip
    about = vidaccel.Generic(sites=("transformer_blocks.*.attn1", "temporal_transformer_blocks.*.attn1"))
    with (
        vidaccel.enable(transformer, "random", density=0.5, block=16, **SPARSE, family=about),
        pytest.raises(RuntimeError, match="transformer_blocks.0.attn1 attends to 16 tokens, .* 5x4x4, is 80"),
    ):
        forward(transformer, call)


def test_pipelines_with_a_unet() -> None:
    unet = UNet2DModel(sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                       down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip
    with pytest.raises(ValueError, match="DDPMPipeline has no video transformer; its UNet2DModel is not supp"):
        vidaccel.enable(DDPMPipeline(unet, DDPMScheduler()), "radial")
    with pytest.raises(ValueError, match="^UNet2DModel is not supported: it is a UNet"):
        vidaccel.enable(unet, "radial", **SPARSE)
