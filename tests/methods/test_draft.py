"""DraftAttention: its map and its budget by hand, presets, and runs in pipelines."""

from __future__ import annotations

import pytest
import torch

from tests.methods.brute import LAYOUTS, Cut, blocks_of, check_nothing_waits, check_plan, patches, pooled_map, refused
from tests.methods.online import PIPES, check_pipeline, site_of, states
from vidaccel.layout import TokenLayout
from vidaccel.methods import method
from vidaccel.methods.blocks import patch
from vidaccel.methods.draft import Draft


@pytest.mark.parametrize("options", [{"density": 0.4}, {"density": 0.4, "per_head": True}, {"top_p": 0.5}], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_plan_is_the_definition(layout: TokenLayout, options: dict[str, float]) -> None:
    chosen = Draft(block=16, **options)
    cut = Cut.of(layout, patches(layout, 4, 4), 16)
    check_plan(chosen, layout, cut, lambda query, key: pooled_map(query, key, cut), apart=chosen.per_head)


def test_patches() -> None:
    assert {block: patch(block) for block in (16, 32, 64, 128, 256)} == {
        16: (1, 4, 4), 32: (1, 4, 8), 64: (1, 8, 8), 128: (1, 8, 16), 256: (1, 16, 16),
    }  # fmt: skip
    order = Draft().order_of(TokenLayout(2, 16, 32))
    assert order == "tile:1x8x16"


def test_preset_is_the_published_setting() -> None:
    """On a grid that patches fill, the smallest three quarters of each head's map are dropped, but on the diagonal."""
    layout = TokenLayout(2, 16, 32)
    chosen = Draft(preset="wan")
    assert (chosen.density, chosen.block, chosen.per_head) == (0.25, 128, True)
    query, key, value = states(layout)
    kept = blocks_of(chosen.plan(query, key, value, site_of(layout), {}))
    assert kept.flatten(1).sum(1).tolist() == [16, 16, 16]
    assert kept.diagonal(dim1=1, dim2=2).all()
    hunyuan = Draft(preset="hunyuanvideo")
    schedule = hunyuan.schedule()
    assert hunyuan.density == 0.1 and schedule is not None
    assert (schedule.resolve(50, 60).first_step, schedule.resolve(50, 60).first_layer) == (12, 2)
    assert Draft().schedule() is None and Draft().density == 0.25 and not Draft().per_head
    # What a record holds of it makes it again; what replaces a budget of a profile replaces its preset.
    assert method("draft", "wan", preset="wan", density=0.25, block=128, per_head=True) == chosen
    assert Draft.merged({"preset": "wan", "density": 0.25}, {"top_p": 0.9}) == {"top_p": 0.9}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"preset": "svg"}, "unknown preset 'svg' of draft; choose wan, hunyuanvideo"),
     ({"preset": "wan", "density": 0.5}, r"preset 'wan' has its own density, not 0\.5"),
     ({"preset": "wan", "top_p": 0.5}, "a density or top_p, not both"),
     ({"preset": "wan", "block": 64}, "has its own block, not 64"),
     ({"density": 0.5, "top_p": 0.5}, "not both"), ({"density": 2}, "outside"), ({"block": 48}, "power of two")],
)  # fmt: skip
def test_bad_options(options: dict[str, object], complaint: str) -> None:
    refused(Draft, complaint, **options)


@pytest.mark.parametrize("options", [{}, {"per_head": True}, {"density": None, "top_p": 0.5}], ids=str)
def test_nothing_waits(options: dict[str, object]) -> None:
    check_nothing_waits(Draft(**{"density": 0.4, "block": 16, **options}))
    check_nothing_waits(Draft(**{"density": 0.4, "block": 16, **options}), LAYOUTS[1])


@pytest.mark.parametrize("family", PIPES)
def test_runs_in_pipelines(family: str) -> None:
    check_pipeline("draft", family)


def test_heads_give_to_each_other_within_a_batch_row() -> None:
    """A head of even attention leaves its share to one that is sure; with a budget each both keep the same."""
    layout = TokenLayout(4, 8, 8)
    query, key, value = states(layout, heads=2)
    query[:, :, 0] *= 0.01
    query[:, :, 1] *= 20
    together, apart = (
        blocks_of(Draft(density=0.3, block=16, per_head=each).plan(query, key, value, site_of(layout), {})).sum((1, 2))
        for each in (False, True)
    )
    assert torch.equal(apart, torch.full((2,), 76)) and together[1] > together[0] > 0
