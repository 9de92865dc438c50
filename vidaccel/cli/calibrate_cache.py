"""``vidaccel calibrate-cache``: measure how alike a model's steps are, for policies of step caching."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidaccel.cli.chosen import DENSE, Chosen
from vidaccel.cli.loading import ready
from vidaccel.cli.measuring import Asked, Checked, checked
from vidaccel.cli.output import print_json, progress_bar, reserved_stdout, resumable, speaking
from vidaccel.cli.plan import Density, Json, Set
from vidaccel.processes import Crew, held, join

if TYPE_CHECKING:
    from vidaccel.caching.calibration import CacheCalibration


def calibrate_cache(
    model: Annotated[str, typer.Option(help="A pipeline's folder, a repository id, or miniature:NAME.")],
    prompts: Annotated[Path, typer.Option(help="A text file, one prompt a line.")],
    out: Annotated[Path, typer.Option(help="The calibration to write, ending in .json.")],
    work: Annotated[
        Path | None, typer.Option(help="Folder that keeps each finished prompt; one beside --out by default.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Video tokens of which residuals of blocks are compared.")] = 1024,
    probes: Annotated[
        int, typer.Option(min=0, help="More generations, each to see what an error of one step does to the clip.")
    ] = 4,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise and the sampled tokens.")] = 0,
    method: Annotated[
        str | None,
        typer.Option(help="Sparse attention of the runs to calibrate for, as of `vidaccel generate`; else none."),
    ] = None,
    density: Density = None,
    set_: Set = None,
    schedule: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A field of the schedule; repeatable.")
    ] = None,
    compensation: Annotated[str | None, typer.Option(help="What makes up for skipped keys.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; bf16 on a GPU and fp32 on a CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; the GPU where there is one.")] = None,
    json: Json = False,
) -> None:
    """Calibrate step caching: how much a model's features change from step to step."""
    call = {"negative_prompt": negative_prompt, "num_inference_steps": steps, "height": height, "width": width,
            "num_frames": frames, "guidance_scale": guidance}  # fmt: skip
    crew = join()
    with reserved_stdout(), speaking(crew):
        sparse = Chosen(method or DENSE, density, set_ or [], schedule or [], "auto", None, None, compensation, False,
                        None)  # fmt: skip
        options = {"samples": samples, "probes": probes, "seed": seed}
        values = _calibrate(crew, Asked(model, prompts, out, work, dtype, device), options, call, sparse)
    if values is not None:
        print_json(values) if json else _show(values)
    crew.follow()


def _calibrate(crew: Crew, asked: Asked, options: dict[str, Any], call: dict[str, Any], sparse: Chosen
               ) -> dict[str, Any] | None:  # fmt: skip
    """Check everything, then load, measure and write; the JSON-ready result, of the main process alone."""
    from vidaccel.calibration.cache import check

    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        with crew.together():
            known = checked(crew, asked, lambda texts: check(texts, **options))
            setting = sparse.enable_kwargs(known.model)
            part = stack.enter_context(asked.written(crew))
        made = _measured(crew, known, asked.folder, options, call, setting)
        if made is None or part is None:
            return None
        made.save(part)
    asked.tidy()
    return {
        "kind": "cache calibration", "model": asked.model, "prompts": len(known.texts), "file": str(asked.out),
        "steps": made.steps, "scheduler": made.scheduler, "shift": made.shift, "guidance": made.guidance,
        "attention": made.attention, "sha256": made.digest, "next_change": _next_change(made),
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def _measured(
    crew: Crew, known: Checked, folder: Path, options: dict[str, Any], call: dict[str, Any],
    setting: dict[str, Any] | None,
) -> CacheCalibration | None:  # fmt: skip
    from vidaccel.calibration.cache import measured

    kwargs = known.model.call(call)
    with crew.together():
        pipe, session = ready(known.model, setting, known.dtype, known.device)
    with resumable(folder), held(crew, folder, "calibration"), progress_bar("calibrating") as advance:
        return measured(pipe, known.texts, kwargs, work=folder, progress=advance, sparse=session is not None,
                        crew=crew, **options)  # fmt: skip


def _next_change(made: CacheCalibration) -> dict[str, dict[str, list[float]]]:
    """Of each expert and branch: relative L1 between neighbouring steps' residuals of the blocks."""
    return {expert: {branch: [row[-1] for row in track.stack[1:]] for branch, track in tracks.items()}
            for expert, tracks in made.tracks.items()}  # fmt: skip


def _show(values: dict[str, Any]) -> None:
    """What was measured, in a few lines."""
    prompts = values["prompts"]
    typer.echo(f"{values['file']}: {values['steps']} steps, {prompts} prompt{'s' * (prompts > 1)}, "
               f"{values['seconds']:.1f} s")  # fmt: skip
    typer.echo("change of the blocks' residual from step to step:")
    for expert, branches in values["next_change"].items():
        for branch, row in branches.items():
            typer.echo(f"  {expert} {branch}: {' '.join(f'{each:.3f}' for each in row)}")
