"""What decides what a calibration measures, and the digest by which a work folder tells two apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from vidaccel import guidance
from vidaccel._version import __version__
from vidaccel.calibration.library import Library
from vidaccel.parallel import plans

SAMPLES = 64
"""Values of each weight that tell two models apart."""


def check_whole(modules: Mapping[str, nn.Module]) -> None:
    """Refuse denoisers whose clips are split over processes: each would measure a part, and time waiting for others.

    Raises:
        ValueError: one is.
    """
    for module in modules.values():
        guidance.check_whole(module)
        if (config := plans.configured(module)) is not None:
            raise ValueError(f"clips of this {type(module).__name__} are split over {config._world_size} processes "
                             "by enable_parallelism(), and measurements need whole ones: load it without; many prompts "
                             "go to many processes by accelerate launch -m vidaccel")  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The checked arguments of a calibration that its measurements depend on.

    Args:
        prompts: at least one.
        name: of the library.
        library: what is tried.
        bands: equal step bands that the sparse part of a run is cut into.
        rows: sampled queries of each measured attention call.
        steps_per_band: denoising steps of a band that are measured.
        block: tile size in tokens; None for one that fits the sequence.
        seed: of the noise and of the rows.

    Raises:
        ValueError: a value out of range.
    """

    prompts: tuple[str, ...]
    name: str
    library: Library
    bands: int = 1
    rows: int = 64
    steps_per_band: int = 4
    block: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompts or not all(isinstance(each, str) and each.strip() for each in self.prompts):
            raise ValueError("a calibration needs prompts: texts, none empty")
        for name, least in (("bands", 1), ("rows", 1), ("steps_per_band", 1), ("block", 1), ("seed", 0)):
            value = getattr(self, name)
            if name == "block" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r} is not a whole number of at least {least}")
        if self.library.learned and len(self.prompts) < 2:
            raise ValueError(
                f"library {self.name!r} makes patterns from some prompts and judges them on others: it needs at least "
                "2 prompts, 1 was given; library 'geometry' needs 1"
            )

    def described(self) -> dict[str, Any]:
        """What a reader of a profile may want to know, JSON-ready; prompts only by their number and hash."""
        hashed = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()
        return {
            "prompts": len(self.prompts), "prompts_sha256": hashed, "library": self.name, "bands": self.bands,
            "rows": self.rows, "steps_per_band": self.steps_per_band, "seed": self.seed,
        }  # fmt: skip

    @property
    def mapping(self) -> int:
        """Prompts whose attention is mapped only, for patterns to be made from; the others measure."""
        return max(1, len(self.prompts) // 2) if self.library.learned else 0


def check_target(target_density: float | None, max_error: float | None) -> dict[str, float]:
    """The goal as options of the method.

    Raises:
        ValueError: neither, both, or a value out of (0, 1].
    """
    both = {"density": target_density, "max_error": max_error}
    given = {name: value for name, value in both.items() if value is not None}
    if len(given) != 1:
        raise ValueError("give either a target density or a largest error, and not both")
    for name, value in given.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 1:
            raise ValueError(f"{name}={value!r} is not a number in (0, 1]")
    return {name: float(value) for name, value in given.items()}


def digest(settings: Settings, pipe: Any, modules: Mapping[str, nn.Module], kwargs: Mapping[str, Any]) -> str:
    """SHA-256 of all that the measurements depend on: settings, versions, device, weights and the call's arguments."""
    hashed = hashlib.sha256()
    values = {"settings": asdict(settings), "vidaccel": __version__, "torch": torch.__version__,
              "pipeline": type(pipe).__name__}  # fmt: skip
    hashed.update(json.dumps(values, sort_keys=True).encode())
    for name, item in sorted(kwargs.items()):
        hashed.update(json.dumps([name, described(item)]).encode())
    for name, module in modules.items():
        hashed.update(name.encode())
        fingerprint(hashed, module)
    return hashed.hexdigest()


def fingerprint(hashed: Any, module: nn.Module) -> None:
    """Add a model's class, configuration and a sample of each of its weights to a hash; reads no whole model."""
    config: Any = getattr(module, "config", {})
    values = {name: item for name, item in dict(config).items() if not name.startswith("_")}
    hashed.update(json.dumps([type(module).__name__, values], sort_keys=True, default=str).encode())
    for name, weight in sorted(module.state_dict().items()):
        hashed.update(json.dumps([name, str(weight.dtype), weight.device.type, list(weight.shape)]).encode())
        if not weight.is_meta and weight.numel():
            flat = weight.detach().flatten()
            sample = flat[:: max(1, len(flat) // SAMPLES)]
            hashed.update(sample.cpu().contiguous().view(torch.uint8).numpy().tobytes())


def described(value: Any) -> Any:
    """An argument of the pipeline's call, JSON-ready, in full."""
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), list(value.shape), hashlib.sha256(_bytes(value)).hexdigest()]
    if isinstance(value, Mapping):
        return {str(name): described(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [described(item) for item in value]
    if hasattr(value, "tobytes"):
        return [list(np.asarray(value).shape), hashlib.sha256(value.tobytes()).hexdigest()]
    return repr(value)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
