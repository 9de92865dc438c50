"""How a process finds the others of its job, and its own GPU."""

from __future__ import annotations

import atexit
import os
from typing import Any

from vidaccel.processes.crew import Crew

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Of the environment, that a launcher sets for each process; clusters set some of them for single ones too."""

_joined: Crew | None = None


def join() -> Crew:
    """The crew that the launcher started this process in, or this process alone; the same one when called again.

    Raises:
        RuntimeError: the other processes did not come.
    """
    global _joined
    if _joined is None and is_launched():
        _joined = _meet()
    return _joined or Crew()


def joined() -> Crew:
    """The crew if `join` found one, else this process alone: for those who only speak for it."""
    return _joined or Crew()


def is_launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def store(prefix: str) -> tuple[Any, int, int]:
    """The key-value store that the launcher opened, for keys of one purpose; and this process's rank, of how many.

    Raises:
        ValueError: this build of torch has none.
        RuntimeError: the other processes did not come.
    """
    import torch.distributed

    if not torch.distributed.is_available():
        raise ValueError("this build of torch has no torch.distributed: run one process")
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    found, rank, size = next(rendezvous("env://"))
    return PrefixStore(prefix, found), rank, size


def _meet() -> Crew:
    from vidaccel.processes.launched import Launched

    crew = Launched(*store("vidaccel"), int(os.environ["LOCAL_RANK"]))
    atexit.register(crew.close)
    return crew


def take_device(crew: Crew, asked: str | None) -> str | None:
    """Give each process of a machine the GPU of its local rank, as the current one; "cuda" means it from then on.

    Args:
        asked: the device that the user names, if any.

    Returns:
        The device to use; None to choose as ever.

    Raises:
        ValueError: there are fewer GPUs than processes, or all would share the one that was named.
    """
    import torch

    if crew.size == 1:
        return asked
    if asked is not None and asked.startswith("cuda:"):
        raise ValueError(f"device {asked!r} would be shared by {crew.size} processes: name cuda, of which each takes "
                         "its own, or cpu")  # fmt: skip
    if asked is None and os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return "cpu"
    if asked == "cuda" or (asked is None and torch.cuda.is_available()):
        here = torch.cuda.device_count()
        if crew.local >= here:
            raise ValueError(f"there are {here} GPUs for process {crew.local} of this machine, counted from 0: start "
                             "as many processes as there are GPUs")  # fmt: skip
        torch.cuda.set_device(crew.local)
    return asked
