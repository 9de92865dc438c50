"""Predictors against what they are defined by: polynomials in the step."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tests.caching.made import made
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.caching.guided import Guided
from vidaccel.caching.predictors import PREDICTORS, Affine, Fitted, Hold, Kept, Predictor, Taylor, predictor


def history(made: Predictor, values: dict[int, Tensor]) -> Kept:
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
    series = Taylor(order, start=0, trend=1)
    kept = history(series, values)
    for ahead in (1, 2, 3):
        expected = by_definition(values, order, steps[-1] + ahead)
        torch.testing.assert_close(series.predict(kept, steps[-1] + ahead), expected)
    assert len(kept.parts) == min(order + 1, len(steps)) <= series.tensors


def test_taylor_continues_a_line() -> None:
    line = {step: torch.tensor([2.0 * step + 1, -step]) for step in (3, 4, 7)}
    for order in (1, 2):
        made = Taylor(order, trend=1.0)
        torch.testing.assert_close(made.predict(history(made, line), 10), torch.tensor([21.0, -10.0]))


def test_taylor_goes_part_of_the_way() -> None:
    """From what was computed last to what the whole series gives."""
    generator = torch.Generator().manual_seed(0)
    values = {step: torch.randn(4, generator=generator) for step in (2, 3, 5)}
    for order in (1, 2):
        made, whole = Taylor(order, trend=0.4), Taylor(order, trend=1)
        expected = values[5] + 0.4 * (whole.predict(history(whole, values), 8) - values[5])
        torch.testing.assert_close(made.predict(history(made, values), 8), expected)
    assert Taylor().trend == 0.7


def test_taylor_waits_for_its_start() -> None:
    """What lies before is as if it had not been computed."""
    generator = torch.Generator().manual_seed(0)
    values = {step: torch.randn(4, generator=generator) for step in (0, 1, 2, 4, 5)}
    late = {step: residual for step, residual in values.items() if step >= 2}
    for order in (1, 2):
        found = Taylor(order, start=2).predict(history(Taylor(order, start=2), values), 7)
        assert torch.equal(found, Taylor(order).predict(history(Taylor(order), late), 7))
    early = history(Taylor(1, start=2), {0: values[0], 1: values[1], 2: values[2]})
    assert torch.equal(Taylor(1, start=2).predict(early, 4), values[2])


def test_half_precision_keeps_small_differences() -> None:
    """A sum of large terms would round them away."""
    values = {3: torch.full((4,), 100.0, dtype=torch.bfloat16), 4: torch.full((4,), 100.5, dtype=torch.bfloat16)}
    found = Taylor(trend=1).predict(history(Taylor(), values), 6)
    assert found.dtype == torch.bfloat16 and torch.equal(found, torch.full((4,), 101.5, dtype=torch.bfloat16))


@pytest.mark.parametrize("past", [(3,), (3, 5), (1, 3, 5)])
def test_fitted_is_the_nearest_sum(past: tuple[int, ...]) -> None:
    """Least squares on the outputs themselves, over all prompts, each in its own unit."""
    made, outputs = guided_runs()
    fitted = Fitted(outputs=3, file=made)
    for step in (6, 8):
        scaled = [each / each.norm() for each in outputs]
        known = torch.cat([each[list(past)].T for each in scaled])
        wanted = torch.cat([each[step] for each in scaled])
        expected = torch.linalg.lstsq(known, wanted[:, None]).solution[:, 0]
        assert fitted.weights(past, step) == pytest.approx(expected.tolist(), abs=1e-3)
        kept = history(fitted, {at: outputs[0][at] for at in past})
        assert len(kept.parts) == len(past) == len(kept.steps)
        torch.testing.assert_close(fitted.predict(kept, step), (outputs[0][list(past)].T @ expected), atol=2e-3, rtol=0)
        # What it is told to err by is what it errs by.
        assert made.guided is not None
        error = made.guided.error(past, fitted.weights(past, step), step)
        true = (known @ expected - wanted).square().sum() / len(outputs) * len(outputs[0])
        assert error == pytest.approx(true.sqrt().item(), rel=0.02)


def guided_runs() -> tuple[CacheCalibration, list[Tensor]]:
    """A calibration of two runs of ten steps, and their outputs in fp64: smooth, and nearly alike."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(4, 60, generator=generator, dtype=torch.float64)
    at = torch.linspace(0, 1, 10, dtype=torch.float64)
    curves = torch.stack([at**0, at, (3 * at).sin(), (5 * at).exp() / 50], 1)
    noise = [torch.randn(10, 60, generator=generator, dtype=torch.float64) for _ in range(2)]
    outputs = [curves @ (waves + 0.3 * shift * waves.flip(0)) + 0.05 * each for shift, each in enumerate(noise)]
    inner = [each @ each.T / (each @ each.T).diagonal().mean() for each in outputs]
    rows = tuple(tuple(row[: step + 1]) for step, row in enumerate((sum(inner) / 2).tolist()))  # type: ignore[attr-defined]
    return dataclasses.replace(made(10), guided=Guided(rows, (0.1,) * 10)), outputs


def test_fitted_needs_a_calibration() -> None:
    with pytest.raises(ValueError, match="'fitted' needs a calibration"):
        Fitted().bound(None)
    with pytest.raises(ValueError, match="has not: its scheduler takes more than one"):
        Fitted(file=dataclasses.replace(made(), guided=None))
    known = guided_runs()[0]
    assert Fitted().bound(known).calibration is known and Fitted().bound(known) == Fitted()
    assert Fitted(file=known).bound(made()).calibration is known
    assert Fitted(file=known).to_dict() == {"name": "fitted", "outputs": 2, "file": ""}


def test_hold_is_the_last() -> None:
    kept = history(Hold(), {0: torch.zeros(2), 4: torch.ones(2)})
    assert torch.equal(Hold().predict(kept, 9), torch.ones(2)) and len(kept.parts) == 1 == Hold().tensors


def test_names() -> None:
    assert predictor("hold") == Hold() and predictor({"name": "taylor", "order": 2}) == Taylor(2)
    assert predictor(Affine()) == Affine() and set(PREDICTORS) == {"hold", "taylor", "fitted", "affine"}


@pytest.mark.parametrize("given", ["spline", {"order": 1}, {"name": "taylor", "degree": 1}, 3,
                                   {"name": "taylor", "order": 3}, {"name": "taylor", "start": -1},
                                   {"name": "taylor", "order": True}, {"name": "taylor", "trend": 0},
                                   {"name": "taylor", "trend": 1.1}, {"name": "fitted", "outputs": 5},
                                   {"name": "fitted", "outputs": 0}])  # fmt: skip
def test_refusals(given: object) -> None:
    with pytest.raises(ValueError, match="predictor"):
        predictor(given)  # type: ignore[arg-type]
