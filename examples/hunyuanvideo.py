"""HunyuanVideo, text to video: a window that slides over the clip in tiles."""

from __future__ import annotations

import torch
from common import arguments, miniature
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.utils import export_to_video

import vidaccel  # noqa: F401 (it gives pipelines enable_sparse_attention)

REPO = "hunyuanvideo-community/HunyuanVideo"
CLIP = {"height": 720, "width": 1280, "num_frames": 129, "guidance_scale": 6.0}
PROMPT = "A cat walks on the grass towards the camera, realistic"


def load() -> HunyuanVideoPipeline:
    """The real model; parts that do not work wait in the CPU's memory."""
    transformer = HunyuanVideoTransformer3DModel.from_pretrained(
        REPO, subfolder="transformer", torch_dtype=torch.bfloat16
    )
    pipe = HunyuanVideoPipeline.from_pretrained(REPO, transformer=transformer, torch_dtype=torch.float16)
    pipe.vae.enable_tiling()
    pipe.enable_model_cpu_offload()
    return pipe


args = arguments(__doc__, PROMPT, steps=50)
pipe, clip, small = miniature("hunyuanvideo") if args.miniature else (load(), CLIP, {})
pipe.enable_sparse_attention("neighborhood", density=0.3, **small)
frames = pipe(
    prompt=args.prompt, num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed), **clip,
).frames[0]  # fmt: skip
export_to_video(frames, args.out, fps=24)
print(pipe.sparse_attention_summary())
