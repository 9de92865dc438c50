"""``vidaccel bench kernels | model | render``: speed, with the check and the limit beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidaccel.cli import options
from vidaccel.cli.chosen import DENSE
from vidaccel.cli.loading import FPS, dtype_and_device, identify, miniature_options
from vidaccel.cli.output import Commands, print_json, progress_bar, reserved_stdout, staged_file
from vidaccel.cli.plan import Density, Json, Set

if TYPE_CHECKING:
    from vidaccel.bench.run import Setting

PROMPT = "A red fox walks through fresh snow, low evening sun, steady camera."
"""Of models that are no miniature; what is shown does not change the time."""
Names = list[str] | None

bench = typer.Typer(cls=Commands, no_args_is_help=True, help="Measure speed: attention kernels, or your own pipeline.")


@bench.command()
def kernels(
    out: Annotated[Path, typer.Option(help="Gets one JSON line per result, as they come; is added to.")] = Path(
        "bench-kernels.jsonl"
    ),
    minutes: Annotated[float, typer.Option(min=0.01, help="End in this time; what matters most comes first.")] = 8.0,
    part: Annotated[Names, typer.Option(help="attention, models, planning, costs (the default) or tuning.")] = None,
    shape: Annotated[Names, typer.Option(help="A model's attention, such as wan-14b-720p; all by default.")] = None,
    model: Annotated[Names, typer.Option(help="A transformer with random weights; all by default.")] = None,
    kind: Annotated[Names, typer.Option(help="Of plans: banded, random, clustered; all by default.")] = None,
    density: Annotated[list[float] | None, typer.Option(help="Of plans, in (0, 1]; six by default.")] = None,
    method: Annotated[str, typer.Option(help="Of the models' sparse passes.")] = "radial",
    set_: Set = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed passes of each model and kind.")] = 2,
    seed: Annotated[int, typer.Option(help="Of inputs, plans and weights.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32; bf16 on a GPU.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny shapes, to try it and not to measure.")] = False,
) -> None:
    """Check and time attention kernels, planning, and real transformers with random weights on this GPU."""
    from vidaccel.bench import run
    from vidaccel.report.performance import tables

    with reserved_stdout():
        chosen = options.method_options(method, set_ or [])
        setting = _setting(smoke, dtype, minutes=minutes, parts=part, shape=shape, model=model, kinds=kind,
                           densities=density, method=method, options=chosen or None, repeats=repeats,
                           seed=seed)  # fmt: skip
        outcome = run.run(setting, out, lambda text: typer.echo(text, err=True))
    typer.echo(tables(outcome.lines))
    for name in outcome.left_out:
        typer.echo(f"left out for lack of time: {name}")
    typer.echo(f"{len(outcome.lines)} results in {out}")
    if outcome.wrong:
        typer.echo(f"{len(outcome.wrong)} results failed their check or could not be had: see above", err=True)
        raise typer.Exit(1)


def _setting(smoke: bool, dtype: str | None, **given: Any) -> Setting:
    """What is asked for; what was not given is the default, which depends on `smoke`.

    Raises:
        ValueError: no GPU and no smoke, or an unknown name.
    """
    import torch

    from vidaccel.bench import run

    precision, device = dtype_and_device(dtype, None)
    if device == "cpu" and not smoke:
        raise ValueError("real shapes need a CUDA or ROCm GPU, and torch sees none here; --smoke tries all of it at "
                         "tiny shapes on the CPU")  # fmt: skip
    usual: dict[str, Any] = {"densities": run.SMOKE_DENSITIES, "options": run.SMOKE_OPTIONS} if smoke else {}
    values: dict[str, Any] = {
        name: tuple(item) if isinstance(item, list) else item
        for name, item in given.items() if item is not None and item != []
    }  # fmt: skip
    return run.Setting(torch.device(device), getattr(torch, precision), smoke=smoke, **{**usual, **values})


@bench.command()
def model(
    model: Annotated[str, typer.Option(help="A pipeline's folder, a repository id, or miniature:NAME.")],
    method: Annotated[
        str, typer.Option(help="A method, as listed by `vidaccel ls`; with a cache, dense is none.")
    ] = "radial",
    density: Density = None,
    set_: Set = None,
    cache: Annotated[str | None, typer.Option(help="What reuses steps, as listed by `vidaccel ls`.")] = None,
    cache_set: Annotated[
        Names, typer.Option(metavar="NAME=VALUE", help="An option or limit of the cache; repeatable.")
    ] = None,
    schedule: Annotated[Names, typer.Option(metavar="NAME=VALUE", help="A field of the schedule; repeatable.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to show.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Timed generations of each kind, in turns.")] = 3,
    backend: Annotated[str, typer.Option(help="auto, triton, cpu, flex or reference.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; bf16 on a GPU and fp32 on a CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; the GPU where there is one.")] = None,
    offload: Annotated[bool, typer.Option("--offload", help="Keep only the part at work on the GPU.")] = False,
    out: Annotated[Path | None, typer.Option(help="File for the record, to keep or to contribute.")] = None,
    json: Json = False,
) -> None:
    """Time your pipeline dense and accelerated in turns, beside the limit that attention's share predicts."""
    given = {"num_inference_steps": steps, "height": height, "width": width, "num_frames": frames}
    with reserved_stdout():
        setting: dict[str, Any] = {"backend": backend, "cache": options.cache_options(cache, cache_set or [])}
        if method == DENSE:
            if cache is None or density is not None or set_ or schedule:
                raise ValueError("method 'dense' needs a --cache, else there is nothing to compare, and takes no "
                                 "--density, --set and --schedule")  # fmt: skip
            chosen, setting = {}, {"method": None, "cache": setting["cache"]}
        else:
            setting |= {"method": method, "schedule": _schedule(schedule)}
            chosen = options.method_options(method, set_ or [], density=density)
        call = {name: item for name, item in given.items() if item is not None}
        if out is None:
            record = _measured(model, setting, chosen, call, prompt, seed, repeats, dtype, device, offload)
        else:
            with staged_file(out) as file:  # a folder that cannot be written is an error before anything has run
                record = _measured(model, setting, chosen, call, prompt, seed, repeats, dtype, device, offload)
                record.write(file)
    print_json(record.to_dict()) if json else _show(record.to_dict(), out)


