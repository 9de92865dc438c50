"""Whether what a cache keeps fits, asked before the work begins."""

from __future__ import annotations

import os

import torch

from vidaccel.site import Ranks

GB = 1e9


def free(device: torch.device) -> int | None:
    """Bytes that may still be taken on a device; None where nobody knows."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _reclaimable()
    return None


def _reclaimable() -> int:
    """Bytes of files that Linux holds in memory until someone needs the room."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("Cached:")), 0)
    except OSError:
        return 0


def check(needed: int, device: torch.device, limit: float | None, every: Ranks | None = None) -> None:
    """Refuse to keep more bytes than there is room for.

    Args:
        limit: gigabytes that the user allows; None for what is free.
        every: processes that keep a share each, and go on together or not at all; None for this one alone.

    Raises:
        ValueError: how much is needed, and what would need less.
    """
    room = free(device) if limit is None else int(limit * GB)
    if every is not None:
        needed, room = _scarcest(needed, room, device, every)
    if room is not None and needed > room:
        raise ValueError(
            f"the cache would keep {needed / GB:.2f} GB on {device} for each guidance pass, and "
            f"{'max_memory allows' if limit is not None else 'there are'} {room / GB:.2f} GB: take the predictor "
            "'hold', or a policy that keeps the model's output, such as easycache"
        )


def _scarcest(needed: int, room: int | None, device: torch.device, every: Ranks) -> tuple[int, int | None]:
    """What is needed, and the room that there is, where least would be left: the same on all processes."""
    unknown = room is None
    mine = torch.tensor([[needed, 0 if room is None else room, unknown]], dtype=torch.float64, device=device)
    found = [row for row in every.gather(mine, 0).tolist() if not row[2]]
    if not found:
        return needed, None
    scarce = min(found, key=lambda row: row[1] - row[0])
    return int(scarce[0]), int(scarce[1])
