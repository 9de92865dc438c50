"""Where planning operations run, and that importing them costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidaccel.planning import dispatch

ROOT = Path(__file__).resolve().parent.parent.parent
ON_CPU = torch.zeros(2)


def test_on_a_cpu_operations_run_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not dispatch.uses_triton(ON_CPU)
    with dispatch.forced("torch"):
        assert not dispatch.uses_triton(ON_CPU)
    with dispatch.forced("triton"), pytest.raises(ValueError, match="needs a CUDA or ROCm GPU, a tensor is on cpu"):
        dispatch.uses_triton(ON_CPU)
    assert not dispatch.uses_triton(ON_CPU)  # what was forced is over, after an error, too


def test_under_the_interpreter_they_run_in_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.uses_triton(ON_CPU, ON_CPU.int())
    assert not dispatch.uses_triton(ON_CPU, unless="it is Sunday")
    assert not dispatch.uses_triton(ON_CPU, ON_CPU.bfloat16())
    assert not dispatch.uses_triton(ON_CPU, ON_CPU.double())
    with dispatch.forced("torch"):
        assert not dispatch.uses_triton(ON_CPU)
    with dispatch.forced("triton"), pytest.raises(ValueError, match="cannot run .* it is Sunday"):
        dispatch.uses_triton(ON_CPU, unless="it is Sunday")


def test_unknown_implementation() -> None:
    with pytest.raises(ValueError, match="implementation 'cuda'; choose triton or torch"), dispatch.forced("cuda"):
        pass


def test_importing_the_operations_imports_no_triton() -> None:
    names = sorted(path.stem for path in (ROOT / "vidaccel" / "planning").glob("*.py"))
    modules = [f"vidaccel.planning.{name}" for name in names if not name.startswith(("triton", "__"))]
    assert len(modules) >= 9
    code = f"import sys; sys.modules['triton'] = None; import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