def _schedule(assignments: list[str] | None) -> dict[str, Any] | None:
    from vidaccel.schedule import Schedule

    return options.parse(assignments, Schedule, "a schedule") if assignments else None


def _measured(name: str, setting: dict[str, Any], chosen: dict[str, Any], given: dict[str, Any], prompt: str | None,
              seed: int, repeats: int, dtype: str | None, device: str | None, offload: bool) -> Any:
    """Load, measure; the record.

    Raises:
        ValueError: what cannot be done, before any weight is read where that can be known.
    """
    from vidaccel import methods
    from vidaccel.bench.pipeline import measure
    from vidaccel.eval.sources import Source

    known = identify(name)
    family = known.supported_family()
    if known.is_miniature and setting["method"] is not None:
        chosen, setting = miniature_options(known, setting["method"], chosen), {**setting, "min_tokens": 0}
    if setting["method"] is not None:
        methods.method(setting["method"], family, **chosen)
    precision, place = dtype_and_device(dtype, device)
    defaults = known.defaults()
    pipe = known.load(precision, "cpu" if offload else place)
    if offload:
        pipe.enable_model_cpu_offload(device=place)
    own = {key: item for key, item in defaults.items() if key not in ("fps", "prompt")}
    call = Source.of(pipe, name).call({**own, **given})
    with progress_bar("warm-up") as advance:
        return measure(pipe, name, prompt or str(defaults.get("prompt") or PROMPT), seed=seed, repeats=repeats,
                       enable_kwargs={**setting, **chosen}, call=call, fps=float(defaults.get("fps", FPS)),
                       progress=advance)  # fmt: skip


def _show(record: dict[str, Any], out: Path | None) -> None:
    """The figures as text."""
    times, found, settings = record["timing"], record["prediction"], record["settings"]
    size = f"{settings['height']}x{settings['width']}x{settings['num_frames']}"
    typer.echo(f"{record['model']['name']}, {size}, {settings['num_inference_steps']} steps, {settings['dtype']} on "
               f"{record['device']['gpu'] or record['device']['name']}")  # fmt: skip
    density = record["density"]["video_density"] if record["density"] else 1.0
    typer.echo(f"{record['method']['name']}, backend {record['backend']}: density of all calls "
               f"{found['density_all_calls']:.3f}, of sparse ones {density:.3f}")  # fmt: skip
    if (cached := record["cached"]) is not None:
        typer.echo(f"cache {cached['setting']['name']}: {found['computed_share']:.3f} of the blocks' calls ran")
    rows = (("whole generation", times, found["generation"]), ("denoising", times["denoising"], found.get("denoising")))
    for name, part, limits in rows:
        if limits is not None:
            typer.echo(
                f"{name:<17} dense {part['dense_median']:.2f} s, accelerated {part['fast_median']:.2f} s: "
                f"{part['speedup']:.2f}x; attention is {limits['attention_share']:.0%} of the dense time, which limits "
                f"this setting to {limits['speedup']:.2f}x"
            )
    for note in record["notes"]:
        typer.echo(f"note: {note}")
    if out is not None:
        typer.echo(f"record in {out}; docs/performance.md says how to contribute it")


@bench.command()
def render(
    files: Annotated[list[Path], typer.Argument(help="JSON lines of bench kernels, records of bench model.")],
    out: Annotated[Path, typer.Option(help="The document; what stands between its result marks is replaced.")],
) -> None:
    """Render results as tables and a picture into a document such as docs/performance.md."""
    from vidaccel.report.performance import read_lines, write_results

    lines = [line for file in files for line in read_lines(file)]
    for path in write_results(lines, out):
        typer.echo(f"wrote {path}")
