"""Runs triton_choice_cases.py in Triton's interpreter, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import interpreted

pytest.importorskip("triton", reason="Triton has no build for this platform")

from vidaccel.planning import dispatch
from vidaccel.planning.select import MAX_BLOCKS, top_k, top_k_reference

CASES = Path(__file__).with_name("triton_choice_cases.py")


@pytest.mark.slow
def test_kernels_against_torch_in_the_interpreter() -> None:
    interpreted.all_pass(CASES)


def test_rows_that_no_kernel_holds_run_in_torch() -> None:
    scores = torch.rand(1, 1, MAX_BLOCKS + 1)
    assert torch.equal(top_k(scores, 9), top_k_reference(scores, 9))
    with dispatch.forced("triton"), pytest.raises(ValueError, match="8193 blocks, at most 8192 fit"):
        top_k(scores, 9)
