"""``vidaccel tune``: search settings that are fast and faithful, by real generations, and write them as a profile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidaccel.cli.eval import source_of
from vidaccel.cli.loading import Model
from vidaccel.cli.measuring import Asked, checked
from vidaccel.cli.output import print_json, reserved_stdout, resumable, speaker, speaking
from vidaccel.cli.plan import Json
from vidaccel.processes import Crew, join, joined

if TYPE_CHECKING:
    from vidaccel.profile import Profile
    from vidaccel.tune.run import Tuned

MISSED = 1
"""Exit code where no settings meet the target."""


def tune(
    model: Annotated[str, typer.Option(help="A pipeline's folder, a repository id, or miniature:NAME.")],
    prompts: Annotated[Path, typer.Option(help="A text file, one prompt a line; four or more are best.")],
    out: Annotated[Path, typer.Option(help="The profile to write, ending in .json.")],
    target: Annotated[
        str, typer.Option(help='What is wanted: "psnr>=30", "speedup>=2", or several with "and" between them.')
    ] = "psnr>=30",
    budget: Annotated[str, typer.Option(help="Time to spend, over all starts, such as 90s, 30m or 1.5h.")] = "30m",
    trials: Annotated[int | None, typer.Option(min=1, help="Candidates to try at most; no limit by default.")] = None,
    heads: Annotated[
        str | None, typer.Option(help="Profile with calibrated heads; the model's own by default, if it has one.")
    ] = None,
    cache_file: Annotated[
        Path | None,
        typer.Option(help="Calibration of step caches; a miniature's own by default, else one is made."),
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder that keeps what was found; one beside --out by default.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise and of the search.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; bf16 on a GPU and fp32 on a CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; the GPU where there is one.")] = None,
    json: Json = False,
) -> None:
    """Tune a model: sparse attention and caching together, as fast as a fidelity allows or as faithful as a speed."""
    call = {"negative_prompt": negative_prompt, "steps": steps, "height": height, "width": width, "frames": frames,
            "guidance": guidance}  # fmt: skip
    options: dict[str, Any] = {"target": target, "trials": trials, "seed": seed}
    options |= {name: item for name, item in call.items() if item is not None}
    crew = join()
    with reserved_stdout(), speaking(crew):
        found = _tune(crew, Asked(model, prompts, out, work, dtype, device), budget, heads, cache_file, options)
    if found is not None:
        values = {**found.to_dict(), "model": model, "file": str(out)}
        print_json(values) if json else _show(values, found)
    crew.follow()
    if found is not None and not found.met:
        raise typer.Exit(MISSED)


def _tune(crew: Crew, asked: Asked, budget: str, heads: str | None, cache_file: Path | None, options: dict[str, Any]
          ) -> Tuned | None:  # fmt: skip
    """Check everything, then load, search and write; what was found is of the main process alone."""
    from vidaccel.target import Target
    from vidaccel.tune.budget import seconds_of
    from vidaccel.tune.run import shared_tune

    with contextlib.ExitStack() as stack:
        with crew.together():
            known = checked(crew, asked, lambda _: (seconds_of(budget), Target.of(options["target"])))
            source = source_of(known.model, known.dtype, known.device)
            own: dict[str, Any] = {"heads": _heads(known.model, heads)}
            own["cache_file"] = _cache_file(known.model, cache_file, source.call({}), options)
            part = stack.enter_context(asked.written(crew))
        stack.enter_context(resumable(asked.folder))
        found = shared_tune(crew, source, known.texts, asked.folder, budget=seconds_of(budget),
                            progress=stack.enter_context(_bar()), say=_say, **own, **options)  # fmt: skip
        if found is None or part is None:
            return None
        found.profile.save(part)
    if found.met:
        # Where it is not, more time may help.
        asked.tidy()
    return found


def _heads(model: Model, given: str | None) -> Profile | None:
    """The profile with heads that is given, or the model's own where it has one."""
    from vidaccel import profile

    if given is not None:
        return profile.Profile.read(given)
    found = profile.find(model.path)
    return found if found is not None and found.heads is not None else None


def _cache_file(model: Model, given: Path | None, call: dict[str, Any], options: dict[str, Any]) -> str | None:
    """The calibration that is given, or a miniature's own for runs of these steps and this guidance."""
    from vidaccel.caching.calibration import CacheCalibration

    if given is not None:
        return str(given)
    steps = options.get("steps", call["num_inference_steps"])
    name = f"{model.name}/cache-{steps}.json"
    if not model.is_miniature or not (Path(model.path) / f"cache-{steps}.json").is_file():
        return None
    guidance = options.get("guidance", call.get("guidance_scale"))
    return name if CacheCalibration.of(name).guidance == guidance else None


def _say(text: str) -> None:
    typer.echo(speaker(joined()) + text, err=True)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, float, float], None]]:
    """A bar on standard error that says what happens and how much of the budget is left.

    Where standard error is no terminal, a line for each change of what happens.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True, quiet=not joined().main)
    columns = (BarColumn(bar_width=20), TextColumn("{task.fields[left]}"), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, last = bar.add_task("", total=1.0, left=""), None

        def advance(what: str, spent: float, total: float) -> None:
            nonlocal last
            left = _clock(max(0.0, total - spent)) + " left"
            if not console.is_terminal and what != last:
                console.print(f"{left}: {what}", markup=False, highlight=False, soft_wrap=True)
            last = what
            bar.update(task, description=what, completed=spent, total=total, left=left)

        yield advance


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _show(values: dict[str, Any], found: Tuned) -> None:
    """A table of the points, the chosen one marked."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from vidaccel.tune.candidate import words

    names = [name for name in found.chosen.metrics if name in ("psnr", "ssim", "st_lpips", "lpips", "latent_snr")]
    table = Table(box=box.SIMPLE)
    for heading in ("", "speedup", *names):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("settings")
    for point in found.profile.points:
        spreads = [f"{each['mean']:.4g} ({each['low']:.4g} to {each['high']:.4g})"
                   for each in (point.metrics[name] for name in names)]  # fmt: skip
        mark = "*" if point == found.chosen else ""
        table.add_row(mark, f"{point.speedup:.2f}x", *spreads, escape(words(dict(point.settings))))
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
    evidence = found.chosen.evidence
    typer.echo(f"means and 95 % intervals over {evidence['prompts']['count']} prompts; {found.trials} candidates, "
               f"{found.seconds / 60:.1f} minutes")  # fmt: skip
    if evidence["searched"]["same_prompts"]:
        typer.echo("note: measured on the prompts of the search; with four prompts or more they would be others")
    typer.echo(f"{values['file']}: {found.target} " + ("is met by the settings marked *" if found.met else
               "is not met by anything that was found; the settings marked * come nearest"))  # fmt: skip
