"""docs/support.md shows the record that the package has, under columns that it explains."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.pipelines.support import BEGIN, END, PAGE, between, record, shown
from vidaccel.pipelines import support

RECORD: dict[str, Any] = {
    "versions": {"diffusers": "0.42.1", "torch": "2.13.0"},
    "models": {"B": {"transformer": "B", "family": "b", "features": {"dense": "yes", "cache": "refused"}},
               "A": {"transformer": "A", "family": "a", "features": {"dense": "yes", "fused projections": "no such"}}},
}  # fmt: skip


def test_the_page_shows_the_record() -> None:
    """`python -m tests.pipelines.support --page` writes it anew."""
    page = PAGE.read_text(encoding="utf-8")
    assert support.table(support.recorded()) in between(page)
    assert shown(page, record()) == page


def test_a_table_takes_the_place_of_the_last_one_and_leaves_the_rest() -> None:
    page = f"before\n{BEGIN}\n{END}\nafter\n"
    once = shown(page, RECORD)
    assert between(once) == f"diffusers 0.42.1, torch 2.13.0\n\n{support.table(RECORD)}"
    assert once.startswith(f"before\n{BEGIN}\n") and once.endswith(f"\n{END}\nafter\n")
    assert shown(once, RECORD) == once
    assert shown(shown(once, {**RECORD, "models": {}}), RECORD) == once
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in support.table(RECORD).splitlines()[2:]]
    assert [row[:3] for row in rows] == [["A", "a", "yes"], ["B", "b", "yes"]]
    assert "refused" in rows[1] and set(rows[0][3:]) == {"-"}


@pytest.mark.parametrize("page", ["", BEGIN, END, END + BEGIN, BEGIN + BEGIN + END, BEGIN + END + END])
def test_a_page_without_its_markers_is_an_error(page: str) -> None:
    for call in (lambda: between(page), lambda: shown(page, RECORD)):
        with pytest.raises(ValueError, match="the page has not one"):
            call()


def test_every_column_is_explained() -> None:
    text = PAGE.read_text(encoding="utf-8").partition(BEGIN)[0]
    explained = re.findall(r"^\| (.+?) \| ", text.partition("| column |")[2], re.MULTILINE)
    assert explained == list(support.FEATURES.values())
