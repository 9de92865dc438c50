"""Commands under ``accelerate launch``, as two processes."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

LAUNCHER = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0",
            "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "vidaccel"]  # fmt: skip


def launched(*words: object) -> subprocess.Popen[str]:
    """A command of vidaccel, with as many threads in each process as in this one."""
    given = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCHER, *map(str, words)]
    return subprocess.Popen(given, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, standard output and standard error, once it is over."""
    stdout, stderr = process.communicate(timeout=600)
    return process.returncode, stdout, stderr
