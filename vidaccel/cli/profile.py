"""``vidaccel profile``: measure what each head of a model can do without, and write it as a profile."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidaccel.cli.measuring import Asked, Checked, checked
from vidaccel.cli.output import print_json, progress_bar, reserved_stdout, resumable, speaking, staged_folder
from vidaccel.cli.plan import Json
from vidaccel.processes import Crew, held, join

if TYPE_CHECKING:
    from vidaccel.calibration.result import Calibration


def profile(
    model: Annotated[str, typer.Option(help="A pipeline's folder, a repository id, or miniature:NAME.")],
    prompts: Annotated[Path, typer.Option(help="A text file, one prompt a line.")],
    out: Annotated[Path, typer.Option(help="The profile to write, ending in .json.")],
    target_density: Annotated[float | None, typer.Option(help="Video density to reach, in (0, 1].")] = None,
    max_error: Annotated[float | None, typer.Option(help="Relative error of a layer's output to stay under.")] = None,
    library: Annotated[
        str, typer.Option(help="Patterns to try: all, geometry, sparse-vdit, paro, sta or svg.")
    ] = "all",
    cost: Annotated[
        str, typer.Option(help="What density means: kernel time as measured here, counted pairs, or video density.")
    ] = "measured",
    work: Annotated[
        Path | None, typer.Option(help="Folder that keeps each finished prompt; one beside --out by default.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Folder for a picture of each layer.")] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="HEIGHTxWIDTH[xFRAMES]", help="A further size that the profile is to serve; repeatable."),
    ] = None,
    bands: Annotated[int, typer.Option(help="Step bands with a choice of their own.")] = 1,
    rows: Annotated[int, typer.Option(help="Sampled queries of each measured call.")] = 64,
    steps_per_band: Annotated[int, typer.Option(help="Denoising steps of a band that are measured.")] = 4,
    block: Annotated[int | None, typer.Option(help="Tile size in tokens; fits the sequence by default.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise and the sampled queries.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; bf16 on a GPU and fp32 on a CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; the GPU where there is one.")] = None,
    json: Json = False,
) -> None:
    """Calibrate a model: for each head the cheapest pattern that keeps its output."""
    call = {"negative_prompt": negative_prompt, "num_inference_steps": steps, "height": height, "width": width,
            "num_frames": frames, "guidance_scale": guidance}  # fmt: skip
    options: dict[str, Any] = {
        "target_density": target_density, "max_error": max_error, "library_name": library, "cost": cost,
        "bands": bands, "rows": rows, "steps_per_band": steps_per_band, "block": block, "seed": seed,
    }  # fmt: skip
    crew = join()
    with reserved_stdout(), speaking(crew):
        values = _profile(crew, Asked(model, prompts, out, work, dtype, device), options, also or [], picture, call)
    if values is not None:
        print_json(values) if json else _show(values)
    crew.follow()


def _size(text: str) -> dict[str, int]:
    """A further size as arguments of the pipeline's call.

    Raises:
        ValueError: not a size.
    """
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})(?:x(\d{1,6}))?", text, re.ASCII)
    if not match:
        raise ValueError(f"--also {text!r} is not HEIGHTxWIDTH or HEIGHTxWIDTHxFRAMES, such as 480x832")
    sizes = zip(("height", "width", "num_frames"), match.groups(), strict=True)
    return {name: int(value) for name, value in sizes if value is not None}


def _profile(crew: Crew, asked: Asked, options: dict[str, Any], also: list[str], picture: Path | None,
             call: dict[str, Any]) -> dict[str, Any] | None:  # fmt: skip
    """Check everything, then load, measure and write; the JSON-ready result, of the main process alone."""
    from vidaccel.calibration.run import check

    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        with crew.together():
            options["also"] = [_size(each) for each in also]
            known = checked(crew, asked, lambda texts: check(texts, **options))
            part = stack.enter_context(asked.written(crew))
        found = _measured(crew, known, asked.folder, options, call)
        if found is None or part is None:
            return None
        found.profile.save(part)
        pictures = _pictures(found, picture) if picture else []
    asked.tidy()
    return {
        "kind": "profile", "model": asked.model, "prompts": len(known.texts), "file": str(asked.out),
        **found.to_dict(), "seconds": time.perf_counter() - start, "pictures": pictures,
    }  # fmt: skip


def _measured(crew: Crew, known: Checked, folder: Path, options: dict[str, Any], call: dict[str, Any]
              ) -> Calibration | None:  # fmt: skip
    from vidaccel.calibration.run import measured

    kwargs = known.model.call(call)
    with crew.together():
        pipe = known.model.load(known.dtype, known.device)
    with resumable(folder), held(crew, folder, "calibration"), progress_bar("calibrating") as advance:
        return measured(pipe, known.texts, work=folder, progress=advance, generation_kwargs=kwargs, crew=crew,
                        **options)  # fmt: skip


def _pictures(found: Calibration, folder: Path) -> list[str]:
    from vidaccel.report.profile import layer_picture

    names = []
    with staged_folder(folder) as staging:
        for name, title, heads in found.views():
            (staging / f"{name}.png").write_bytes(layer_picture(heads, title))
            names.append(str(folder / f"{name}.png"))
    return names


def _show(values: dict[str, Any]) -> None:
    """What was chosen, in a few lines."""
    predicted, prompts = values["predicted"], values["prompts"]
    typer.echo(f"{values['file']}: {values['seconds']:.1f} s for {prompts} prompt{'s' * (prompts > 1)}")
    typer.echo(f"predicted: {_words(predicted)}")
    for each in values["further"]:
        typer.echo(f"predicted on {each['grid']}: {_words(each['predicted'])}")
    typer.echo("heads: " + ", ".join(f"{count} {kind}" for kind, count in values["kinds"].items()))
    for path in values["pictures"]:
        typer.echo(f"picture: {path}")


def _words(predicted: dict[str, float]) -> str:
    return (f"density {predicted['density']:.3f}, cost {predicted['cost']:.3f} of dense, error of the layers' outputs "
            f"{predicted['error']:.3f}")  # fmt: skip
