"""Untrained miniatures: pipelines of diffusers' classes with random weights, for models that none was trained for.

They run what the real pipelines run, from the prompt to the frames, in seconds on a CPU and without a network; their
clips show nothing. Made in the process. Needs diffusers and transformers; the classes are those of diffusers 0.42.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

__all__ = ["available", "generation_defaults", "untrained"]

IMAGE, END = "<image>", "<|end_header_id|>"
WORDS = ("<pad>", "</s>", "<unk>", IMAGE, END, "a", "red", "green", "blue", "circle", "square", "moves", "up", "down")
DIM, TEXT, EYE = 32, 16, 32
"""Width of text embeddings, tokens of text, and side of the picture that an image encoder sees."""
HEADS = {"num_attention_heads": 2, "attention_head_dim": 64}
CLIP = {"height": 96, "width": 144, "num_frames": 25, "num_inference_steps": 8, "guidance_scale": 3.0,
        "max_sequence_length": TEXT}  # fmt: skip
"""Arguments of a call: 7x6x9 video tokens from a VAE that shrinks 4x8x8 and patches of 1x2x2."""
PLAIN = {"template": "{}", "crop_start": 0}
WITH_IMAGE = {"template": f"{IMAGE} {END} {END} {{}} a a a {END}", "crop_start": 3, "image_emb_start": 0,
              "image_emb_end": 4, "image_emb_len": 4}  # fmt: skip
"""The form in which HunyuanVideo's pipeline looks for image tokens: three headers, four tokens after the prompt."""


def available() -> tuple[str, ...]:
    """The names that `untrained` knows."""
    return tuple(_PIPELINES)


def untrained(name: str, seed: int = 0) -> Any:
    """A pipeline with random weights, in eval mode, on the CPU in fp32.

    Args:
        name: one of `available`.
        seed: of the weights; the global generator is left as it was.

    Raises:
        ValueError: no such pipeline.
    """
    make, _ = _known(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = make()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    return pipe


def generation_defaults(name: str) -> dict[str, Any]:
    """Arguments of the pipeline's call that suit `name`: size, frames, steps, guidance, what it needs of its prompt.

    Raises:
        ValueError: no such pipeline.
    """
    return dict(_known(name)[1])


def _known(name: str) -> tuple[Callable[[], Any], Mapping[str, Any]]:
    if name not in _PIPELINES:
        raise ValueError(f"no untrained miniature named {name!r}; available: {', '.join(_PIPELINES)}")
    return _PIPELINES[name]


class _Lenient:
    """In the place of NVIDIA's safety checker, a model of gigabytes: noise offends nobody."""

    def to(self, device: Any) -> None:
        """It is nowhere."""

    def check_text_safety(self, text: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def _tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        # Of a chat, what the user says.
        chat_template="{{ messages[1].content }}",
    )  # fmt: skip


def _t5(kind: str = "T5", dim: int = DIM) -> Any:
    """T5's encoder, or UMT5's."""
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(WORDS), d_model=dim, d_kv=8, d_ff=dim, num_layers=1,
                                                    num_heads=4, pad_token_id=0, eos_token_id=1)  # fmt: skip
    return getattr(transformers, f"{kind}EncoderModel")(config)


def _text(**more: Any) -> dict[str, Any]:
    """Of a config, what decoders and CLIP have in common."""
    return {"vocab_size": len(WORDS), "hidden_size": DIM, "intermediate_size": DIM, "num_attention_heads": 4,
            "num_hidden_layers": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, **more}  # fmt: skip


def _eye(layers: int = 2) -> dict[str, Any]:
    """Of a config, an image encoder that makes four tokens."""
    return {"hidden_size": DIM, "intermediate_size": DIM, "num_hidden_layers": layers, "patch_size": EYE // 2,
            "num_attention_heads": 2, "image_size": EYE, "projection_dim": DIM}  # fmt: skip


def _picture_processor() -> Any:
    return transformers.CLIPImageProcessor(crop_size={"height": EYE, "width": EYE}, size={"shortest_edge": EYE})


def _t5_text() -> dict[str, Any]:
    return {"tokenizer": _tokenizer(), "text_encoder": _t5()}


def _wan_vae(channels: int = 16) -> Any:
    levels = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    return diffusers.AutoencoderKLWan(base_dim=4, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **levels)


