"""The training's checkpoints: a run that is stopped and resumed goes on exactly as if it had not been."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

TRAINING = Path(__file__).resolve().parents[2] / "miniatures" / "training"


@pytest.fixture(scope="module")
def common() -> ModuleType:
    spec = importlib.util.spec_from_file_location("miniature_training_common", TRAINING / "common.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)


def step(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    layer(torch.arange(4.0)).square().sum().backward()
    optimizer.step()


def test_resumed_optimizer_takes_the_same_step(common: ModuleType, tmp_path: Path) -> None:
    layer, optimizer = build()
    step(layer, optimizer)
    common.save_state(
        tmp_path, "run", layer.state_dict() | common.optimizer_tensors(optimizer, "opt"), {"n": 1}
    )
    tensors, facts = common.load_state(tmp_path, "run")
    resumed, its_optimizer = build()
    resumed.load_state_dict({key: tensors[key] for key in resumed.state_dict()})
    common.restore_optimizer(its_optimizer, "opt", tensors)
    step(layer, optimizer)
    step(resumed, its_optimizer)
    assert facts == {"n": 1} and torch.equal(layer.weight, resumed.weight)
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_nothing_saved_is_none(common: ModuleType, tmp_path: Path) -> None:
    assert common.load_state(tmp_path, "run") is None


def test_learning_rate_rises_holds_and_ends_at_zero(common: ModuleType) -> None:
    assert common.annealed(0.0) == 0.0 and common.annealed(1.0) == 0.0
    assert common.annealed(0.02) == common.annealed(0.4) == 1.0
    assert common.annealed(0.7) == pytest.approx(0.5)


def test_clock_carries_over_earlier_seconds(common: ModuleType) -> None:
    assert common.Clock(1.0, spent=30.0).progress == pytest.approx(0.5, abs=0.05)
    assert common.Clock(1.0, spent=90.0).progress == 1.0
