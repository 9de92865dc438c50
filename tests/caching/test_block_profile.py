"""Which blocks are passed by, and when they are refreshed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.caching.made import computed_by, made, turn
from vidaccel.caching.block_profile import BlockProfile
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.caching.track import Track


def with_blocks(means: list[float], switch: int | None = None) -> CacheCalibration:
    """A calibration in which the blocks change so much, on average."""
    found = made(switch=switch)
    tracks: dict[str, dict[str, Track]] = {}
    for expert, branches in found.tracks.items():
        for sign, (branch, track) in zip((1, -1), branches.items(), strict=True):
            rows = [tuple(each + sign * 0.01 for each in means) for _ in range(1, track.steps)]
            changed = dataclasses.replace(track, blocks=((0.0,) * len(means), *rows))
            tracks.setdefault(expert, {})[branch] = changed
    return dataclasses.replace(found, tracks=tracks)


@pytest.mark.parametrize("switch", [None, 7])
def test_calmest_blocks_are_reused(switch: int | None) -> None:
    calibration = with_blocks([0.5, 0.1, 0.2, 0.6, 0.15, 0.9, 0.3, 0.7], switch)
    policy = BlockProfile(calibration, share=0.5)
    assert policy.changes == pytest.approx((0.5, 0.1, 0.2, 0.6, 0.15, 0.9, 0.3, 0.7))
    assert policy.segments(8) == ((1, 3), (4, 5), (6, 7))
    assert BlockProfile(calibration, share=0.5, runs=1).segments(8) == ((1, 5),)
    assert BlockProfile(calibration, share=1.0).segments(8) == ((0, 8),)
    assert BlockProfile(calibration, share=0.01).segments(8) == ((1, 2),)
    with pytest.raises(ValueError, match="of 8 blocks, and the model has 30"):
        policy.segments(30)


def test_changes_are_means_over_steps_branches_and_experts() -> None:
    calibration = made(switch=7)
    rows = [row for each in calibration.tracks.values() for track in each.values() for row in track.blocks[1:]]
    assert len(rows) == 2 * (6 + 4)
    assert BlockProfile(calibration).changes == pytest.approx(np.mean(rows, axis=0))


def test_interval_shrinks() -> None:
    policy = BlockProfile(made(), most=6, least=2, warmup=0.1)
    expected, last = [0, 1, 2, 3], 3
    for step in range(4, 40):
        interval = 6 - 4 * (step - 4) / 36
        if step - last >= interval:
            expected.append(step)
            last = step
    assert computed_by(policy, 40) == expected
    gaps = np.diff(expected[3:])
    assert gaps[0] == 6 and gaps[-1] in (2, 3) and list(gaps) == sorted(gaps, reverse=True)
    assert computed_by(BlockProfile(made(), most=3, least=3, warmup=0), 13) == [0, 3, 6, 9, 12]


def test_allowance_shortens_intervals() -> None:
    policy = BlockProfile(made(), most=4, least=4)
    assert policy.decide(turn(5, 3), None, {}).reuse  # type: ignore[arg-type]
    assert not policy.decide(turn(5, 3, allowance=0.7), None, {}).reuse  # type: ignore[arg-type]
    assert not policy.decide(turn(5, 0), None, {}).reuse  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "told"),
    [({"file": None}, "needs a calibration"), ({"share": 0}, "share"), ({"share": 1.5}, "share"),
     ({"share": "x"}, "share"), ({"runs": 0}, "runs"), ({"least": 0}, "least"), ({"most": 1}, "most"),
     ({"warmup": 1}, "warmup"), ({"most": 2.5}, "most"), ({"file": made(1)}, "no two steps")],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BlockProfile(**({"file": made()} | options))


def test_experts_must_be_alike() -> None:
    wide, narrow = made(switch=7), with_blocks([0.1, 0.2], 7)
    mixed = dataclasses.replace(wide, tracks={**wide.tracks, "transformer_2": narrow.tracks["transformer_2"]})
    with pytest.raises(ValueError, match="as many blocks as each other"):
        BlockProfile(mixed)
    with pytest.raises(ValueError, match="give num_inference_steps"):
        BlockProfile(wide).decide(turn(3, 1, None), None, {})  # type: ignore[arg-type]
