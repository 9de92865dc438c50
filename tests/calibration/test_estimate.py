from __future__ import annotations

import pytest

from vidaccel.calibration.estimate import Model, Rates, estimate
from vidaccel.layout import TokenLayout

WAN = Model(TokenLayout(21, 45, 80), layers=40, heads=40, head_dim=128, weights=14e9, passes=2, steps=50)


def test_a_generation_is_counted() -> None:
    """Wan 14B at 720p: attention is 4.68 PFLOP of a pass, linear layers 2.12."""
    found = estimate(WAN, prompts=1)
    assert found.model_pflop == pytest.approx(100 * (4 * 75600**2 * 5120 * 40 + 2 * 14e9 * 75600) / 1e15)
    assert found.model_pflop == pytest.approx(680, rel=0.01)
    assert found.generating == pytest.approx(found.model_pflop * 1e15 / Rates().model)


def test_measuring_is_a_small_part() -> None:
    found = estimate(WAN)
    assert 0 < found.measuring < 0.1 * found.generating
    assert found.seconds == found.generating + found.measuring + found.choosing
    assert estimate(WAN, rows=128).measuring > found.measuring
    assert estimate(WAN, rates=Rates(model=900e12)).generating == pytest.approx(found.generating / 2)
