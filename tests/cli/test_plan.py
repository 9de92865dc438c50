"""`vidaccel plan`: patterns by name, and pictures."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from tests import commands
from vidaccel.patterns import PATTERNS

run = functools.partial(commands.run, "plan")
values_of = functools.partial(commands.values_of, "plan")


@pytest.mark.parametrize("name", [name for name, cls in PATTERNS.items() if "scaled" in vars(cls)])
def test_every_pattern_with_a_size_reaches_a_density(name: str) -> None:
    values = values_of(f"pattern:{name}", "--grid", "13x30x45", "--density", 0.5, "--block", 32)
    assert values["method"] == f"pattern:{name}" and values["options"]["name"] == name
    assert values["options"]["block"] == 32 and values["video_density"] == pytest.approx(0.5, abs=0.06)


def test_a_pattern_takes_its_fields() -> None:
    values = values_of(
        "pattern:band", "--grid", "9x12x16", "--set", "width=0.1", "--set", "axes=HWF", "--text-after", 9
    )
    assert values["options"] == {"name": "band", "width": 0.1, "axes": "HWF", "sink": 0.0, "block": 128}
    found = values_of("pattern:band", "--grid", "21x30x52", "--density", 0.3, "--set", "axes=hilbert")
    assert found["options"]["axes"] == "hilbert" and found["video_density"] == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pattern:bend"], "unknown pattern 'bend'; choose .*band"),
        (["pattern:band"], "pattern 'band' needs 'width'"),
        (["pattern:band", "--set", "width=2"], "width=2 is not a fraction"),
        (["pattern:band", "--set", "height=2"], "pattern 'band' has no option 'height'; it has width, axes, sink"),
        (["pattern:band", "--density", "2"], r"density 2.0 is outside \(0, 1\]"),
        (["pattern:band", "--density", "0.3", "--set", "width=0.1"], "'band' with these fields has no size"),
        (["pattern:dense", "--density", "0.3"], "'dense' has no size to solve a density for"),
        (["pattern:band", "--density", "0.3", "--block", "0"], "block 0 is not"),
        (["radial", "--picture", "map.jpg"], "'map.jpg' does not end in .png"),
    ],
)
def test_bad_patterns_are_one_line(words: list[str], said: str) -> None:
    result = run(*words, "--grid", "9x12x16", "--json")
    assert result.exit_code == 2 and not result.stdout
    assert re.search(said, result.stderr) and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [("radial",), ("pattern:temporal", "--density", "0.3"), ("pattern:dense",)])
def test_a_picture_is_drawn(words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "new" / "map.png"
    values_of(*words, "--grid", "9x12x16", "--block", 16, "--picture", path)
    assert path.read_bytes().startswith(b"\x89PNG") and [each.name for each in path.parent.iterdir()] == ["map.png"]
