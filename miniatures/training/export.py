"""Put what was trained together as a diffusers folder, and draw a grid of samples to look at.

python miniatures/training/export.py --work RUN
python miniatures/training/export.py --grid samples.png
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from common import FRAMES, LARGE, SMALL, WEIGHTS, load_state
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
from text import build_text_encoder, build_tokenizer
from train_dit import SHIFT, build

from vidaccel_miniatures import PROMPTS
from vidaccel_miniatures.captions import MAX_TOKENS

DEFAULTS = {
    "height": LARGE[0], "width": LARGE[1], "num_frames": FRAMES, "num_inference_steps": 20,
    "guidance_scale": 3.0, "max_sequence_length": MAX_TOKENS,
}  # fmt: skip

# What `enable_sparse_attention()` does on this model: 16-token blocks give its 1,521 tokens as many blocks
# as a real model has.
PROFILE = {
    "format": 1, "method": "radial", "options": {"block": 16}, "min_tokens": 0,
    "source": "16-token blocks, in proportion to the token grid; of the settings tried, the fastest on a CPU",
}  # fmt: skip


def assemble(work: Path) -> tuple[WanPipeline, dict]:
    """The pipeline with the averaged transformer of RUN, in float16, and the facts of its training."""
    found = load_state(work, "dit_average")
    if found is None:
        raise SystemExit(f"no trained transformer in {work}: run train_dit.py first")
    transformer = build().cpu()
    transformer.load_state_dict(found[0])
    refined = work / "vae_refined"
    vae = AutoencoderKLWan.from_pretrained(refined if refined.exists() else work / "vae")
    pipeline = WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=build_text_encoder().half(),
        vae=vae.half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=transformer.half(),
    )
    return pipeline, found[1]


def rename_tokenizer(folder: Path) -> None:
    """Name the tokenizer's class as transformers 4 and 5 both know it; 5 alone writes `TokenizersBackend`."""
    index, config = folder / "model_index.json", folder / "tokenizer" / "tokenizer_config.json"
    content = json.loads(index.read_text())
    content["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    index.write_text(json.dumps(content, indent=2) + "\n")
    content = json.loads(config.read_text())
    content = {key: value for key, value in content.items() if key not in ("backend", "is_local")}
    config.write_text(json.dumps(content | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def export(work: Path, target: Path) -> None:
    """Write the folder beside `target`, then swap it in."""
    pipeline, facts = assemble(work)
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    rename_tokenizer(fresh)
    (fresh / "generation.json").write_text(json.dumps(DEFAULTS, indent=2) + "\n")
    (fresh / "vidaccel.json").write_text(json.dumps(PROFILE, indent=2) + "\n")
    facts["autoencoder"] = json.loads((work / "vae_facts.json").read_text())
    (fresh / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    print(f"{target.name}: {size / 1e6:.1f} MB, step {facts['step']}, losses {facts['losses']}")


def grid(folder: Path, picture: Path, small: bool, steps: int, prompts: list[str], guidance: float) -> None:
    """Sample each prompt once and write five frames of each, one row a prompt."""
    import imageio.v3 as iio

    pipeline = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    height, width = SMALL if small else LARGE
    arguments = {**DEFAULTS, "height": height, "width": width, "num_inference_steps": steps}
    arguments["guidance_scale"] = guidance
    rows = []
    for seed, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(seed)
        frames = pipeline(prompt, generator=generator, **arguments).frames[0]
        rows.append(np.concatenate(frames[:: (FRAMES - 1) // 4], axis=1))
    iio.imwrite(picture, (np.concatenate(rows) * 255).round().astype(np.uint8))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, help="the folder the training wrote to; without it nothing is exported"
    )
    parser.add_argument("--target", type=Path, default=WEIGHTS)
    parser.add_argument("--grid", type=Path, help="write a picture of samples here")
    parser.add_argument("--small", action="store_true", help="sample at the smaller trained size")
    parser.add_argument("--steps", type=int, default=DEFAULTS["num_inference_steps"])
    parser.add_argument("--guidance", type=float, default=DEFAULTS["guidance_scale"])
    parser.add_argument("--prompt", action="append", help="instead of the demo prompts; may be repeated")
    options = parser.parse_args()
    if options.work:
        export(options.work, options.target)
    if options.grid:
        prompts = options.prompt or list(PROMPTS)
        grid(options.target, options.grid, options.small, options.steps, prompts, options.guidance)


if __name__ == "__main__":
    main()
