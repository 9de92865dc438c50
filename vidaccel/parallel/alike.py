"""Whether the processes of one clip begin it alike: from other noise or prompts, each would compute part of another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from vidaccel.site import Ranks

SAMPLES = 1024
"""Elements of each tensor that are compared."""
TOLERANCE = 0.05
"""Relative: what the same work may differ by on other devices. Other noise or prompts differ by far more."""
ADVICE = {
    "hidden_states": "give the pipeline the same latents, or a generator with the same seed, on every process",
    "encoder_hidden_states": "give it the same prompts on every process",
}


def check_alike(every: Ranks, facts: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a clip that its processes begin differently; on all of them, with the same words. Waits for a GPU.

    Args:
        every: the processes.
        facts: what must be equal, by what it is called: the same names on all.
        tensors: what must be near: arguments of the transformer's call, by name.

    Raises:
        ValueError: what differs.
    """
    shapes = {name: tuple(each.shape) for name, each in tensors.items()}
    known = {**facts, "shapes of inputs": shapes}
    device = next(iter(tensors.values())).device
    mine = torch.tensor([[_number(each) for each in known.values()]], device=device)
    found = every.gather(mine, 0)
    if differ := [name for name, same in zip(known, (found == found[:1]).all(0).tolist(), strict=True) if not same]:
        raise ValueError(f"the processes that compute this clip have begun it with other {', '.join(differ)}: give "
                         f"them the same; this one has {known[differ[0]]!r}")  # fmt: skip
    samples = every.gather(torch.stack([_sample(each, device) for each in tensors.values()])[None], 0)
    apart = (samples - samples[:1]).abs().mean(2) > TOLERANCE * samples[0].abs().mean(1)
    if differ := [name for name, other in zip(tensors, apart.any(0).tolist(), strict=True) if other]:
        raise ValueError(f"the processes that compute this clip have other {', '.join(differ)}, and would make parts "
                         f"of different clips: {ADVICE.get(differ[0], 'give them the same inputs')}")  # fmt: skip


def _number(value: object) -> int:
    """The same for the same value in every process."""
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:7], "big")


def _sample(tensor: Tensor, device: torch.device) -> Tensor:
    """Elements evenly spread over a tensor; zeros where it has fewer."""
    flat = tensor.detach().flatten()
    chosen = flat[:: max(1, -(-len(flat) // SAMPLES))].to(device, torch.float32)
    return torch.nn.functional.pad(chosen, (0, SAMPLES - len(chosen)))
