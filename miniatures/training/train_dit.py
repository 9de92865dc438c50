"""Train the miniature's video transformer by flow matching on encoded clips.

    python miniatures/training/train_dit.py --work RUN --minutes 60
    torchrun --nproc-per-node 2 miniatures/training/train_dit.py --work RUN --minutes 60

Running it again continues from the last checkpoint in RUN. The learning rate follows the clock, so it always
reaches zero when the budget is spent.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import (
    DEVICE,
    Clock,
    annealed,
    join_workers,
    load_state,
    optimizer_tensors,
    restore_optimizer,
    save_state,
    share,
)
from diffusers import WanTransformer3DModel
from shards import BATCHES, Shards, pick_size
from text import embed

CONFIG = {
    "patch_size": (1, 2, 2), "num_attention_heads": 4, "attention_head_dim": 64, "in_channels": 8,
    "out_channels": 8, "text_dim": 64, "freq_dim": 128, "ffn_dim": 768, "num_layers": 4,
    "rope_max_seq_len": 64,
}  # fmt: skip
SHIFT, DROP, MUON_LR, ADAM_LR = 3.0, 0.1, 0.02, 2e-3


def build() -> WanTransformer3DModel:
    """A new transformer that predicts zero."""
    model = WanTransformer3DModel(**CONFIG)
    torch.nn.init.zeros_(model.proj_out.weight)
    return model.to(DEVICE)


def optimizers(model: torch.nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for everything else."""
    hidden = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    chosen = set(map(id, hidden))
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(hidden, lr=MUON_LR, momentum=0.95, weight_decay=0.01)
    return muon, torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0)


def noise_levels(count: int, generator: torch.Generator) -> torch.Tensor:
    """Logit-normal noise levels in 0..1, shifted as the scheduler shifts them at inference."""
    u = torch.randn(count, generator=generator).sigmoid()
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def flow_loss(
    model: torch.nn.Module, latents: torch.Tensor, text: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Mean squared error of the predicted velocity `noise - latents` at random noise levels."""
    sigma = noise_levels(len(latents), generator).to(DEVICE)
    noise = torch.randn(latents.shape, generator=generator).to(DEVICE)
    level = sigma.view(-1, 1, 1, 1, 1)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        velocity = model((1 - level) * latents + level * noise, sigma * 1000, text, return_dict=False)[0]
    return F.mse_loss(velocity.float(), noise - latents)


class Run:
    """A training run: the model, its average, the optimizers, and the counters that make it resumable."""

    def __init__(self, work: Path, minutes: float, seed: int, workers: int) -> None:
        torch.manual_seed(seed)
        self.work, self.minutes, self.seed, self.workers = work, minutes, seed, workers
        self.model = build()
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.muon, self.adam = optimizers(self.model)
        self.step, self.samples, self.losses = 0, dict.fromkeys(BATCHES, 0), dict.fromkeys(BATCHES, 1.0)
        found = load_state(work, "dit_checkpoint")
        self.clock = Clock(minutes, self._restore(*found) if found else 0.0)
        self.progress = self.clock.progress

    def _restore(self, tensors: dict[str, torch.Tensor], facts: dict) -> float:
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        self.average = {k[4:]: v.to(DEVICE) for k, v in tensors.items() if k.startswith("ema.")}
        restore_optimizer(self.muon, "muon", tensors)
        restore_optimizer(self.adam, "adam", tensors)
        self.step, self.samples, self.losses = facts["step"], facts["samples"], facts["losses"]
        return facts["seconds"]

    def save(self) -> None:
        """Write the checkpoint, and the averaged weights alone for `export.py`."""
        facts = {
            "step": self.step, "samples": self.samples, "losses": self.losses, "seconds": self.clock.spent,
            "minutes": self.minutes, "seed": self.seed, "workers": self.workers, "device": DEVICE.type,
        }  # fmt: skip
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.average.items()}
        tensors |= optimizer_tensors(self.muon, "muon") | optimizer_tensors(self.adam, "adam")
        save_state(self.work, "dit_checkpoint", tensors, facts)
        save_state(self.work, "dit_average", self.average, facts)

    def update(self, loss: torch.Tensor, size: str) -> None:
        """One optimizer step, the moving average's, and the books."""
        loss.backward()
        self.progress = share([p.grad for p in self.model.parameters()], self.clock.progress)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in ((self.muon, MUON_LR), (self.adam, ADAM_LR)):
            optimizer.param_groups[0]["lr"] = rate * annealed(self.progress)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        keep = min(0.998, (1 + self.step) / (20 + self.step))
        parameters = dict(self.model.named_parameters())
        torch._foreach_lerp_(
            list(self.average.values()), [parameters[k].detach() for k in self.average], 1 - keep
        )
        self.samples[size] += BATCHES[size] * self.workers
        self.losses[size] += max(0.02, 1 / self.step) * (float(loss.detach()) - self.losses[size])


def train(run: Run, rank: int, compiled: bool) -> None:
    """Train until the budget is spent, saving every minute."""
    plan = torch.Generator().manual_seed(
        run.seed + run.step
    )  # the same on every worker: all take the same size
    generator = torch.Generator().manual_seed(run.seed + run.step + 1000 * (rank + 1))
    shards, nothing = Shards(run.work / "latents"), embed([""])
    model = torch.compile(run.model, dynamic=False) if compiled else run.model
    saved = time.monotonic()
    while run.progress < 1.0:
        size = pick_size(run.progress, shards, plan)
        latents, text = shards.batch(size, generator)
        dropped = (torch.rand(len(text), 1, 1, generator=generator) < DROP).to(DEVICE)
        run.update(flow_loss(model, latents, torch.where(dropped, nothing, text), generator), size)
        if run.step % 25 == 0 and rank == 0:
            losses = {key: round(value, 4) for key, value in run.losses.items()}
            print(run.step, f"{run.clock.spent:.0f}s", run.samples, losses, flush=True)
        if rank == 0 and (time.monotonic() - saved > 60 or run.progress >= 1.0):
            saved = time.monotonic()
            run.save()
        if run.step % 50 == 0:
            shards.refresh()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="the folder encode.py wrote to")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=4_000_000)
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    options = parser.parse_args()
    rank, workers = join_workers()
    train(Run(options.work, options.minutes, options.seed, workers), rank, options.compile)


if __name__ == "__main__":
    main()
