"""What is done when a piece of work fails and the others go on."""

from __future__ import annotations

import gc

import torch


def described(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def make_room() -> None:
    """Give back what a failed run held on the GPU."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
