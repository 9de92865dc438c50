"""The command line: ``vidaccel COMMAND``, each command in a file of its own."""

from __future__ import annotations

import typer

from vidaccel.cli.bench import bench
from vidaccel.cli.calibrate_cache import calibrate_cache
from vidaccel.cli.demo import demo
from vidaccel.cli.eval import eval_
from vidaccel.cli.generate import generate
from vidaccel.cli.inspect import inspect
from vidaccel.cli.listing import env, ls
from vidaccel.cli.output import Commands
from vidaccel.cli.plan import plan
from vidaccel.cli.profile import profile
from vidaccel.cli.report import report
from vidaccel.cli.score import score
from vidaccel.cli.tune import tune

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Sparse attention for diffusers' video pipelines: the same video sooner, and the evidence.")

for command in (demo, generate, eval_, score, inspect, report, profile, calibrate_cache, tune, plan, env, ls):
    app.command(command.__name__.rstrip("_").replace("_", "-"))(command)
app.add_typer(bench, name="bench")
