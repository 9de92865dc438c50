"""Predictors against what they are defined by: polynomials in the step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vidaccel.caching.predictors import PREDICTORS, Affine, Hold, Kept, Taylor, predictor


def history(made: Hold | Taylor, values: dict[int, Tensor]) -> Kept:
    kept = None
    for step, residual in values.items():
        kept = made.keep(kept, step, residual)
    assert kept is not None
    return kept


def by_definition(values: dict[int, Tensor], order: int, step: int) -> Tensor:
    """TaylorSeer's factors of the newest step, from the oldest on, as lists."""
    factors: list[Tensor] = []
    last = None
    for at, residual in values.items():
        new = [residual]
        for j in range(min(order, len(factors))):
            assert last is not None
            new.append((new[j] - factors[j]) / (at - last))
        factors, last = new, at
    assert last is not None
    return torch.stack([each * (step - last) ** j / math.factorial(j) for j, each in enumerate(factors)]).sum(0)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [(0,), (0, 1), (0, 3), (0, 1, 4), (2, 3, 5, 9)])
def test_taylor_is_its_definition(order: int, steps: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    values = {step: torch.randn(2, 5, 3, generator=generator) for step in steps}
    kept = history(Taylor(order), values)
    for ahead in (1, 2, 3):
        expected = by_definition(values, order, steps[-1] + ahead)
        torch.testing.assert_close(Taylor(order).predict(kept, steps[-1] + ahead), expected)
    assert len(kept.parts) == min(order + 1, len(steps)) <= Taylor(order).tensors


def test_taylor_continues_a_line() -> None:
    line = {step: torch.tensor([2.0 * step + 1, -step]) for step in (3, 4, 7)}
    for order in (1, 2):
        kept = history(Taylor(order), line)
        torch.testing.assert_close(Taylor(order).predict(kept, 10), torch.tensor([21.0, -10.0]))


def test_taylor_waits_for_its_start() -> None:
    """What lies before is as if it had not been computed."""
    generator = torch.Generator().manual_seed(0)
    values = {step: torch.randn(4, generator=generator) for step in (0, 1, 2, 4, 5)}
    late = {step: residual for step, residual in values.items() if step >= 2}
    for order in (1, 2):
        found = Taylor(order, start=2).predict(history(Taylor(order, start=2), values), 7)
        assert torch.equal(found, Taylor(order).predict(history(Taylor(order), late), 7))
    assert len(history(Taylor(1, start=2), {0: values[0], 1: values[1], 2: values[2]}).parts) == 1


def test_hold_is_the_last() -> None:
    kept = history(Hold(), {0: torch.zeros(2), 4: torch.ones(2)})
    assert torch.equal(Hold().predict(kept, 9), torch.ones(2)) and len(kept.parts) == 1 == Hold().tensors


def test_names() -> None:
    assert predictor("hold") == Hold() and predictor({"name": "taylor", "order": 2}) == Taylor(2)
    assert predictor(Affine()) == Affine() and set(PREDICTORS) == {"hold", "taylor", "affine"}


@pytest.mark.parametrize("given", ["spline", {"order": 1}, {"name": "taylor", "degree": 1}, 3,
                                   {"name": "taylor", "order": 3}, {"name": "taylor", "start": -1},
                                   {"name": "taylor", "order": True}])  # fmt: skip
def test_refusals(given: object) -> None:
    with pytest.raises(ValueError, match="predictor"):
        predictor(given)  # type: ignore[arg-type]
