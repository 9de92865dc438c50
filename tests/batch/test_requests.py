from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vidaccel.batch import Request, read_requests
from vidaccel.batch.requests import read_seeds


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_every_prompt_runs_with_every_seed(tmp_path: Path) -> None:
    file = written(tmp_path / "prompts.txt", "# mine", "A red circle, moving left!", "", "ночь")
    found = read_requests(file, (7, 3))
    assert found == [Request(0, "A red circle, moving left!", 7), Request(0, "A red circle, moving left!", 3),
                     Request(1, "ночь", 7), Request(1, "ночь", 3)]  # fmt: skip
    assert [each.name for each in found[1:3]] == ["0000-a-red-circle-moving-left-seed3", "0001-seed7"]
    assert found[0].title == "A red circle, m..., seed 7" and len(Request(1, "a b " * 40, 0).name) < 60
    # Whoever adds a seed or a prompt finds the others under the names that they had.
    more = read_requests(written(tmp_path / "more.txt", "A red circle, moving left!", "ночь", "a star"), (0, 3, 7))
    assert {each.name for each in found} < {each.name for each in more}


def test_lines_may_have_settings_of_their_own(tmp_path: Path) -> None:
    file = written(tmp_path / "clips.jsonl", {"prompt": "a"}, "", {"prompt": "b", "seed": 9, "image": "in/b.png"},
                   {"prompt": "a", "negative_prompt": "", "last_image": "/c.png"})  # fmt: skip
    found = read_requests(file, (1, 2))
    assert [(each.number, each.seed) for each in found] == [(0, 1), (0, 2), (1, 9), (2, 1), (2, 2)]
    assert found[2].own == {"image": str(tmp_path / "in" / "b.png")}
    assert found[3].own == {"negative_prompt": "", "last_image": "/c.png"}


@pytest.mark.parametrize(
    ("name", "lines", "said"),
    [
        ("a.txt", ["# nothing"], "has no prompt"),
        ("a.jsonl", [""], "has no prompt"),
        ("a.txt", ["a cat", "a dog", "a cat"], "prompts 1 and 3 ask for the same clip: a cat, seed 0"),
        ("a.jsonl", ["{"], "line 1 of .*a.jsonl is not JSON"),
        ("a.jsonl", [{"prompt": "a"}, ["a"]], "line 2 of .* is no object with a prompt"),
        ("a.jsonl", [{"text": "a"}], "is no object with a prompt"),
        ("a.jsonl", [{"prompt": " "}], "prompt ' ' is not a text"),
        ("a.jsonl", [{"prompt": "a", "steps": 3}], "has 'steps'; a line may have prompt, seed, negative_prompt, image"),
        ("a.jsonl", [{"prompt": "a", "seed": -1}], "seed -1 is not a whole number of at least 0"),
        ("a.jsonl", [{"prompt": "a", "seed": True}], "seed True is not"),
        ("a.jsonl", [{"prompt": "a", "image": 3}], "image 3 is not a text"),
        ("a.jsonl", ['{"prompt": "a", "prompt": "b"}'], "not JSON|twice"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, lines: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_requests(written(tmp_path / name, *lines))


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("gone.txt", "gone.jsonl"):
        with pytest.raises(ValueError, match="prompts file .* cannot be read"):
            read_requests(tmp_path / name)


def test_seeds() -> None:
    assert read_seeds("5") == (5,) and read_seeds("0-3") == (0, 1, 2, 3) and read_seeds("7, 0-1,3") == (7, 0, 1, 3)


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "3-1", "1.5", "1-2-3", "0-99999999", "²"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="are not numbers and ranges of them, such as 0,1,7 or 0-4"):
        read_seeds(text)


def test_seeds_that_come_twice() -> None:
    with pytest.raises(ValueError, match="name one twice"):
        read_seeds("0-4,3")
