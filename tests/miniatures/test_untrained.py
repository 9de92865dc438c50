"""The untrained miniatures: real classes, made alike from the same seed. tests/test_examples.py runs them."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from torch import nn
from vidaccel_miniatures import untrained as module

from vidaccel.pipelines import experts, family_of

every_name = pytest.mark.parametrize("name", module.available())


def weights(pipe: Any) -> torch.Tensor:
    return torch.cat([each.flatten() for each in pipe.transformer.parameters()])


@every_name
def test_pipeline(name: str) -> None:
    before = torch.random.get_rng_state()
    pipe = module.untrained(name)
    assert torch.equal(before, torch.random.get_rng_state())
    assert getattr(diffusers, type(pipe).__name__) is type(pipe)
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    assert len(parts) >= 3 and not any(part.training for part in parts)
    assert sum(each.numel() for part in parts for each in part.parameters()) < 1e7
    # Of two experts, one for each part of a run.
    assert all(family_of(each) for each in experts(pipe).values())
    assert set(module.generation_defaults(name)) <= set(inspect.signature(pipe.__call__).parameters)


def test_weights_come_from_the_seed() -> None:
    first, again, other = (weights(module.untrained("ltx", seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_wan22_has_two_experts() -> None:
    both = experts(module.untrained("wan22_t2v"))
    assert list(both) == ["transformer", "transformer_2"]


@pytest.mark.parametrize("function", [module.untrained, module.generation_defaults])
def test_unknown_names_are_refused(function: Any) -> None:
    with pytest.raises(ValueError, match="no untrained miniature named 'wan'; available: wan_i2v, .*cosmos"):
        function("wan")


def test_defaults_are_a_copy() -> None:
    module.generation_defaults("ltx")["height"] = 1
    assert module.generation_defaults("ltx")["height"] == 96
