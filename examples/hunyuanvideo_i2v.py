"""HunyuanVideo, image to video: a static mask; tokens of the image and the text are always kept."""

from __future__ import annotations

import torch
from common import arguments, miniature, pictures
from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.utils import export_to_video

import vidaccel  # noqa: F401 (it gives pipelines enable_sparse_attention)

REPO = "hunyuanvideo-community/HunyuanVideo-I2V"
CLIP = {"height": 720, "width": 1280, "num_frames": 129, "guidance_scale": 6.0}
PROMPT = "A man with short gray hair plays a red electric guitar on a dark stage"
IMAGE = "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/diffusers/guitar-man.png"


def load() -> HunyuanVideoImageToVideoPipeline:
    """The real model; parts that do not work wait in the CPU's memory."""
    transformer = HunyuanVideoTransformer3DModel.from_pretrained(
        REPO, subfolder="transformer", torch_dtype=torch.bfloat16
    )
    pipe = HunyuanVideoImageToVideoPipeline.from_pretrained(REPO, transformer=transformer, torch_dtype=torch.float16)
    pipe.vae.enable_tiling()
    pipe.enable_model_cpu_offload()
    return pipe


args = arguments(__doc__, PROMPT, steps=50, images=[IMAGE])
pipe, clip, small = miniature("hunyuanvideo_i2v") if args.miniature else (load(), CLIP, {})
pipe.enable_sparse_attention("radial", **small)
frames = pipe(
    prompt=args.prompt, image=pictures(args, clip)[0], num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed), **clip,
).frames[0]  # fmt: skip
export_to_video(frames, args.out, fps=24)
print(pipe.sparse_attention_summary())
