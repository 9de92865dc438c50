"""``python -m vidaccel.cli``: the command line without its console script."""

from __future__ import annotations

from vidaccel.cli import app

app(prog_name="vidaccel")
