"""``vidaccel report``: the page, Markdown and CSV of an eval; bad input is one line and nothing is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.report.evals import eval_of_all, record, write
from vidaccel.cli import app
from vidaccel.eval.table import rows_of


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, words)])


def refused(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "eval", [record(), record(density=0.5, psnr=34.0, speed=1.5)])


def test_page_markdown_and_csv(folder: Path, tmp_path: Path) -> None:
    page, card, table = tmp_path / "a" / "page.html", tmp_path / "card.md", tmp_path / "table.csv"
    result = run(folder, "--out", page, "--markdown", card, "--images", tmp_path / "pictures", "--csv", table, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    picture = tmp_path / "pictures" / "pareto-miniature-wan.png"
    assert values["files"] == [str(each) for each in (page, card, picture, table)]
    assert values["bytes"] == page.stat().st_size and "quality against speed" in page.read_text(encoding="utf-8")
    assert "(pictures/pareto-miniature-wan.png)" in card.read_text(encoding="utf-8") and picture.exists()
    with table.open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    rows = rows_of([json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()])
    assert [(line["label"], float(line["psnr"])) for line in read] == [(row.label, row.metrics["psnr"]) for row in rows]


def test_page_lies_in_the_folder_by_default(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0 and result.stdout.splitlines()[0] == str(folder / "report.html")
    assert sorted(path.name for path in folder.iterdir()) == ["records.jsonl", "report.html"]


def test_folders_of_several_evals(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", eval_of_all()[-2:])
    assert run(folder, other, "--out", tmp_path / "page.html").exit_code == 0
    assert "2 models" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a page of 2 folders needs a path of its own" in refused(folder, other)


@pytest.mark.parametrize(("words", "message"), [
    (["--out", "page.htm"], "--out 'page.htm' does not end in .html"),
    (["--markdown", "card.txt"], "--markdown 'card.txt' does not end in .md"),
    (["--csv", "table.json"], "--csv 'table.json' does not end in .csv"),
    (["--images", "there"], "give --markdown FILE"),
])  # fmt: skip
def test_bad_flags(folder: Path, words: list[str], message: str) -> None:
    assert message in refused(folder, *words)
    assert [path.name for path in folder.iterdir()] == ["records.jsonl"]


def test_what_cannot_be_read_or_written(folder: Path, tmp_path: Path) -> None:
    assert "is no folder of `vidaccel eval`" in refused(tmp_path / "nowhere")
    taken = tmp_path / "taken"
    taken.write_text("a file")
    assert "cannot write" in refused(folder, "--out", taken / "page.html")
    assert "cannot write" in refused(folder, "--markdown", tmp_path / "card.md", "--images", taken)
    assert not (tmp_path / "card.md").exists()
    (tmp_path / "mine.md").write_text("# Mine\n")
    assert "has no marks" in refused(folder, "--markdown", tmp_path / "mine.md")
    assert [path.name for path in folder.iterdir()] == ["records.jsonl"]
