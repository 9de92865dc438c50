"""Cosmos Predict 2, image to video: each head gets a spatial or a temporal mask, whichever suits it better."""

from __future__ import annotations

import torch
from common import NEGATIVE, arguments, miniature, pictures
from diffusers import Cosmos2VideoToWorldPipeline
from diffusers.utils import export_to_video

import vidaccel  # noqa: F401 (it gives pipelines enable_sparse_attention)

REPO = "nvidia/Cosmos-Predict2-2B-Video2World"  # or nvidia/Cosmos-Predict2-14B-Video2World
CLIP = {"height": 704, "width": 1280, "num_frames": 93, "guidance_scale": 7.0}
PROMPT = "A yellow brush scrubs a plate in a kitchen sink in circles, suds build up and the plate comes out clean"
IMAGE = "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/diffusers/yellow-scrubber.png"


def load() -> Cosmos2VideoToWorldPipeline:
    """The real model; diffusers wants the package cosmos_guardrail for it."""
    pipe = Cosmos2VideoToWorldPipeline.from_pretrained(REPO, torch_dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    return pipe


args = arguments(__doc__, PROMPT, steps=35, images=[IMAGE])
pipe, clip, small = miniature("cosmos") if args.miniature else (load(), CLIP, {})
pipe.enable_sparse_attention("svg", density=0.3, **small)
frames = pipe(
    prompt=args.prompt, image=pictures(args, clip)[0], negative_prompt=NEGATIVE, num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed), **clip,
).frames[0]  # fmt: skip
export_to_video(frames, args.out, fps=16)
print(pipe.sparse_attention_summary())
