"""The docs site: built strictly, asks nobody outside, and has a whole page for every method and cache policy."""

from __future__ import annotations

import ast
import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vidaccel.caching import POLICIES
from vidaccel.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CHOICES: dict[str, Any] = {**METHODS, **{f"policies/{name}": cls for name, cls in POLICIES.items()}}
"""What has a page, by its path."""
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
"""Attributes by which a browser asks for something without being told to."""
FORMULA = re.compile(r"^```(?:text)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
NEVER = 1_000_000
"""Steps: `refresh` of a method that has searches of its own."""
LARGEST = 25_000
"""Bytes of a picture."""


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """A strict build, in a process of its own: with torch beside it Sphinx takes minutes."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(source), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class Fetched(HTMLParser):
    """What a page asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("rel") not in ("next", "prev", "search", "author", "canonical"):
            self.found += [values[FETCHED[tag]] or ""] if FETCHED.get(tag) in values else []


def outside(folder: Path) -> list[str]:
    """What the pages and style sheets of a folder ask others for."""
    asked = []
    for page in folder.rglob("*.html"):
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        asked += parser.found
    for sheet in folder.rglob("*.css"):
        asked += re.findall(r"""(?:url\(|@import )\s*["']?([^"')]+)""", sheet.read_text(encoding="utf-8"))
    return [each for each in asked if re.match(r"(?:https?:)?//", each)]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_nobody(tmp_path: Path) -> None:
    """Every page in the contents, every link, anchor and picture there; nothing fetched from elsewhere."""
    done = build(DOCS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not outside(tmp_path)
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert pages <= {path.relative_to(tmp_path) for path in tmp_path.rglob("*.html")}
    assert (tmp_path / "searchindex.js").exists()


def test_what_is_wrong_ends_the_build(tmp_path: Path) -> None:
    """Of a site of one page with the configuration of ours; then with all that must not be."""
    source = tmp_path / "docs"
    source.mkdir()
    for name in ("conf.py", "site.css"):
        shutil.copy(DOCS / name, source)
    (source / "_toc.yml").write_text("root: index\n")
    (source / "index.md").write_text("# A page\n\n[here](#a-page)\n")
    assert build(source, tmp_path / "good").returncode == 0
    (source / "index.md").write_text("# A page\n\n[a](gone.md)\n\n[b](index.md#nowhere)\n\n![c](gone.png)\n")
    (source / "orphan.md").write_text("# Another\n")
    done = build(source, tmp_path / "bad")
    assert done.returncode != 0
    for wrong in ("gone.md", "nowhere", "gone.png", "orphan.md"):
        assert wrong in done.stderr


def test_requests_to_others_are_noticed(tmp_path: Path) -> None:
    html = '<link rel="stylesheet" href="//a.org/x.css"><a href="https://b.org">b</a><img src="c.png"><script src="http://d">'
    (tmp_path / "index.html").write_text(html)
    (tmp_path / "x.css").write_text('@import "https://e.org/f.css"; a { background: url(g.png) }')
    assert outside(tmp_path) == ["//a.org/x.css", "http://d", "https://e.org/f.css"]


def text_of(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """What stands under a heading of the second level."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", FENCE.sub("", text), re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


@pytest.mark.parametrize("name", CHOICES)
def test_every_page_has_its_parts(name: str) -> None:
    text, paper = text_of(name), CHOICES[name].paper
    assert text.startswith(f"# {Path(name).name}\n")
    numbers = re.findall(r"\d{4}\.\d{5}", paper)
    links = [f"https://arxiv.org/abs/{each}" for each in numbers] or re.findall(r"https://\S+", paper)
    assert all(link in text for link in links), f"no link to {links}"
    assert links or re.search(r"\bours\b|no paper", text), "neither a paper nor whose idea it is"
    assert any(re.search("[=<>]", block) for block in FORMULA.findall(text)), "no formula"
    assert section(text, "When to use it").startswith("- ")
    assert section(text, "Measured")


def rows(text: str) -> Iterator[tuple[list[str], str]]:
    """Names and default of each line of the options' table."""
    table = re.search(r"^\| option \| meaning \| default \|\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table, "no table of options"
    for line in table[1].splitlines():
        option, *_, default = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        yield re.findall(r"`([a-z_]+)`", option), default


WORDS: dict[str, tuple[Any, ...]] = {
    "yes": (True,), "no": (False,), "none": (None, ()), "never": (None, NEVER), "every step": (1, None),
    "natural": ("FHW",), "": (None, "", ()),
}  # fmt: skip
"""What a cell says in words."""


def said(cell: str) -> tuple[Any, ...]:
    """The values that a cell may stand for; none where it is words of its own."""
    if cell in WORDS:
        return WORDS[cell]
    try:
        return (ast.literal_eval(cell.strip("`")),)
    except (ValueError, SyntaxError):
        return (cell.strip("`"),) if re.fullmatch(r"`[^` ]+`", cell) else ()


def own_defaults(cls: Any) -> dict[str, Any]:
    """By option: what an instance that was told nothing has, or the field where there is no such instance."""
    fields = {item.name: item.default for item in dataclasses.fields(cls)}
    try:
        plain = cls()
    except (TypeError, ValueError):
        return fields
    return {name: getattr(plain, name) for name in fields}


def wrong_defaults(name: str) -> Iterator[str]:
    """Defaults of a page that are not the class's."""
    own = own_defaults(CHOICES[name])
    for options, cell in rows(text_of(name)):
        cells = cell.split(", ") if len(options) == cell.count(", ") + 1 else [cell] * len(options)
        for option, default in zip(options, cells, strict=True):
            values = said(default)
            if values and own[option] is not dataclasses.MISSING and own[option] not in values:
                yield f"{option} is said to be {default!r} and is {own[option]!r}"


@pytest.mark.parametrize("name", CHOICES)
def test_options_are_those_of_the_class(name: str) -> None:
    """All of them, with what they are by default where that is one value."""
    named = [option for options, _ in rows(text_of(name)) for option in options]
    assert sorted(named) == sorted(item.name for item in dataclasses.fields(CHOICES[name]))
    assert not list(wrong_defaults(name))


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """benchmarks/curves.py, which is no part of a package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import curves

    yield curves
    for name in ("curves", "curves_picture"):
        sys.modules.pop(name, None)


def test_curves_are_those_of_the_results(curves: ModuleType) -> None:
    """`python benchmarks/curves.py` writes pages and pictures anew."""
    for path, measured in curves.all_measured().items():
        page = path.read_text(encoding="utf-8")
        assert curves.shown(page, measured) == page, f"{path.name} is not of benchmarks/results"
        picture = curves.PICTURES / f"{path.stem}.svg"
        assert picture.exists() == bool(measured.curves), path.stem
        if measured.curves:
            text = picture.read_text(encoding="utf-8")
            assert measured.digest() in text and len(text) < LARGEST, picture.name
            assert f"curves/{picture.name}" in page


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """docs/pictures.py."""
    monkeypatch.syspath_prepend(str(DOCS))
    import pictures

    yield pictures
    sys.modules.pop("pictures", None)


def test_pictures_show_what_masks_keep(pictures: ModuleType) -> None:
    tokens = pictures.CLIP.tokens
    some = range(0, tokens, 7)
    for name, plan in pictures.choices().items():
        kept = sum(int(pictures.kept_keys(plan, token).sum()) for token in some)
        assert kept / len(some) / tokens == pytest.approx(plan.density(pictures.CLIP).density, abs=0.02), name
        assert all(pictures.kept_keys(plan, token)[token] for token in (0, 700, tokens - 1)), name


def test_words_of_the_pictures_are_their_numbers(pictures: ModuleType) -> None:
    """What docs/how-it-works.md says of counted work, and README.md of attention in two passes."""
    sizes = {"480p": "21x30x52", "720p": "21x45x80"}
    shares = {}
    for name, grid in sizes.items():
        layout = pictures.TokenLayout.parse(grid)
        for density in (1.0, pictures.by_default(layout)):
            attention, rest = pictures.work(layout, density)
            shares[name, density == 1] = attention / (attention + rest)
    assert {key: round(share, 2) for key, share in shares.items()} == {
        ("480p", True): 0.52, ("480p", False): 0.27, ("720p", True): 0.72, ("720p", False): 0.4,
    }  # fmt: skip
    assert 2 * pictures.work(pictures.TokenLayout.parse("21x45x80"))[0] == pytest.approx(9.36, abs=0.01)
    pages = text_of("how-it-works") + (ROOT / "README.md").read_text(encoding="utf-8")
    assert "half of it at 480p and 72 % at 720p; sparse, it is a quarter and 40 %" in pages and "9.36 PFLOP" in pages
    titles = " ".join(axis.get_title() for axis in pictures.order_picture().axes)
    assert re.findall(r"(\d+)% of the blocks", titles) == re.findall(r"(\d+) % (?:of the blocks|where equal)", pages)


def test_a_curve_is_what_its_lines_say(curves: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"git": "abcdefghij", "created": "2026-01-02T03:04", "device": {"name": "EPYC", "threads": 1},
             "versions": {"torch": "2", "diffusers": "0"}}  # fmt: skip
    shared = {"benchmark": "static_masks", "part": "quick", "family": "wan", "prompts": 4, **where}

    def line(method: str, density: float, snr: float, realised: float) -> dict[str, Any]:
        return {**shared, "method": method, "density": density, "latent_snr": snr, "video_density": realised}

    steps = {9: 0.1, 10: 0.2, 12: 0.3, 15: 0.5}
    static = [line("radial", 0.3, 1.0, 0.3), line("radial", 0.5, 20.0, 0.55), line("random", 0.3, 5.0, 0.3)]
    found = {"static_masks": static, "dynamic_masks": [line("radial", 0.3, 12.34, 0.3)],
             "fewer_steps": [{"family": "wan", "steps": at, "latent_snr": at / 2} for at in steps]}  # fmt: skip
    monkeypatch.setattr(curves, "read", lambda name: found.get(name, []))
    measured = curves.of_method("radial")
    assert {(each.label, each.beside, each.points) for each in measured.curves} == {
        ("radial", False, (("0.3", 0.3, 12.34), ("0.5", 0.55, 20.0))), ("random", True, (("0.3", 0.3, 5.0),)),
        ("fewer-steps", True, tuple((f"{at} steps", x, at / 2) for at, x in steps.items())),
    }  # fmt: skip
    page = curves.shown(f"a\n{curves.BEGIN}\nold\n{curves.END}\nb\n", measured)
    assert "| Wan, `radial` | 20.0 (0.55) | 12.3 |" in page and "git abcdefg" in page and "old" not in page
    import curves_picture

    assert measured.digest().encode() in curves_picture.picture(measured)
    assert curves.section(curves.of_method("svg")) == curves.UNMEASURED
    with pytest.raises(ValueError, match="not one"):
        curves.shown(f"{curves.END} {curves.BEGIN}", measured)
