"""Real diffusers pipelines with random weights, built in the process: made in milliseconds, nothing read from disk."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "moves", "left", "right", "blurry"]
TEXT_DIM = 32
CLIP_PATCHES = 4


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over `WORDS` that ends each text with ``</s>``."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def tiny_text_encoder() -> UMT5EncoderModel:
    """A one-layer UMT5 encoder of width `TEXT_DIM`."""
    return UMT5EncoderModel(UMT5Config(vocab_size=len(WORDS), d_model=TEXT_DIM, d_kv=8, d_ff=TEXT_DIM, num_layers=1,
                                       num_heads=4, pad_token_id=0, eos_token_id=1))


def tiny_wan_transformer(*, layers: int = 2, heads: int = 2, head_dim: int = 64, in_channels: int = 16,
                         out_channels: int = 16, **config: Any) -> WanTransformer3DModel:
    """A Wan transformer on its own, in eval mode; draws from torch's global generator."""
    return WanTransformer3DModel(
        num_layers=layers, num_attention_heads=heads, attention_head_dim=head_dim, in_channels=in_channels,
        out_channels=out_channels, text_dim=TEXT_DIM, freq_dim=32, ffn_dim=64, rope_max_seq_len=64, **config,
    ).eval()


def tiny_wan(*, layers: int = 2, heads: int = 2, head_dim: int = 64, seed: int = 0, two_experts: bool = False,
             expand_timesteps: bool = False, image: bool = False, clip: bool = False,
             last_image: bool = False) -> WanPipeline | WanImageToVideoPipeline:
    """A Wan pipeline with random weights, in eval mode, on the CPU in fp32.

    Args:
        two_experts: Wan 2.2 A14B: `transformer` for the first half of the noise, `transformer_2` for the rest.
        expand_timesteps: Wan 2.2 TI2V-5B: a timestep per token.
        image: `WanImageToVideoPipeline` instead of `WanPipeline`.
        clip: with `image`, Wan 2.1's CLIP image tokens in cross-attention (Wan 2.2 has none).
        last_image: with `clip`, a first-last-frame transformer, whose image tokens are those of two images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        channels = 36 if image and not expand_timesteps else 16
        images = {"image_dim": 32, "added_kv_proj_dim": heads * head_dim} if clip else {}
        if last_image:
            images["pos_embed_seq_len"] = 2 * (CLIP_PATCHES + 1)

        def expert() -> WanTransformer3DModel:
            return tiny_wan_transformer(layers=layers, heads=heads, head_dim=head_dim, in_channels=channels, **images)

        parts: dict[str, Any] = {
            "tokenizer": tiny_tokenizer(), "text_encoder": tiny_text_encoder(), "vae": _vae(),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0), "transformer": expert(),
            "transformer_2": expert() if two_experts else None, "boundary_ratio": 0.75 if two_experts else None,
            "expand_timesteps": expand_timesteps,
        }  # fmt: skip
        if clip:
            parts |= {"image_encoder": _image_encoder(), "image_processor": _image_processor()}
        pipe = (WanImageToVideoPipeline if image else WanPipeline)(**parts)
    return _ready(pipe)


def tiny_hunyuanvideo(seed: int = 0) -> HunyuanVideoPipeline:
    """A HunyuanVideo pipeline with random weights; its call needs a template that crops nothing, see its tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = {"vocab_size": len(WORDS), "hidden_size": TEXT_DIM, "intermediate_size": TEXT_DIM,
                "num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}  # fmt: skip
        pipe = HunyuanVideoPipeline(
            tokenizer=tiny_tokenizer(), tokenizer_2=tiny_tokenizer(),
            text_encoder=LlamaModel(LlamaConfig(num_hidden_layers=3, **text)),
            text_encoder_2=CLIPTextModel(CLIPTextConfig(num_hidden_layers=1, projection_dim=TEXT_DIM, **text)),
            vae=AutoencoderKLHunyuanVideo(latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
                                          norm_num_groups=2, mid_block_add_attention=False),
            transformer=HunyuanVideoTransformer3DModel(
                in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=64, num_layers=1,
                num_single_layers=1, num_refiner_layers=1, mlp_ratio=1.0, text_embed_dim=TEXT_DIM,
                pooled_projection_dim=TEXT_DIM, rope_axes_dim=(24, 20, 20)),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )  # fmt: skip
    return _ready(pipe)


def tiny_cogvideox(seed: int = 0) -> CogVideoXPipeline:
    """A CogVideoX pipeline with random weights, rotary embeddings and 16 text tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = CogVideoXPipeline(
            tokenizer=tiny_tokenizer(),
            text_encoder=T5EncoderModel(T5Config(vocab_size=len(WORDS), d_model=TEXT_DIM, d_kv=8, d_ff=TEXT_DIM,
                                                 num_layers=1, num_heads=4, pad_token_id=0, eos_token_id=1)),
            vae=AutoencoderKLCogVideoX(latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
                                       norm_num_groups=2, sample_height=64, sample_width=96),
            transformer=CogVideoXTransformer3DModel(
                num_attention_heads=2, attention_head_dim=64, in_channels=4, out_channels=4, time_embed_dim=8,
                text_embed_dim=TEXT_DIM, num_layers=2, sample_height=8, sample_width=12, sample_frames=17,
                max_text_seq_length=16, use_rotary_positional_embeddings=True),
            scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing"),
        )  # fmt: skip
    return _ready(pipe)


def _ready(pipe: Any) -> Any:
    """In eval mode, without a progress bar."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wan_inputs(pipe: WanPipeline | WanImageToVideoPipeline, *, seed: int = 0, **overrides: Any) -> dict[str, Any]:
    """Arguments for one call: 5x4x6 = 120 video tokens, 4 steps with guidance, latents from `seed`.

    The generator in it is used up by a call, so ask again for each.
    """
    inputs: dict[str, Any] = {
        "prompt": "a red circle moves left", "negative_prompt": "blurry", "num_frames": 17, "height": 64, "width": 96,
        "num_inference_steps": 4, "guidance_scale": 3.0, "max_sequence_length": 16, "output_type": "np",
        "generator": torch.Generator().manual_seed(seed),
    }  # fmt: skip
    if isinstance(pipe, WanImageToVideoPipeline):
        inputs["image"] = tiny_image(0)
        if getattr(pipe.transformer.config, "pos_embed_seq_len", None):
            inputs["last_image"] = tiny_image(1)
    return inputs | overrides


def generate(pipe: WanPipeline | WanImageToVideoPipeline, **overrides: Any) -> np.ndarray:
    """Frames ``[frames, height, width, 3]`` in [0, 1] of one call with `wan_inputs`; latents if asked for."""
    frames = pipe(**wan_inputs(pipe, **overrides)).frames
    return frames.numpy() if isinstance(frames, torch.Tensor) else np.asarray(frames[0])


def tiny_image(seed: int = 0) -> Image.Image:
    """A smooth 96x64 picture."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((96, 64), Image.Resampling.BICUBIC)


def _vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def _image_encoder() -> CLIPVisionModel:
    return CLIPVisionModel(CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2, patch_size=16,
                                            num_attention_heads=2, image_size=32, projection_dim=32))


def _image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(crop_size={"height": 32, "width": 32}, size={"shortest_edge": 32})
