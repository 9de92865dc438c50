"""``vidaccel eval``: methods against dense generation, cell by cell, into a folder that can be gone on with."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidaccel.cli import options
from vidaccel.cli.loading import Model, dtype_and_device, identify, miniature_options
from vidaccel.cli.output import print_json, progress_bar, reserved_stdout, resumable, speaker, speaking
from vidaccel.cli.plan import Json
from vidaccel.processes import Crew, join, take_device

if TYPE_CHECKING:
    from vidaccel.eval.bench import Result
    from vidaccel.eval.settings import Settings
    from vidaccel.eval.sources import Source
    from vidaccel.eval.table import Row

OWN = ("model", "prompts_file", "dtype", "device", "out")
"""Settings of the command alone; all others are an eval's."""
WIDE = 200
Strings = list[str] | None


def eval_(
    settings: Annotated[Path | None, typer.Argument(help="A YAML file of settings; flags override it.")] = None,
    model: Annotated[Strings, typer.Option(help="A pipeline's folder, a repository id, or miniature:NAME.")] = None,
    method: Annotated[Strings, typer.Option(help="A method, or dense; options of methods go in the file.")] = None,
    density: Annotated[list[float] | None, typer.Option(help="Video density in (0, 1].")] = None,
    cache: Annotated[Strings, typer.Option(help="A cache policy, or none; options of policies go in the file.")] = None,
    prompt: Annotated[Strings, typer.Option(help="What to show; the miniature's own by default.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="A text file, one prompt a line.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Of the noise.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    image: Annotated[str | None, typer.Option(help="First frame, for image-to-video pipelines.")] = None,
    schedule: Annotated[
        Strings, typer.Option(metavar="NAME=VALUE", help="A field of the schedule; repeatable.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed runs of each cell; 1 by default.")] = None,
    quick: Annotated[bool | None, typer.Option(help="Only latents, and only four prompts.")] = None,
    breakdown: Annotated[
        bool | None, typer.Option(help="Also where the time goes, in two more runs for each row.")
    ] = None,
    lossless: Annotated[bool | None, typer.Option(help="Also keep each clip as a video without loss.")] = None,
    baselines: Annotated[
        bool | None, typer.Option(help="Dense again, dense with fewer steps, random blocks; on by default.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="auto, triton, cpu, flex or reference.")] = None,
    precision: Annotated[str | None, typer.Option(help="int8 or fp8, for sparse attention in fewer bits.")] = None,
    compensation: Annotated[
        str | None, typer.Option(help="What makes up for skipped keys: centroid or residual; options go in the file.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; bf16 on a GPU and fp32 on a CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; the GPU where there is one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the eval; given again, it goes on.")] = None,
    json: Json = False,
) -> None:
    """Measure methods against dense generation: fidelity, time, baselines, a table."""
    flags = {"model": model, "method": method, "density": density, "cache": cache, "prompt": prompt,
             "prompts_file": prompts_file and str(prompts_file), "seed": seed, "negative_prompt": negative_prompt,
             "steps": steps, "height": height, "width": width, "frames": frames, "guidance": guidance,
             "image": image, "schedule": _schedule(schedule), "repeats": repeats, "quick": quick,
             "breakdown": breakdown, "lossless": lossless, "baselines": baselines,
             "backend": backend, "precision": precision, "compensation": compensation, "dtype": dtype,
             "device": device, "out": out and str(out)}  # fmt: skip
    crew = join()
    with reserved_stdout(), speaking(crew):
        result = _eval(crew, settings, {name: item for name, item in flags.items() if item not in (None, [])})
    if crew.main:
        print_json(result.to_dict()) if json else _show(result)
    crew.follow()
    if result.failed:
        raise typer.Exit(1)


def _eval(crew: Crew, file: Path | None, flags: dict[str, Any]) -> Result:
    """Check everything, then run."""
    from vidaccel.eval import bench

    with crew.together():
        sources, out, settings = _read(crew, file, flags)

    def say(text: str) -> None:
        typer.echo(speaker(crew) + text, err=True)

    with progress_bar("loading") as advance, resumable(out):
        return bench.run(sources, out, settings, progress=advance, say=say, crew=crew)


def _read(crew: Crew, file: Path | None, flags: dict[str, Any]) -> tuple[list[Source], str, Settings]:
    """The models, the folder and the settings of an eval."""
    import dataclasses

    from vidaccel.eval.checks import check_names, check_type
    from vidaccel.eval.settings import Settings
    from vidaccel.eval.settings_file import read_settings

    values = read_settings(file) if file else {}
    if {"prompt", "prompts_file"} & set(flags):
        values = {name: item for name, item in values.items() if name not in ("prompt", "prompts_file")}
    values = {**values, **flags}
    check_names(values, [*OWN, *(item.name for item in dataclasses.fields(Settings))])
    own = {name: values.pop(name, None) for name in OWN}
    for name in ("prompts_file", "dtype", "device", "out"):
        check_type(name, own[name], str | None)
    if own["out"] is None:
        raise ValueError("an eval needs a folder: --out DIR")
    models = [identify(name) for name in _models(own["model"])]
    precision, place = dtype_and_device(own["dtype"], take_device(crew, own["device"]))
    settings = Settings.of({**values, "prompt": _prompts(values, own["prompts_file"], models)})
    return [source_of(each, precision, place) for each in models], own["out"], settings


def _models(given: Any) -> list[str]:
    from vidaccel.eval.checks import as_list, check_type

    if given is None:
        raise ValueError("an eval needs a model: --model miniature:wan, a folder or a repository id")
    return [check_type("model", name, str) for name in as_list("model", given)]


def _prompts(values: Mapping[str, Any], file: str | None, models: list[Model]) -> Any:
    """The prompts as given, of the file, or the miniatures' own."""
    from vidaccel import miniature
    from vidaccel.eval.settings_file import read_prompts

    if "prompt" in values and file is not None:
        raise ValueError("give prompts or a file of them, not both")
    if "prompt" in values:
        return values["prompt"]
    if file is not None:
        return read_prompts(Path(file))
    if all(each.is_miniature for each in models):
        return list(miniature.miniatures().PROMPTS)
    raise ValueError("an eval of a model that is no miniature needs prompts: --prompt TEXT or --prompts-file FILE")


def source_of(model: Model, dtype: str, device: str) -> Source:
    from vidaccel.eval.sources import source_at

    own = functools.partial(miniature_options, model) if model.is_miniature else lambda method, given: given
    load = functools.partial(model.load, dtype, device)
    return source_at(model.path, model.name, transformer=model.transformer, load=load, dtype=dtype, device=device,
                     defaults=model.defaults(), options=own)  # fmt: skip


def _schedule(assignments: Strings) -> dict[str, Any] | None:
    from vidaccel.schedule import Schedule

    return options.parse(assignments, Schedule, "a schedule") if assignments else None


def _show(result: Result) -> None:
    """A table for each model and setting, then what failed and where the files are."""
    from rich.console import Console

    from vidaccel.eval.table import CSV, MARKDOWN, notes

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)  # a file has no width to fit
    for title in dict.fromkeys(f"{row.model}, {row.setting}" for row in result.rows):
        console.print(_table(title, [row for row in result.rows if f"{row.model}, {row.setting}" == title]))
    for note in notes(result.rows) if result.rows else ():
        typer.echo(f"note: {note}")
    done = result.cells - len(result.failed)
    typer.echo(f"{done} of {result.cells} cells are done ({result.skipped} were before)")
    for name, reason in result.failed.items():
        typer.echo(f"failed: {name}: {reason}")
    typer.echo(f"tables: {result.out / MARKDOWN}, {result.out / CSV}")


def _table(title: str, rows: list[Row]) -> Any:
    """What fits a terminal: the title holds what all rows share, and the share of all calls is left to the files."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from vidaccel.eval.table import HEADINGS, shown

    columns = [name for name in shown(rows) if name not in ("model", "setting", "all_calls")]
    table = Table(title=escape(title), box=box.SIMPLE, padding=0, collapse_padding=True)
    for name in columns:
        label = name == "label"
        table.add_column(HEADINGS[name], justify="left" if label else "right", no_wrap=label)
    for row in rows:
        texts = {**row.texts(), **({"label": f"  {row.baseline}"} if row.baseline else {})}
        table.add_row(*(escape(texts[name]) for name in columns))
    return table
