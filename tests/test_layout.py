"""Token layouts."""

import pytest

from vidaccel.layout import TokenLayout


def test_positions_of_video_and_text():
    layout = TokenLayout(21, 45, 80, text_before=226, text_after=7)
    assert layout.frame_tokens == 3600
    assert layout.video_tokens == 75_600
    assert (layout.video_start, layout.video_end) == (226, 75_826)
    assert layout.tokens == 75_833


def test_equal_layouts_are_one_cache_key():
    assert {TokenLayout(2, 3, 4): "plan"}[TokenLayout(2, 3, 4, 0, 0)] == "plan"
    assert TokenLayout(2, 3, 4) != TokenLayout(2, 4, 3)


@pytest.mark.parametrize("text", ["21x45x80", " 21x45x80 "])
def test_parse(text):
    assert TokenLayout.parse(text, text_after=3) == TokenLayout(21, 45, 80, text_after=3)


@pytest.mark.parametrize("text", [
    "", "21x45", "21x45x80x2", "0x45x80", "21x0x80", "-1x45x80", "21X45X80", "21x4.5x80", "21 x45x80", "axbxc",
    "9999999999x1x1",
])
def test_parse_says_what_a_grid_is(text):
    with pytest.raises(ValueError, match="FRAMESxHEIGHTxWIDTH"):
        TokenLayout.parse(text)


@pytest.mark.parametrize("field", ["frames", "height", "width", "text_before", "text_after"])
@pytest.mark.parametrize("size", [-1, 1.0, "3", None, True])
def test_sizes_that_no_grid_has(field, size):
    sizes = {"frames": 1, "height": 1, "width": 1, field: size}
    with pytest.raises(ValueError, match=f"{field}="):
        TokenLayout(**sizes)


@pytest.mark.parametrize("field", ["frames", "height", "width"])
def test_a_grid_has_at_least_one_token_a_side(field):
    with pytest.raises(ValueError, match=f"{field}=0"):
        TokenLayout(**{"frames": 1, "height": 1, "width": 1, field: 0})


@pytest.mark.parametrize("layout, text", [
    (TokenLayout(2, 3, 4), "2x3x4"),
    (TokenLayout(2, 3, 4, text_after=5), "2x3x4 + 5 text"),
    (TokenLayout(2, 3, 4, text_before=5), "2x3x4 after 5 text"),
    (TokenLayout(2, 3, 4, 5, 6), "2x3x4 after 5 text + 6 text"),
])
def test_str(layout, text):
    assert str(layout) == text
