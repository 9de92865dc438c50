"""Where a number was measured: hardware, versions, source revision."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import vidaccel

PACKAGES = ("vidaccel", "vidaccel-miniatures", "torch", "triton", "diffusers", "transformers", "accelerate", "numpy",
            "scikit-image", "imageio", "imageio-ffmpeg", "lpips", "stlpips-pytorch")


def provenance() -> dict[str, Any]:
    """When, on what and with what a result is made: created (UTC, ISO 8601), git, device, versions."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"created": created, "git": git_revision(), "device": device(), "versions": versions()}


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that a result depends on; None where one is not installed."""
    return {"python": platform.python_version(), "platform": platform.platform()} | {
        name: _version(name) for name in PACKAGES
    }


def device() -> dict[str, Any]:
    """CPU model, threads that torch uses, memory of the machine in GiB, and the GPU with its driver, or None."""
    import torch

    return {
        "name": _cpu_name(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpu": _gpu_name() if torch.cuda.is_available() else None,
    }


def git_revision() -> str | None:
    """Revision of the source checkout, with "-dirty" for uncommitted changes; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    revision = _output("git", "-C", str(root), "rev-parse", "--verify", "HEAD")
    changes = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return None if revision is None else revision + ("-dirty" if changes else "")


def peak_memory_gib() -> float | None:
    """Largest resident memory of this process so far, in GiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return float(peak / (2**30 if sys.platform == "darwin" else 2**20))


def _version(package: str) -> str | None:
    if package == "vidaccel":
        return vidaccel.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine())


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _gpu_name() -> str:
    import torch

    toolkit = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    drivers = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    driver = f"driver {drivers.split()[0]}" if drivers else None
    return ", ".join(filter(None, [torch.cuda.get_device_name(), toolkit, driver]))


def _output(*command: str) -> str | None:
    """What a program prints, None where it is missing or fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