def _wan_parts() -> dict[str, Any]:
    text = {"tokenizer": _tokenizer(), "text_encoder": _t5("UMT5")}
    return {**text, "vae": _wan_vae(), "scheduler": FlowMatch(shift=3.0)}


def _wan_transformer(kind: str = "Wan", **config: Any) -> Any:
    """Of Wan, or of a class that was made from it."""
    size = {**HEADS, "num_layers": 2, "in_channels": 16, "out_channels": 16, "text_dim": DIM, "freq_dim": DIM,
            "ffn_dim": 64, "rope_max_seq_len": 64}  # fmt: skip
    return getattr(diffusers, f"{kind}Transformer3DModel")(**size | config)


def _wan_i2v() -> Any:
    """Of Wan 2.1: latents of the image beside those of the clip, and image tokens in the cross-attention."""
    return diffusers.WanImageToVideoPipeline(
        **_wan_parts(), transformer=_wan_transformer(in_channels=36, image_dim=DIM, added_kv_proj_dim=128),
        image_encoder=transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_eye())),
        image_processor=_picture_processor(),
    )  # fmt: skip


def _wan22() -> Any:
    """Two experts, of which each does some of the steps."""
    return diffusers.WanPipeline(
        **_wan_parts(), transformer=_wan_transformer(), transformer_2=_wan_transformer(), boundary_ratio=0.875
    )  # fmt: skip


def _wan_vace() -> Any:
    transformer = _wan_transformer("WanVACE", num_layers=3, vace_layers=[0, 2], vace_in_channels=96)
    return diffusers.WanVACEPipeline(**_wan_parts(), transformer=transformer)


def _skyreels() -> Any:
    return diffusers.SkyReelsV2Pipeline(**_wan_parts(), transformer=_wan_transformer("SkyReelsV2"))


def _hunyuan_parts() -> dict[str, Any]:
    """Of HunyuanVideo and FramePack: text encoders and VAE."""
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2,
        mid_block_add_attention=False,
    )  # fmt: skip
    clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(**_text(projection_dim=DIM)))
    return {"tokenizer": _tokenizer(), "text_encoder": transformers.LlamaModel(transformers.LlamaConfig(**_text())),
            "tokenizer_2": _tokenizer(), "text_encoder_2": clip, "vae": vae, "scheduler": FlowMatch(shift=7.0)}


def _hunyuan_size(**config: Any) -> dict[str, Any]:
    """Of a transformer's config: two dual-stream and two single-stream blocks."""
    return {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2, "mlp_ratio": 1.0,
            "num_refiner_layers": 1, "text_embed_dim": DIM, "pooled_projection_dim": DIM,
            "rope_axes_dim": (24, 20, 20), **config}  # fmt: skip


def _hunyuan_i2v() -> Any:
    """The image is the first frame, and the language model sees it."""
    sees = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_eye()), text_config=transformers.LlamaConfig(**_text()),
        image_token_index=WORDS.index(IMAGE), pad_token_id=0,
    ))  # fmt: skip
    config = _hunyuan_size(image_condition_type="token_replace", guidance_embeds=True)
    return diffusers.HunyuanVideoImageToVideoPipeline(
        **_hunyuan_parts() | {"text_encoder": sees}, image_processor=_picture_processor(),
        transformer=diffusers.HunyuanVideoTransformer3DModel(**config),
    )  # fmt: skip


def _framepack() -> Any:
    config = _hunyuan_size(has_image_proj=True, image_proj_dim=DIM, has_clean_x_embedder=True)
    return diffusers.HunyuanVideoFramepackPipeline(
        **_hunyuan_parts(), transformer=diffusers.HunyuanVideoFramepackTransformer3DModel(**config),
        image_encoder=transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_eye(1))),
        feature_extractor=transformers.SiglipImageProcessor(size={"height": EYE, "width": EYE}),
    )  # fmt: skip


