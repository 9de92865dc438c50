"""Refine the autoencoder's decoder on longer clips, its encoder and so all latents left as they are.

    python miniatures/training/refine_vae.py --work RUN --minutes 6

It can run beside train_dit.py, which needs the latents alone, and continues from its last checkpoint in RUN.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import DEVICE, Clock, annealed, load_state, optimizer_tensors, restore_optimizer, save_state
from diffusers import AutoencoderKLWan
from train_vae import crops, measure

BATCH, CROP, CLIP_FRAMES, LR = 2, (64, 80), 25, 1.5e-3


def loss_of(vae: AutoencoderKLWan, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Training loss and mean squared error of one batch, from latents without gradient."""
    with torch.autocast(DEVICE.type, torch.bfloat16):
        with torch.no_grad():
            latents = vae.encode(video).latent_dist.sample()
        restored = vae.decode(latents).sample.float()
    error = F.mse_loss(restored, video)
    edges = sum(F.l1_loss(restored.diff(dim=d), video.diff(dim=d)) for d in (-1, -2))
    return F.l1_loss(restored, video) + 2 * error + 0.5 * edges, error.detach()


class Run:
    """A resumable refinement of the decoder."""

    def __init__(self, work: Path, minutes: float, seed: int) -> None:
        self.work, self.seed = work, seed
        self.vae = AutoencoderKLWan.from_pretrained(work / "vae").to(DEVICE)
        self.parts = torch.nn.ModuleDict(
            {"decoder": self.vae.decoder, "post_quant": self.vae.post_quant_conv}
        )
        self.optimizer = torch.optim.AdamW(
            self.parts.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=1e-3
        )
        self.step, seconds = 0, 0.0
        if (found := load_state(work, "refine_checkpoint")) is not None:
            tensors, facts = found
            self.parts.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("parts.")})
            restore_optimizer(self.optimizer, "opt", tensors)
            self.step, seconds = facts["step"], facts["seconds"]
        self.clock = Clock(minutes, seconds)

    def save(self) -> None:
        """Write the checkpoint."""
        tensors = {f"parts.{key}": value for key, value in self.parts.state_dict().items()}
        facts = {"step": self.step, "seconds": self.clock.spent, "seed": self.seed}
        save_state(self.work, "refine_checkpoint", tensors | optimizer_tensors(self.optimizer, "opt"), facts)

    def update(self) -> float:
        """One optimizer step; returns the batch's PSNR in dB."""
        loss, error = loss_of(self.vae, crops(self.seed + self.step, CROP, CLIP_FRAMES, BATCH).to(DEVICE))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parts.parameters(), 1.0)
        self.optimizer.param_groups[0]["lr"] = LR * annealed(self.clock.progress)
        self.optimizer.step()
        self.step += 1
        return float(-10 * error.div(4).log10())


def train(run: Run) -> None:
    """Refine until the budget is spent, saving every minute."""
    saved, psnrs = time.monotonic(), []
    while run.clock.progress < 1.0:
        psnrs.append(run.update())
        if run.step % 50 == 0:
            print(f"{run.step} {run.clock.spent:.0f}s psnr {sum(psnrs) / len(psnrs):.1f}", flush=True)
            psnrs.clear()
        if time.monotonic() - saved > 60 or run.clock.progress >= 1.0:
            saved = time.monotonic()
            run.save()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="the folder train_vae.py wrote to")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=5_000_000)
    options = parser.parse_args()
    run = Run(options.work, options.minutes, options.seed)
    train(run)
    path = options.work / "vae_facts.json"
    facts = json.loads(path.read_text())
    refined = {"steps": run.step, "minutes": options.minutes, "seed": options.seed}
    facts |= {"refined": refined, "psnr": measure(run.vae.eval(), facts["seed"] - 1000)["psnr"]}
    print(facts)
    run.vae.save_pretrained(options.work / "vae_refined")
    path.write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
