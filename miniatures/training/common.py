"""What every training step shares: places, the device, atomic checkpoints and the clock."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the renderer is used from the checkout, installed or not

WEIGHTS = ROOT / "vidaccel_miniatures"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def as_video(frames: np.ndarray) -> torch.Tensor:
    """uint8 `[B, F, H, W, 3]` to float `[B, 3, F, H, W]` in -1..1."""
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1.0)


def save_state(folder: Path, name: str, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Write `name`.safetensors with `facts` as header, atomically: readers see the old file or the new."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.partial"
    flat = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(flat, partial, metadata={"facts": json.dumps(facts)})
    os.replace(partial, folder / f"{name}.safetensors")


def load_state(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """The tensors and facts last saved under `name`, or None."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        return None
    from safetensors import safe_open

    with safe_open(path, "pt") as handle:
        facts = json.loads(handle.metadata()["facts"])
    return load_file(path), facts


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, torch.Tensor]:
    """The optimizer's state as flat tensors, keyed `prefix.parameter.field`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{field}": torch.as_tensor(value)
        for index, fields in state.items()
        for field, value in fields.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, prefix: str, tensors: dict[str, torch.Tensor]
) -> None:
    """Undo `optimizer_tensors`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix + "."):
            index, field = key[len(prefix) + 1 :].split(".", 1)
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def hardware() -> str:
    """The processor or GPU that this runs on."""
    from vidaccel.eval.env import device

    facts = device()
    return str(facts["gpu"] or facts["name"])


class Clock:
    """Training time against a budget in minutes; `spent` seconds carry over from earlier runs."""

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.budget, self._spent, self._start = minutes * 60, spent, time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds trained so far, over all runs."""
        return self._spent + time.monotonic() - self._start

    @property
    def progress(self) -> float:
        """Share of the budget used, 0..1."""
        return min(self.spent / self.budget, 1.0)

    def tick(self) -> None:
        """A step is done; a clock does not mind."""


class Steps(Clock):
    """Training steps against a budget of them."""

    def __init__(self, total: int, done: int = 0, spent: float = 0.0) -> None:
        super().__init__(1.0, spent)
        self.total, self.done = total, done

    @property
    def progress(self) -> float:
        """Share of the steps done, 0..1."""
        return min(self.done / self.total, 1.0)

    def tick(self) -> None:
        """Count a step."""
        self.done += 1


def join_workers() -> tuple[int, int]:
    """This process's rank and the number of workers; under `torchrun` they train together, else it is alone.

    On a shared CPU, workers of one thread that meet once a step beat threads that meet in every operation.
    """
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    dist.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size()


def share(tensors: list[torch.Tensor], value: float) -> float:
    """Average `tensors` in place, and `value`, over all workers; returns the average of `value`."""
    if not dist.is_initialized():
        return value
    flat = torch.cat([*(t.flatten() for t in tensors), tensors[0].new_tensor([value])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors] + [1]), strict=False):
        tensor.copy_(part.view_as(tensor))
    return float(flat[-1])


def annealed(progress: float, warm_up: float = 0.02, hold: float = 0.4) -> float:
    """Learning-rate factor: a linear rise, a plateau until `hold`, then a linear fall to zero."""
    return min(progress / warm_up, 1.0, (1.0 - progress) / (1.0 - hold))
