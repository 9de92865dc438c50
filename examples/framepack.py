"""FramePack, image to video window by window: what came before a window is always kept."""

from __future__ import annotations

import torch
from common import arguments, miniature, pictures
from diffusers import HunyuanVideoFramepackPipeline, HunyuanVideoFramepackTransformer3DModel
from diffusers.utils import export_to_video
from transformers import SiglipImageProcessor, SiglipVisionModel

import vidaccel  # noqa: F401 (it gives pipelines enable_sparse_attention)

REPO = "lllyasviel/FramePackI2V_HY"
OTHER_PARTS = "hunyuanvideo-community/HunyuanVideo"
VISION = "lllyasviel/flux_redux_bfl"
CLIP = {"height": 832, "width": 480, "num_frames": 91, "guidance_scale": 9.0}
PROMPT = "A penguin dances in the snow"
IMAGE = "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/diffusers/penguin.png"


def load() -> HunyuanVideoFramepackPipeline:
    """The real model; parts that do not work wait in the CPU's memory."""
    eyes = SiglipVisionModel.from_pretrained(VISION, subfolder="image_encoder", torch_dtype=torch.float16)
    transformer = HunyuanVideoFramepackTransformer3DModel.from_pretrained(REPO, torch_dtype=torch.bfloat16)
    pipe = HunyuanVideoFramepackPipeline.from_pretrained(
        OTHER_PARTS, transformer=transformer, image_encoder=eyes, torch_dtype=torch.float16,
        feature_extractor=SiglipImageProcessor.from_pretrained(VISION, subfolder="feature_extractor"),
    )  # fmt: skip
    pipe.vae.enable_tiling()
    pipe.enable_model_cpu_offload()
    return pipe


args = arguments(__doc__, PROMPT, steps=30, images=[IMAGE])
pipe, clip, small = miniature("framepack") if args.miniature else (load(), CLIP, {})
pipe.enable_sparse_attention("radial", density=0.5, **small)
frames = pipe(
    prompt=args.prompt, image=pictures(args, clip)[0], num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed), **clip,
).frames[0]  # fmt: skip
export_to_video(frames, args.out, fps=30)
print(pipe.sparse_attention_summary())
