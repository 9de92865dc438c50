"""Several processes of one job, played by threads that talk through a store in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from vidaccel.processes import Crew
from vidaccel.processes.launched import Launched


def in_crew(size: int, work: Callable[[Crew], Any], seconds: float = 30) -> list[Any]:
    """What `work` returned or raised in each of so many processes, none of which may take longer."""
    made: list[Launched] = []
    store, results = torch.distributed.HashStore(), [None] * size

    def one(rank: int) -> None:
        try:
            made.append(crew := Launched(store, rank, size, rank))
            results[rank] = work(crew)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), "it hangs"
    for crew in made:
        crew.close()
    return results
