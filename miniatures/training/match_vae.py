"""Train a family's own autoencoder so that its latents are those of the Wan miniature's autoencoder.

    python miniatures/training/match_vae.py --family hunyuanvideo --work RUN --minutes 10
    torchrun --nproc-per-node 2 miniatures/training/match_vae.py --family hunyuanvideo --work RUN --minutes 10

All miniatures then share one latent space: clips are encoded once for all of them. The encoder learns the latents, the
decoder the clips behind them. Running it again continues from the last checkpoint in RUN.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import DEVICE, WEIGHTS, hardware, join_workers, optimizer_tensors, restore_optimizer
from encode import encode
from families import FAMILIES
from train_vae import crops, measure
from vae_run import VaeRun

LATENTS, NOISE = 5, 0.1
MUON_LR, ADAM_LR = 0.02, 2e-3
STAGES = ((0.5, 2, (40, 48)), (0.8, 1, (72, 96)), (1.0, 1, (96, 144)))
"""Until which share of the budget: clips a step and worker, and the crops' height and width."""


def loss_of(vae: Any, video: torch.Tensor, latents: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Training loss and mean squared pixel error of one batch.

    Args:
        video: `[B, 3, F, H, W]` in -1..1, from the clip's beginning.
        latents: the same clips' in the shared space, `[B, 8, F', H/8, W/8]`.
        start: the first latent frame that is decoded. Families decode long clips in pieces, of which only the first
            starts where the clip does; the first frame of a later piece is thrown away.
    """
    piece = latents[:, :, start : start + LATENTS]
    target = video[:, :, 4 * start : 4 * start + 4 * LATENTS - 3]
    with torch.autocast(DEVICE.type, torch.bfloat16):
        posterior = vae.encode(video[:, :, : 4 * LATENTS - 3]).latent_dist
        restored = vae.decode(piece + NOISE * torch.rand(1, device=DEVICE) * torch.randn_like(piece)).sample.float()
    match = F.mse_loss(posterior.mean.float(), latents[:, :, :LATENTS])
    spread = 0.01 * (posterior.logvar.float() + 6).square().mean()  # next to no noise of the encoder's own
    restored, target = (clip[:, :, min(start, 1) :] for clip in (restored, target))
    error = F.mse_loss(restored, target)
    edges = sum(F.l1_loss(restored.diff(dim=d), target.diff(dim=d)) for d in (-1, -2))
    return F.l1_loss(restored, target) + 2 * error + 0.5 * edges + match + spread, torch.stack([error, match]).detach()


class Optimizer:
    """Muon for the inner convolutions, seen as matrices of one row an output channel; AdamW for everything else."""

    def __init__(self, vae: torch.nn.Module) -> None:
        named = dict(vae.named_parameters())
        inner = {name: p for name, p in named.items() if p.ndim > 2 and p.shape[0] > 8 and "conv_in" not in name}
        self.convolutions = list(inner.values())
        self.matrices = [torch.nn.Parameter(p.detach().flatten(1)) for p in self.convolutions]  # views: one storage
        rest = [p for name, p in named.items() if name not in inner]
        self.muon = torch.optim.Muon(self.matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.01)
        self.adam = torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=1e-3)

    def step(self, factor: float) -> None:
        """One step with the learning rates times `factor`; gradients are cleared."""
        for matrix, convolution in zip(self.matrices, self.convolutions, strict=True):
            matrix.grad = None if convolution.grad is None else convolution.grad.flatten(1)
            convolution.grad = None
        for optimizer, rate in ((self.muon, MUON_LR), (self.adam, ADAM_LR)):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state, flat."""
        return optimizer_tensors(self.muon, "muon") | optimizer_tensors(self.adam, "adam")

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Undo `tensors`."""
        restore_optimizer(self.muon, "muon", tensors)
        restore_optimizer(self.adam, "adam", tensors)


class Run(VaeRun):
    """A training of one family's autoencoder against the teacher's latents."""

    def __init__(self, family: str, work: Path, minutes: float, seed: int, rank: int) -> None:
        torch.manual_seed(seed)
        self.family = FAMILIES[family]
        self.teacher = FAMILIES["wan"].load_vae(WEIGHTS / "wan" / "vae").to(DEVICE).eval()
        vae = self.family.build_vae().to(DEVICE)
        super().__init__(work / family, vae, Optimizer(vae), minutes, seed, rank)

    def update(self, workers: int) -> torch.Tensor:
        """One optimizer step on this worker's batch, averaged over all; returns the errors of pixels and latents."""
        _, count, crop = next(stage for stage in STAGES if self.progress <= stage[0])
        start = int(torch.randint(0, 3, ())) if self.family.vae_pieces else 0
        seed = self.seed + self.step * workers + self.rank
        video = crops(seed, crop, 4 * (LATENTS + start) - 3, count).to(DEVICE)
        loss, errors = loss_of(self.vae, video, encode(self.teacher, video), start)
        self.apply(loss)
        return errors


def train(run: Run, workers: int) -> None:
    """Train until the budget is spent, saving every minute."""
    saved, mean = time.monotonic(), torch.ones(2)
    while run.progress < 1.0:
        mean += 0.05 * (run.update(workers).cpu() - mean)
        if run.step % 50 == 0 and run.rank == 0:
            psnr = float(-10 * (mean[0] / 4).log10())
            print(f"{run.step} {run.clock.spent:.0f}s psnr {psnr:.1f} latent error {float(mean[1]):.3f}", flush=True)
        if time.monotonic() - saved > 60 or run.progress >= 1.0:
            saved = time.monotonic()
            run.save()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(set(FAMILIES) - {"wan"}), required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and results")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=6_000_000)
    options = parser.parse_args()
    rank, workers = join_workers()
    run = Run(options.family, options.work, options.minutes, options.seed, rank)
    train(run, workers)
    if rank == 0:
        vae = run.vae.eval()
        facts = {"psnr": measure(vae, options.seed - 1000)["psnr"], "steps": run.step, "minutes": options.minutes,
                 "seed": options.seed, "hardware": hardware()}  # fmt: skip
        print(facts)
        vae.save_pretrained(run.work / "vae")
        (run.work / "vae_facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
