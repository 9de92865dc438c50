"""The training loss, with guidance as an input where a family has it.

Prompts are dropped now and then, for classifier-free guidance (arXiv 2207.12598). A distilled family learns besides to
do in one pass what guidance does in two: of some clips the target is moved by the guidance direction that the averaged
weights see there, as in model-guidance (arXiv 2502.12154).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from common import DEVICE
from families import Family
from families.base import Text
from torch import Tensor

DROP = 0.1
"""Share of the clips whose prompt is dropped."""
GUIDED_FROM, GUIDED, SCALES = 0.4, 0.5, (1.0, 5.0)
"""From which share of the run a distilled family learns guidance, of which share of the clips, at which scales."""


def loss_of(
    family: Family, model: Any, average: dict[str, Tensor], latents: Tensor, text: Text, nothing: Text,
    generator: torch.Generator, progress: float,
) -> Tensor:
    """Mean squared error of the transformer's prediction at random noise levels.

    Args:
        average: the weights that tell the guidance direction.
        nothing: the empty prompt.
        progress: share of the run that is done.
    """
    noise = torch.randn(latents.shape, generator=generator).to(DEVICE)
    noisy, timestep, target = family.noised(latents, noise, generator)
    count = len(latents)
    dropped = torch.rand(count, generator=generator) < DROP
    scale = torch.ones(count)
    if family.distilled and progress >= GUIDED_FROM:
        drawn = torch.empty(count).uniform_(*SCALES, generator=generator)
        scale = torch.where((torch.rand(count, generator=generator) < GUIDED) & ~dropped, drawn, scale)
    guided = scale > 1
    if guided.any():
        rows = guided.nonzero().flatten().to(DEVICE)
        seen = {key: value[rows] for key, value in text.items()}
        direction = _direction(family, model, average, noisy[rows], timestep[rows], seen, nothing)
        shift = (scale[guided].to(DEVICE) - 1).view(-1, 1, 1, 1, 1)
        target = target.index_add(0, rows, shift * direction)
    text = {key: torch.where(_like(dropped.to(DEVICE), value), nothing[key].to(DEVICE), value)
            for key, value in text.items()}  # fmt: skip
    with torch.autocast(DEVICE.type, torch.bfloat16):
        prediction = family.predict(model, noisy, timestep, text, scale.to(DEVICE))
    return F.mse_loss(prediction.float(), target)


@torch.no_grad()
def _direction(
    family: Family, model: Any, average: dict[str, Tensor], noisy: Tensor, timestep: Tensor, text: Text, nothing: Text
) -> Tensor:
    """What the prompt adds to the averaged model's prediction, unguided."""
    both = {key: torch.cat([value, nothing[key].to(DEVICE).expand_as(value)]) for key, value in text.items()}
    twice = (torch.cat([noisy, noisy]), torch.cat([timestep, timestep]))

    class Averaged:
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(model, average, args, kwargs)

    with torch.autocast(DEVICE.type, torch.bfloat16):
        prediction = family.predict(Averaged(), *twice, both, torch.ones(len(twice[1]), device=DEVICE))
    with_text, without = prediction.float().chunk(2)
    return with_text - without


def _like(flags: Tensor, value: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (value.ndim - 1))
