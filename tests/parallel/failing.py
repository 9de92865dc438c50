"""What the launches of `test_failures` run: a clip of two processes, of which the second fails in the second step."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from torch import distributed

import vidaccel
from tests import tiny
from tests.parallel.cases import parallelised

STEP = 1


def main(how: str, folder: str) -> None:
    distributed.init_process_group("gloo")
    rank, calls = distributed.get_rank(), []
    pipe = parallelised(tiny.tiny_wan(), ulysses=2)
    vidaccel.enable(pipe, "radial", block=16, split=16, min_tokens=0)

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) <= 2 * STEP:
            return
        # Whole at once: the test looks for it, and says when to go on.
        Path(folder, f"{rank}.new").write_text(str(os.getpid()))
        Path(folder, f"{rank}.new").rename(Path(folder, str(rank)))
        while not Path(folder, "go").exists():
            time.sleep(0.05)
        if rank == 1 and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1:
            raise RuntimeError("only this process ran out of luck")

    pipe.transformer.blocks[1].register_forward_pre_hook(fail)
    tiny.generate(pipe, output_type="latent")


if __name__ == "__main__":
    main(*sys.argv[1:])
