"""Runs triton_choice_cases.py in Triton's interpreter, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no build for this platform")

from vidaccel.planning import dispatch
from vidaccel.planning.select import MAX_BLOCKS, top_k, top_k_reference

ROOT = Path(__file__).resolve().parent.parent.parent
CASES = Path(__file__).with_name("triton_choice_cases.py")


@pytest.mark.slow
def test_kernels_against_torch_in_the_interpreter() -> None:
    # One BLAS thread: with more, the interpreter's many small products are slower, not faster.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CASES)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    last = done.stdout.strip().splitlines()[-1]
    assert re.match(r"\d+ passed", last) and "skipped" not in last, last


def test_rows_that_no_kernel_holds_run_in_torch() -> None:
    scores = torch.rand(1, 1, MAX_BLOCKS + 1)
    assert torch.equal(top_k(scores, 9), top_k_reference(scores, 9))
    with dispatch.forced("triton"), pytest.raises(ValueError, match="8193 blocks, at most 8192 fit"):
        top_k(scores, 9)
