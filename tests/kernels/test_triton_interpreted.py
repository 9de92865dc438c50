"""The Triton kernel against brute force and the reference, interpreted: triton_cases.py has the cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import interpreted

pytest.importorskip("triton", reason="Triton has no build for this platform")


@pytest.mark.slow
def test_kernel_against_the_reference_in_the_interpreter() -> None:
    interpreted.all_pass(Path(__file__).with_name("triton_cases.py"))
