"""Commands as tests call them, in this process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from vidaccel.cli import app


def run(command: str, *words: object) -> Result:
    """A command with its words, whatever comes of it."""
    return CliRunner().invoke(app, [command, *map(str, words)])


def refused(command: str, *words: object) -> str:
    """The one line with which a command refuses what it was given."""
    result = run(command, *words)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def values_of(command: str, *words: object) -> dict[str, Any]:
    """What a command that succeeds prints with ``--json``."""
    result = run(command, *words, "--json")
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values
