"""A resumable training of an autoencoder, whatever it learns and however it is optimised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from common import Clock, annealed, load_state, save_state, share


class VaeRun:
    """An autoencoder's weights, optimizer and counters, going on from the checkpoint in `work` if there is one.

    Args:
        optimizer: has `step(factor)`, which clears the gradients, `tensors()` and `restore(tensors)`.
        rank: of this worker; only the first writes.
    """

    def __init__(self, work: Path, vae: Any, optimizer: Any, minutes: float, seed: int, rank: int) -> None:
        self.work, self.vae, self.optimizer, self.seed, self.rank = work, vae, optimizer, seed, rank
        self.step, seconds = 0, 0.0
        if (found := load_state(work, "vae_checkpoint")) is not None:
            tensors, facts = found
            vae.load_state_dict({key[4:]: value for key, value in tensors.items() if key.startswith("vae.")})
            optimizer.restore(tensors)
            self.step, seconds = facts["step"], facts["seconds"]
        self.clock = Clock(minutes, seconds)
        self.progress = self.clock.progress

    def save(self) -> None:
        """Write the checkpoint."""
        if self.rank == 0:
            tensors = {f"vae.{key}": value for key, value in self.vae.state_dict().items()}
            facts = {"step": self.step, "seconds": self.clock.spent, "seed": self.seed}
            save_state(self.work, "vae_checkpoint", tensors | self.optimizer.tensors(), facts)

    def apply(self, loss: torch.Tensor) -> None:
        """One optimizer step on this worker's loss, averaged over all workers."""
        loss.backward()
        self.progress = share([p.grad for p in self.vae.parameters() if p.grad is not None], self.clock.progress)
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step(annealed(self.progress))
        self.step += 1
