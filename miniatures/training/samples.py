"""Pictures of what a miniature makes of the demo prompts, to look at while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from common import WEIGHTS
from families import Family
from families.base import SMALL
from torch import Tensor

from vidaccel_miniatures import PROMPTS


def vae_folder(family: Family, work: Path) -> Path:
    """The family's autoencoder: that of this run if it has one, else the committed one.

    Raises:
        SystemExit: there is neither.
    """
    found = [folder for folder in (work / "vae", WEIGHTS / family.name / "vae") if (folder / "config.json").exists()]
    if not found:
        raise SystemExit(f"no autoencoder for {family.name}: run match_vae.py first")
    return found[0]


@torch.no_grad()
def draw(family: Family, model: Any, average: dict[str, Tensor], picture: Path) -> None:
    """Four small clips of ten steps with the averaged weights, five frames a row; the model is left as it was."""
    state = torch.random.get_rng_state()  # the samples must not change what is trained after them
    transformer = family.build_transformer()
    transformer.load_state_dict({**model.state_dict(), **average})
    pipeline = family.pipeline(family.load_vae(vae_folder(family, picture.parent)), transformer)
    torch.random.set_rng_state(state)
    grid(pipeline, {**family.defaults, "height": SMALL[0], "width": SMALL[1], "num_inference_steps": 10}, picture)


def grid(pipeline: Any, arguments: dict[str, Any], picture: Path, prompts: tuple[str, ...] = PROMPTS) -> None:
    """Sample each prompt once and write five frames of each, one row a prompt."""
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for seed, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(seed)
        frames = pipeline(prompt, generator=generator, output_type="np", **arguments).frames[0]
        rows.append(np.concatenate(frames[:: (len(frames) - 1) // 4], axis=1))
    iio.imwrite(picture, (np.concatenate(rows) * 255).round().astype(np.uint8))
