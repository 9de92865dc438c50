"""Pictures of attention maps."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np
import pytest

from vidaccel.report.attention import attention_picture


def test_a_head_that_looks_at_itself_is_a_dark_diagonal() -> None:
    diagonal, even = np.eye(16) / 16, np.full((16, 16), 1 / 256)
    one, other = (iio.imread(attention_picture({0: np.stack([head, head])})) for head in (diagonal, even))
    assert one.shape == other.shape and not np.array_equal(one, other)
    assert (one[..., :3].min(-1) < 10).mean() < (other[..., :3].min(-1) < 10).mean()


def test_layers_may_differ_in_heads_and_none_is_refused() -> None:
    maps = {3: np.ones((2, 4, 4)), 5: np.ones((1, 4, 4))}
    assert attention_picture(maps, "title", {3: ["0.9", "0.8"]}).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no attention map"):
        attention_picture({})
