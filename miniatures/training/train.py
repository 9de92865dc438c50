"""Train a miniature's video transformer on encoded clips.

    python miniatures/training/train.py --family wan --work RUN --minutes 60
    torchrun --nproc-per-node 2 miniatures/training/train.py --family wan --work RUN --minutes 60

It starts from the checkpoint in RUN, else from the committed weights, else (or with `--fresh`) from nothing. With
`--minutes` the learning rate follows the clock, so it always reaches zero when the budget is spent; with `--steps` it
follows the steps, and the same seed, threads and shards give the same weights, bit for bit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import (
    DEVICE,
    WEIGHTS,
    Clock,
    Steps,
    annealed,
    hardware,
    join_workers,
    load_state,
    optimizer_tensors,
    restore_optimizer,
    save_state,
    share,
)
from families import FAMILIES
from guidance import loss_of
from safetensors.torch import load_file
from samples import draw
from shards import BATCHES, Shards, batch_size, pick_size

MUON_LR, ADAM_LR = 0.02, 2e-3
CONTINUED = 0.6
"""Learning rates of a run that starts from committed weights, against those of a fresh one."""


def optimizers(model: torch.nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon (arXiv 2502.16982) for the blocks' matrices, AdamW for everything else."""
    hidden = [p for name, p in model.named_parameters() if "blocks." in name and p.ndim == 2 and min(p.shape) > 1]
    chosen = set(map(id, hidden))
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(hidden, lr=MUON_LR, momentum=0.95, weight_decay=0.01)
    return muon, torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0)


class Run:
    """A training run: the model, its average, the optimizers, and the counters that make it resumable."""

    def __init__(self, options: argparse.Namespace, workers: int) -> None:
        torch.manual_seed(options.seed)
        self.options, self.workers, self.family = options, workers, FAMILIES[options.family]
        self.work = options.work / options.family
        self.model: Any = self.family.build_transformer().to(DEVICE)
        committed = WEIGHTS / options.family / "transformer" / "diffusion_pytorch_model.safetensors"
        self.continued = committed.exists() and not options.fresh
        if self.continued:
            self.model.load_state_dict({name: p.float() for name, p in load_file(committed).items()})
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.muon, self.adam = optimizers(self.model)
        self.step, self.samples, self.losses = 0, dict.fromkeys(BATCHES, 0), dict.fromkeys(BATCHES, 1.0)
        found = load_state(self.work, "dit_checkpoint")
        seconds = self._restore(*found) if found else 0.0
        self.clock = Steps(options.steps, self.step, seconds) if options.steps else Clock(options.minutes, seconds)
        self.progress = self.clock.progress

    @property
    def command(self) -> str:
        """What to type for such a run."""
        budget = f"--steps {self.options.steps}" if self.options.steps else f"--minutes {self.options.minutes:g}"
        fresh = " --fresh" if self.options.fresh else ""
        return f"train.py --family {self.family.name} {budget} --seed {self.options.seed}{fresh}"

    def _restore(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> float:
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        self.average = {k[4:]: v.to(DEVICE) for k, v in tensors.items() if k.startswith("ema.")}
        restore_optimizer(self.muon, "muon", tensors)
        restore_optimizer(self.adam, "adam", tensors)
        self.step, self.samples, self.losses = facts["step"], facts["samples"], facts["losses"]
        self.continued = facts["continued"]
        return float(facts["seconds"])

    def save(self) -> None:
        """Write the checkpoint, and the averaged weights alone for `export.py`."""
        facts = {
            "step": self.step, "samples": self.samples, "losses": self.losses, "seconds": self.clock.spent,
            "minutes": self.options.minutes, "steps": self.options.steps, "seed": self.options.seed,
            "workers": self.workers, "device": DEVICE.type, "threads": torch.get_num_threads(),
            "continued": self.continued, "hardware": hardware(), "command": self.command,
        }  # fmt: skip
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.average.items()}
        tensors |= optimizer_tensors(self.muon, "muon") | optimizer_tensors(self.adam, "adam")
        save_state(self.work, "dit_checkpoint", tensors, facts)
        save_state(self.work, "dit_average", self.average, facts)

    def update(self, loss: torch.Tensor, size: str) -> None:
        """One optimizer step, the moving average's, and the books."""
        loss.backward()
        self.clock.tick()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.progress = share(gradients, self.clock.progress)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in ((self.muon, MUON_LR), (self.adam, ADAM_LR)):
            optimizer.param_groups[0]["lr"] = rate * annealed(self.progress) * (CONTINUED if self.continued else 1)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        keep = min(0.998, (1 + self.step) / (20 + self.step))
        parameters = dict(self.model.named_parameters())
        torch._foreach_lerp_(list(self.average.values()), [parameters[k].detach() for k in self.average], 1 - keep)
        self.samples[size] += batch_size(size) * self.workers
        self.losses[size] += max(0.02, 1 / self.step) * (float(loss.detach()) - self.losses[size])


def train(run: Run, rank: int) -> None:
    """Train until the budget is spent, saving every minute and drawing samples now and then."""
    # The same on every worker: all take the same size.
    plan = torch.Generator().manual_seed(run.options.seed + run.step)
    generator = torch.Generator().manual_seed(run.options.seed + run.step + 1000 * (rank + 1))
    shards, nothing = Shards(run.options.work / "latents", run.family), run.family.embed([""])
    model = torch.compile(run.model, dynamic=False) if run.options.compile else run.model
    saved, pictures = time.monotonic(), int(run.progress * run.options.pictures)
    while run.progress < 1.0:
        size = pick_size(run.progress, shards, plan)
        latents, text = shards.batch(size, generator)
        loss = loss_of(run.family, model, run.average, latents, text, nothing, generator, run.progress)
        run.update(loss, size)
        if rank == 0 and run.step % 25 == 0:
            losses = {key: round(value, 4) for key, value in run.losses.items()}
            print(run.step, f"{run.clock.spent:.0f}s", run.samples, losses, flush=True)
        if rank == 0 and (time.monotonic() - saved > 60 or run.progress >= 1.0):
            saved = time.monotonic()
            run.save()
        if rank == 0 and int(run.progress * run.options.pictures) > pictures:
            pictures += 1
            draw(run.family, run.model, run.average, run.work / f"samples_{pictures:02d}.png")
        if run.step % 50 == 0 and not run.options.steps:
            shards.refresh()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(FAMILIES), required=True)
    parser.add_argument("--work", type=Path, required=True, help="the folder encode.py wrote to")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, help="instead of a time budget: reproducible")
    parser.add_argument("--seed", type=int, default=4_000_000)
    parser.add_argument("--fresh", action="store_true", help="do not start from the committed weights")
    parser.add_argument("--pictures", type=int, default=4, help="pictures of samples to draw on the way")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    options = parser.parse_args()
    rank, workers = join_workers()
    train(Run(options, workers), rank)


if __name__ == "__main__":
    main()
