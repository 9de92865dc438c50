"""Random blocks: the density asked for, no block likelier than another, the same draw from the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vidaccel
from tests import tiny
from vidaccel.layout import TokenLayout
from vidaccel.methods import method
from vidaccel.methods.random import Random, random_blocks
from vidaccel.plan import AttentionPlan
from vidaccel.site import Site

RAGGED = TokenLayout(13, 9, 13)
LAYOUTS = [
    RAGGED,
    TokenLayout(8, 8, 8),
    TokenLayout(13, 9, 13, text_after=32),
    TokenLayout(13, 9, 13, text_before=20),
    TokenLayout(4, 5, 7, text_before=16, text_after=3),
]


def planned(layout: TokenLayout, **options: object) -> AttentionPlan:
    site = Site(0, 1, 0, None, "cond", "transformer", layout)
    return method("random", "wan", **options).plan(None, None, None, site, {})


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("density", [0.5, 0.737, 0.9, 1.0])
def test_density_is_met(layout: TokenLayout, density: float) -> None:
    plan = planned(layout, density=density, block=16)
    assert plan.mask is not None
    plan.mask.validate()
    found = plan.density(layout).video_density
    # Within a block per row: 16 of the keys that a row can have.
    assert found == pytest.approx(density, abs=16 / layout.video_tokens)
    assert density < 1 or found == 1


@pytest.mark.parametrize("grid", ["21x30x52", "21x45x80", "33x45x80"])
@pytest.mark.parametrize("density", [0.1, 0.25, 1 / 3])
def test_rounding_of_rows_cancels_out_at_real_sizes(grid: str, density: float) -> None:
    layout = TokenLayout.parse(grid)
    assert planned(layout, density=density).density(layout).video_density == pytest.approx(density, abs=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_each_row_has_its_share_its_own_block_and_all_text(layout: TokenLayout) -> None:
    blocks = random_blocks(layout, 0.6, 16, 0)
    assert blocks.diagonal().all()
    token = torch.arange(layout.tokens)
    text = {int(t) // 16 for t in token if not layout.video_start <= t < layout.video_end}
    assert all(blocks[i].all() and blocks[:, i].all() for i in text)
    mask = planned(layout, density=0.6, block=16).mask
    assert mask is not None
    videos = mask.to_dense()[0][:, layout.video_start : layout.video_end].sum(dim=1)
    free = [tile for tile in range(len(blocks)) if tile not in text]
    kept = videos[[tile * 16 for tile in free]].double()
    assert (kept - kept.mean()).abs().max() <= 16


def test_no_block_is_likelier_than_another() -> None:
    """Over many seeds each block off the diagonal is kept equally often, the ragged last one too."""
    seeds = 400
    often = torch.stack([random_blocks(TokenLayout(5, 7, 9), 0.4, 16, seed) for seed in range(seeds)]).double().mean(0)
    assert (often.diagonal() == 1).all()
    off = often[~torch.eye(len(often), dtype=torch.bool)]
    expected, spread = off.mean(), (off.mean() * (1 - off.mean()) / seeds).sqrt()
    # 380 draws: five standard deviations are passed by one in a million.
    assert (off - expected).abs().max() < 5 * spread
    assert off.std() == pytest.approx(float(spread), rel=0.25)


def test_same_seed_same_plan() -> None:
    torch.manual_seed(1)
    first, state = planned(RAGGED, density=0.5, block=16, seed=7).mask, torch.get_rng_state()
    torch.manual_seed(2)
    second, other = (planned(RAGGED, density=0.5, block=16, seed=seed).mask for seed in (7, 8))
    assert first is not None and second is not None and other is not None
    assert torch.equal(first.ranges, second.ranges) and torch.equal(first.offsets, second.offsets)
    assert not torch.equal(first.ranges, other.ranges)
    # The draw is the method's own: the noise of a generation does not depend on it.
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_runs_in_a_pipeline_by_its_name() -> None:
    pipe = tiny.tiny_wan()
    dense = tiny.generate(pipe)
    setting = {"block": 16, "min_tokens": 0, "schedule": {"dense_first_steps": 0, "dense_first_layers": 0}}
    with vidaccel.enable(pipe, "random", density=1.0, **setting) as session:
        np.testing.assert_allclose(tiny.generate(pipe), dense, atol=1e-3)
        assert session.summary().to_dict()["calls"]["sparse"] > 0
    with vidaccel.enable(pipe, "random", density=0.3, **setting):
        assert np.abs(tiny.generate(pipe) - dense).max() > 1e-2
    assert np.array_equal(tiny.generate(pipe), dense)


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"density": 0}, "density 0 is outside"),
        ({"density": 1.01}, "outside"),
        ({"density": float("nan")}, "outside"),
        ({"block": 100}, "power of two"),
        ({"block": 8}, "power of two"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**63}, "seed 9223372036854775808"),
        ({"split": 16}, "no option 'split'; it has density, block, seed"),
    ],
)
def test_bad_options(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        method("random", "wan", **options)


def test_density_below_what_is_always_kept_is_an_error_that_names_it() -> None:
    blocks = torch.eye(4)
    layout = TokenLayout(1, 8, 8)
    with pytest.raises(ValueError, match=rf"below {blocks.mean().item():.4f}, the least of random with 16-token"):
        planned(layout, density=0.2, block=16)
    assert planned(layout, density=0.25, block=16).density(layout).video_density == 0.25
    with pytest.raises(ValueError, match=r"below 1\.0000, .* on 1x1x1"):
        planned(TokenLayout(1, 1, 1), density=0.5)


def test_defaults() -> None:
    assert method("random", "hunyuanvideo") == Random(0.25, 128, 0) and Random.static
