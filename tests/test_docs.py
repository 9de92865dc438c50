"""The documents are run: Python blocks as programs, command lines against the real command and the real Makefile."""

from __future__ import annotations

import re
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md",
             *sorted((ROOT / "docs").rglob("*.md"))]  # fmt: skip
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```\s*$", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)
# Newer typers carry a click of their own: its UsageError is found through theirs.
UsageError: Any = typer.BadParameter.__mro__[1]


@dataclass(frozen=True)
class Block:
    """A fenced block: the words after the fence, the text, and the line that the text starts on."""

    info: tuple[str, ...]
    body: str
    line: int


def blocks(text: str, language: str) -> list[Block]:
    """The fenced blocks of a language."""
    found = [
        Block(tuple(match["info"].split()), match["body"], text[: match.start("body")].count("\n") + 1)
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if block.info[:1] == (language,)]


def commands(text: str) -> list[list[str]]:
    """The words of each command line of the bash blocks, continued lines joined, cut at a pipe or redirection."""
    lines = [line for block in blocks(text, "bash") for line in block.body.replace("\\\n", " ").splitlines()]
    every = []
    for line in lines:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        stops = [at for at, word in enumerate(words) if word in ("|", ">", "&&", ";", "2>")]
        every.append(words[: stops[0]] if stops else words)
    return [words for words in every if words]


def check_command(app: typer.Typer, words: list[str]) -> None:
    """Parse `words` as the command line would, without running anything.

    Raises:
        UsageError: an unknown command, option or value.
    """
    command: Any = typer.main.get_command(app)
    words = [word for word in words if word not in ("--help", "--version")]
    while words and hasattr(command, "commands"):
        name, *words = words
        if name not in command.commands:
            raise UsageError(f"no command {name!r}")
        command = command.commands[name]
    if not hasattr(command, "commands"):
        command.make_context(command.name, words)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_python_blocks(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks marked ``python no-run`` need weights that are not here: they must compile. All others run, in order."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(f"document_{path.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks(path.read_text(encoding="utf-8"), "python"):
        assert set(block.info[1:]) <= {"no-run"}, f"line {block.line}: unknown mark {block.info[1:]}"
        code = compile("\n" * (block.line - 1) + block.body, relative(path), "exec")
        if "no-run" not in block.info:
            exec(code, module.__dict__)


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_command_lines(path: Path) -> None:
    from vidaccel.cli import app

    targets = set(TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    for program, *words in commands(path.read_text(encoding="utf-8")):
        if program in ("accelerate", "torchrun") and "vidaccel" in words:
            program, words = "vidaccel", words[words.index("vidaccel") + 1 :]
        if program == "make":
            wrong = {word for word in words if "=" not in word and not word.startswith("-")} - targets
            assert not wrong, f"the Makefile has no target {sorted(wrong)}"
        elif program.endswith("vidaccel"):
            try:
                check_command(app, words)
            except UsageError as error:
                pytest.fail(f"{shlex.join([program, *words])}: {error.format_message()}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(path: Path) -> None:
    """Relative links and pictures of a document exist."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text) + re.findall(r'(?:src|href)="([^"#]+)', text)
    gone = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not gone


def test_reader_finds_blocks_and_commands() -> None:
    text = "a\n```python no-run\nx = 1\n```\n```bash\n$ A=1 vidaccel plan \\\n  radial | head  # why\nmake test\n```\n"
    assert blocks(text, "python") == [Block(("python", "no-run"), "x = 1\n", 3)]
    assert commands(text) == [["vidaccel", "plan", "radial"], ["make", "test"]]


def test_wrong_command_lines_are_noticed() -> None:
    app = typer.Typer()

    @app.command()
    def demo(seed: int = 0) -> None: ...

    @app.command()
    def env() -> None: ...

    check_command(app, ["demo", "--seed", "3"])
    for words in (["dmo"], ["demo", "--sed", "3"], ["demo", "--seed", "x"], ["env", "extra"]):
        with pytest.raises(UsageError):
            check_command(app, words)
