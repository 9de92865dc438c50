"""An eval as Markdown: the table, its pictures, what stays of a document."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from tests.report.evals import eval_of_all, record, write
from vidaccel.report.eval_folder import Group, read_groups
from vidaccel.report.marks import BEGIN, END
from vidaccel.report.model_card import table, write_markdown


@pytest.fixture
def groups(tmp_path: Path) -> list[Group]:
    return read_groups([write(tmp_path / "eval", eval_of_all())])


def cells(markdown: str) -> list[list[str]]:
    """The texts of the first table, as a reader of Markdown sees it."""
    rows: list[list[str]] = []
    for token in MarkdownIt().enable("table").parse(markdown):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "table_close":
            break
        elif token.type == "inline" and rows:
            rows[-1].append("".join(child.content for child in token.children or []))
    return rows


def test_table_has_dense_first_and_arrows(groups: list[Group]) -> None:
    head, first, *rest = cells(table(groups[0]))
    assert head[:5] == ["#", "method", "density", "speed ↑", "PSNR dB ↑"] and "latent error ↓" in head
    assert first[:5] == ["1", "dense ★", "–", "1.00x", "∞"]
    assert [row[1] for row in rest] == ["dense+easycache(threshold=0.1) ★", "radial", "↳ fewer-steps", "↳ random",
                                        "radial ★", "radial+easycache(threshold=0.1) ★"]  # fmt: skip
    assert rest[1][2:5] == ["0.3", "1.84x", "30.75"]


def test_names_mean_nothing_in_markdown(tmp_path: Path) -> None:
    label = "a|b*c*_d_[e](f)<script>`g`\\"
    group = read_groups([write(tmp_path, [record(label)])])[0]
    assert cells(table(group))[2][1] == f"{label} ★" and "<script" not in table(group).replace("\\<", "")


def test_document_and_pictures(groups: list[Group], tmp_path: Path) -> None:
    out = tmp_path / "docs" / "results.md"
    out.parent.mkdir()
    written = write_markdown(groups, out)
    names = ["pareto-miniature-wan.png", "pareto-org-other.png"]
    assert written == [out, *(tmp_path / "docs" / "images" / name for name in names)]
    text = out.read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([^)]+)\)", text):
        assert (out.parent / path).read_bytes().startswith(b"\x89PNG")
        assert (out.parent / path).stat().st_size < 60_000
    assert text.count("](images/") == 2 and "torch 2.13.0" in text and "git abc123" in text and "Some CPU" in text
    assert "16 generations over 2 prompts" in text


def test_pictures_may_lie_elsewhere(groups: list[Group], tmp_path: Path) -> None:
    out, images = tmp_path / "a" / "card.md", tmp_path / "b c"
    out.parent.mkdir()
    write_markdown(groups, out, images)
    assert "](../b%20c/pareto-miniature-wan.png)" in out.read_text(encoding="utf-8")
    assert (images / "pareto-miniature-wan.png").exists()


def test_document_keeps_its_own_text(groups: list[Group], tmp_path: Path) -> None:
    out = tmp_path / "README.md"
    out.write_text(f"# Mine\n\n{BEGIN}\nformer\n{END}\n\nAfter.\n", encoding="utf-8")
    for _ in range(2):
        write_markdown(groups, out)
        text = out.read_text(encoding="utf-8")
        assert text.startswith(f"# Mine\n\n{BEGIN}\n## ") and text.endswith(f"{END}\n\nAfter.\n")
        assert text.count("## miniature:wan") == 1 and "former" not in text


def test_document_without_marks_is_left_alone(groups: list[Group], tmp_path: Path) -> None:
    out = tmp_path / "README.md"
    out.write_text("# Mine\n", encoding="utf-8")
    with pytest.raises(ValueError, match="results: begin"):
        write_markdown(groups, out)
    assert out.read_text(encoding="utf-8") == "# Mine\n" and not (tmp_path / "images").exists()


def test_settings_of_one_model_have_pictures_of_their_own(tmp_path: Path) -> None:
    def sized(width: int) -> dict[str, Any]:
        made = record(row=str(width))
        return {**made, "settings": {**made["settings"], "width": width}}

    groups = read_groups([write(tmp_path / "eval", [sized(208), sized(416)])])
    written = write_markdown(groups, tmp_path / "card.md")
    assert [path.name for path in written[1:]] == ["pareto-miniature-wan-1.png", "pareto-miniature-wan-2.png"]
