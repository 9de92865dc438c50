from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests.tiny import tiny_wan_transformer
from vidaccel.eval import sizes
from vidaccel.layout import TokenLayout
from vidaccel.methods import METHODS, Method, method
from vidaccel.plan import AttentionPlan, BlockMask


@dataclasses.dataclass(frozen=True)
class Half(Method):
    """Keeps the first half of the keys of a sequence of 256 tokens."""

    name = "half"
    static = True

    def plan(self, query: Any, key: Any, value: Any, site: Any, state: Any) -> AttentionPlan:
        blocks = torch.tensor([[[True, False], [True, False]]])
        return AttentionPlan(BlockMask.from_blocks(blocks, 128, 128, 256, 256))


def test_counted_work_by_hand() -> None:
    size = sizes.ModelSize("toy", "wan", TokenLayout(4, 8, 8), heads=2, head_dim=64, layers=10, passes=2)
    assert size.dense_pflop == pytest.approx(2 * 10 * 4 * 256**2 * 2 * 64 / 1e15)
    row = sizes.counted(size, Half(), dense_layers=2)
    # Two of ten layers dense, eight at half: 6 of 10.
    assert row["counted_attention_gain"] == pytest.approx(10 / 6)
    assert row["sparse_pflop_per_step"] == pytest.approx(size.dense_pflop * 0.6)
    assert row["video_density"] == pytest.approx(0.5) and row["tokens"] == 256 and row["grid"] == "4x8x8"


def test_published_sizes() -> None:
    """PFLOP of one forward's dense self-attention, worked out by hand from the models' configurations."""
    per_pass = {size.model: size.dense_pflop / size.passes for size in sizes.REAL_SIZES}
    assert per_pass["Wan2.1-T2V-14B 480x832x81"] == pytest.approx(0.88, abs=0.005)
    assert per_pass["Wan2.1-T2V-14B 720x1280x81"] == pytest.approx(4.68, abs=0.005)
    assert per_pass["Wan2.2-T2V-A14B 720x1280x121"] == pytest.approx(10.20, abs=0.005)
    assert per_pass["HunyuanVideo 720x1280x129"] == pytest.approx(10.45, abs=0.005)
    assert per_pass["CogVideoX-5B 480x720x49"] == pytest.approx(0.16, abs=0.005)
    assert per_pass["CogVideoX1.5-5B 768x1360x81"] == pytest.approx(1.05, abs=0.005)


@pytest.mark.parametrize("name", METHODS)
def test_every_static_method_is_counted_at_every_size(name: str) -> None:
    rows = sizes.real_sizes(name)
    if not METHODS[name].static or name == "head_profile":
        assert rows == [], "a plan that depends on the run, or on one model's profile"
        return
    assert [row["model"] for row in rows] == [size.model for size in sizes.REAL_SIZES]
    assert all(0 < row["video_density"] < 1 and 1 < row["counted_attention_gain"] < 50 for row in rows)


def test_rows_are_the_plans_of_the_methods_own_code() -> None:
    row = sizes.real_sizes("radial", dense_layers=0)[1]
    plan = method("radial", "wan").plan(None, None, None, sizes.plan_site(TokenLayout(21, 45, 80)), {})
    density = plan.density(TokenLayout(21, 45, 80))
    assert row["video_density"] == density.video_density
    assert row["counted_attention_gain"] == pytest.approx(1 / density.computed_density)


def test_attention_share_grows_with_tokens() -> None:
    transformer = tiny_wan_transformer()
    shares = [sizes.attention_share(transformer, tokens, 2, 2, 64) for tokens in (100, 1_000, 100_000)]
    parameters = sum(each.numel() for each in transformer.parameters())
    assert 0 < shares[0] < shares[1] < shares[2] < 1
    # Equal work where 4 * tokens * heads * head_dim * layers is 2 * parameters.
    even = parameters * 2 / (4 * 2 * 64 * 2)
    assert sizes.attention_share(transformer, round(even), 2, 2, 64) == pytest.approx(0.5, abs=0.001)
