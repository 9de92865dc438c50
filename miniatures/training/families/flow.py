"""Rectified flow (arXiv 2209.03003), the objective of Wan and HunyuanVideo."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

SHIFT = 3.0


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The scheduler whose noise levels were trained."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def noised(latents: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Latents on the straight line to the noise, their timesteps, and the velocity `noise - latents`.

    The levels are logit-normal (arXiv 2403.03206), shifted as the scheduler shifts them.
    """
    u = torch.randn(len(latents), generator=generator).sigmoid()
    sigma = (SHIFT * u / (1 + (SHIFT - 1) * u)).to(latents.device)
    level = sigma.view(-1, 1, 1, 1, 1)
    return (1 - level) * latents + level * noise, sigma * 1000, noise - latents