def _hunyuan15() -> Any:
    """From text; the tokens of an image are there, and hidden."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    qwen = transformers.Qwen2_5_VLTextConfig(**_text(num_key_value_heads=4, rope_parameters=rope))
    config = {**HEADS, "in_channels": 9, "out_channels": 4, "num_layers": 3, "num_refiner_layers": 1, "mlp_ratio": 1.0,
              "text_embed_dim": DIM, "text_embed_2_dim": 24, "image_embed_dim": DIM, "rope_axes_dim": (24, 20, 20),
              "task_type": "t2v"}  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1)
    pipe = diffusers.HunyuanVideo15Pipeline(
        tokenizer=_tokenizer(), text_encoder=transformers.Qwen2_5_VLTextModel(qwen), tokenizer_2=_tokenizer(),
        text_encoder_2=_t5(dim=24), vae=vae, scheduler=FlowMatch(shift=7.0),
        transformer=diffusers.HunyuanVideo15Transformer3DModel(**config),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=6.0),
    )  # fmt: skip
    pipe.prompt_template_encode_start_idx, pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 0, TEXT, 8
    pipe.vision_num_semantic_tokens = 6
    return pipe


def _cogvideox_i2v() -> Any:
    vae = diffusers.AutoencoderKLCogVideoX(latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
                                           norm_num_groups=2, sample_height=96, sample_width=144)  # fmt: skip
    transformer = diffusers.CogVideoXTransformer3DModel(
        **HEADS, in_channels=8, out_channels=4, time_embed_dim=8, text_embed_dim=DIM, num_layers=3, sample_height=12,
        sample_width=18, sample_frames=25, max_text_seq_length=TEXT, use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    return diffusers.CogVideoXImageToVideoPipeline(**_t5_text(), vae=vae, transformer=transformer, scheduler=scheduler)


def _ltx() -> Any:
    """Its VAE makes a token of 4x16x16 pixels."""
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, patch_size=4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, patch_size_t=1,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
    )  # fmt: skip
    transformer = diffusers.LTXVideoTransformer3DModel(
        **HEADS, in_channels=8, out_channels=8, cross_attention_dim=128, num_layers=2, caption_channels=DIM
    )  # fmt: skip
    scheduler = FlowMatch(use_dynamic_shifting=True)
    return diffusers.LTXPipeline(**_t5_text(), vae=vae, transformer=transformer, scheduler=scheduler)


def _mochi() -> Any:
    vae = diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
        add_attention_block=(False,) * 5,
    )  # fmt: skip
    transformer = diffusers.MochiTransformer3DModel(
        **HEADS, num_layers=3, pooled_projection_dim=64, in_channels=12, text_embed_dim=DIM, time_embed_dim=16,
        max_sequence_length=TEXT,
    )  # fmt: skip
    scheduler = FlowMatch(invert_sigmas=True)
    return diffusers.MochiPipeline(**_t5_text(), vae=vae, transformer=transformer, scheduler=scheduler)


def _cosmos() -> Any:
    """Of Predict 2; without the mask of padding, which takes torchvision to resize."""
    transformer = diffusers.CosmosTransformer3DModel(
        **HEADS, in_channels=5, out_channels=4, num_layers=2, mlp_ratio=1.0, text_embed_dim=DIM, adaln_lora_dim=8,
        max_size=(16, 32, 32), concat_padding_mask=False, extra_pos_embed_type=None,
    )  # fmt: skip
    return diffusers.Cosmos2VideoToWorldPipeline(
        **_t5_text(), vae=_wan_vae(4), transformer=transformer, scheduler=FlowMatch(use_karras_sigmas=True),
        safety_checker=_Lenient(),
    )  # fmt: skip


_PIPELINES: dict[str, tuple[Callable[[], Any], Mapping[str, Any]]] = {
    "wan_i2v": (_wan_i2v, CLIP | {"max_sequence_length": 512}),
    "wan22_t2v": (_wan22, CLIP | {"guidance_scale_2": 2.0}),
    "wan_vace": (_wan_vace, CLIP),
    "skyreels_v2": (_skyreels, CLIP),
    "hunyuanvideo_i2v": (_hunyuan_i2v, CLIP | {"prompt_template": WITH_IMAGE}),
    "framepack": (_framepack, CLIP | {"prompt_template": PLAIN, "latent_window_size": 7}),
    "hunyuanvideo15": (_hunyuan15, {name: CLIP[name] for name in tuple(CLIP)[:4]}),
    "cogvideox_i2v": (_cogvideox_i2v, CLIP),
    "ltx": (_ltx, CLIP | {"width": 160}),
    "mochi": (_mochi, CLIP | {"num_frames": 37}),
    "cosmos": (_cosmos, CLIP),
}
