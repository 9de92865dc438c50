"""The radial mask: the authors' densities, a slow reference of their rule, and the density target."""

import math

import pytest
import torch

from vidaccel.layout import TokenLayout
from vidaccel.methods import method
from vidaccel.methods.radial import Radial, Shape, frame_widths, radial_blocks
from vidaccel.site import Site


def planned(layout, family="wan", **options):
    site = Site(0, 1, 0, None, "cond", "transformer", layout)
    return method("radial", family, **options).plan(None, None, None, site, {})


def densities(grid, family="wan", text_after=0, **options):
    layout = TokenLayout.parse(grid, text_after=text_after)
    return planned(layout, family, **options).density(layout)


@pytest.mark.parametrize(
    "grid, family, decay, density",
    [
        ("18x48x80", "wan", 0.2, 0.2871),
        ("18x48x80", "wan", 1.0, 0.4309),
        ("20x48x80", "wan", 0.8, 0.3525),
        ("30x48x80", "hunyuanvideo", 0.95, 0.2746),
    ],
)
def test_upstream_densities(grid, family, decay, density):
    found = densities(grid, family, decay=decay, preset="upstream")
    assert round(found.density, 4) == density == round(found.video_density, 4)


def test_upstream_video_density_does_not_depend_on_text():
    found = densities("30x48x80", "hunyuanvideo", text_after=256, decay=0.95, preset="upstream")
    assert round(found.video_density, 4) == 0.2746 and found.density > found.video_density


@pytest.mark.parametrize(
    "decay, pairs",
    [
        (0.2, {2: 0.0978, 17: 0.0978}),
        (0.8, {2: 0.3867, 3: 0.3867, 4: 0.22, 7: 0.22, 8: 0.0978}),
        (1.0, {2: 0.4867, 4: 0.2778, 8: 0.16, 16: 0.0978}),
    ],
)
def test_upstream_density_of_each_frame_pair(decay, pairs):
    blocks = radial_blocks(TokenLayout(18, 48, 80), Shape(decay, sink=0.0), 128).view(18, 30, 18, 30)
    assert blocks[0, :, 0].all() and blocks[0, :, 1].all()
    for distance, density in pairs.items():
        assert round(blocks[0, :, distance].float().mean().item(), 4) == density


@pytest.mark.parametrize("grid, floor", [("18x48x80", 0.2871), ("21x45x80", 0.2509), ("21x30x52", 0.3388)])
def test_floors(grid, floor):
    assert round(densities(grid, decay=0.0).video_density, 4) == floor


def slow_blocks(layout, shape, block):
    """The upstream rule token by token, columns of a block divided by its valid rows."""
    tokens, size = layout.tokens, layout.frame_tokens
    count = -(-tokens // block)
    kept = torch.eye(count, dtype=torch.bool)
    widths = frame_widths(layout, shape, block)
    distance = (torch.arange(size)[:, None] - torch.arange(size)[None]).abs()
    for i in range(layout.frames):
        for j in range(layout.frames):
            whole = torch.zeros(count * block, count * block)
            rows, columns = (layout.text_before + frame * size for frame in (i, j))
            whole[rows : rows + size, columns : columns + size] = (distance <= widths[i, j]).float()
            columns_filled = whole.view(count, block, count, block).sum(1)
            valid = (tokens - torch.arange(count) * block).clamp(max=block)
            dense = (columns_filled / valid[:, None, None] > 1 / 3).sum(-1)
            filled = (columns_filled > 0).sum(-1)
            kept |= (filled > 0) & (dense / filled.clamp(min=1) > 0.6)
    for start, stop in ((0, layout.video_start), (layout.video_end, tokens)):
        for token in range(start, stop):
            kept[token // block] = True
            kept[:, token // block] = True
    return kept


@pytest.mark.parametrize(
    "layout",
    [
        TokenLayout(5, 9, 13),
        TokenLayout(7, 5, 7),
        TokenLayout(3, 8, 8),
        TokenLayout(1, 3, 3),
        TokenLayout(4, 5, 7, text_before=11),
        TokenLayout(4, 5, 7, text_after=21),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [Shape(0.0), Shape(0.6, sink=0.0), Shape(0.3, 0.4, 0.5), Shape(3.0)])
def test_closed_form_equals_the_rule_token_by_token(layout, shape):
    assert torch.equal(radial_blocks(layout, shape, 16), slow_blocks(layout, shape, 16))


@pytest.mark.parametrize("grid, block", [("18x48x80", 128), ("21x45x80", 128), ("21x30x52", 64), ("13x9x13", 16)])
@pytest.mark.parametrize("target", [0.2, 0.25, 0.3, 0.5, 0.75, 1.0])
def test_density_target_is_met(grid, block, target):
    layout = TokenLayout.parse(grid)
    plan = planned(layout, density=target, block=block)
    found = plan.density(layout).video_density
    said = any("the nearest on" in note for note in plan.notes)
    # A small grid's mask changes in large jumps; then the plan says what it reached.
    assert math.isclose(found, target, abs_tol=0.02) != said
    assert block == 16 or not said


def test_target_below_the_floor_narrows_and_says_so():
    layout = TokenLayout(21, 45, 80)
    assert planned(layout, density=0.3).notes == ()
    window, sink = planned(layout, density=0.22).notes[0], planned(layout, density=0.15).notes[0]
    assert "floor of 0.2509" in window and "adjacent frames" in window and "first frame" not in window
    assert "adjacent frames" in sink and "first frame" in sink


def test_upstream_target_below_the_floor_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"0\.2509"):
        planned(TokenLayout(21, 45, 80), density=0.25, preset="upstream")
    with pytest.raises(ValueError, match="least of radial"):
        planned(TokenLayout(21, 45, 80), density=0.01)


@pytest.mark.parametrize(
    "layout", [TokenLayout(21, 45, 80), TokenLayout(13, 30, 45, text_before=226), TokenLayout(1, 1, 1)], ids=str
)
def test_no_row_is_empty_and_text_is_whole(layout):
    mask = planned(layout, decay=0.0).mask
    mask.validate()
    assert ((mask.offsets[:, 1:] - mask.offsets[:, :-1]) > 0).all()
    if layout.text_before:
        assert mask.ranges[0].tolist() == [0, layout.tokens]


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"density": 0}, "outside"),
        ({"density": 1.2}, "outside"),
        ({"density": float("nan")}, "outside"),
        ({"decay": -1}, "decay"),
        ({"decay": 1, "density": 0.5}, "not both"),
        ({"block": 100}, "power of two"),
        ({"preset": "fast"}, "upstream"),
        ({"preset": "upstream", "block": 64}, "block=128"),
        ({"split": 0}, "split"),
        ({"sparsity": 0.5}, "no option 'sparsity'"),
    ],
)
def test_bad_options(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        method("radial", "wan", **options)


def test_family_defaults():
    assert method("radial", "wan") == Radial(decay=0.2) and not method("radial", "hunyuanvideo").sink
    with pytest.raises(ValueError, match="unknown method 'radical'; choose .*radial"):
        method("radical", "wan")
