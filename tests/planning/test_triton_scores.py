"""Runs triton_score_cases.py in Triton's interpreter, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import interpreted

pytest.importorskip("triton", reason="Triton has no build for this platform")

CASES = Path(__file__).with_name("triton_score_cases.py")


@pytest.mark.slow
def test_scoring_kernels_against_torch_in_the_interpreter() -> None:
    interpreted.all_pass(CASES)
