"""``python -m vidaccel``: the command line without its console script, for launchers that take a module."""

from __future__ import annotations

from vidaccel.cli import app

app(prog_name="vidaccel")
