"""``vidaccel generate``: clips from any supported pipeline, dense or sparse; one, or those of a file of prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vidaccel.cli import options
from vidaccel.cli.chosen import Chosen
from vidaccel.cli.generate_many import finish, many
from vidaccel.cli.loading import FPS, check_fps, dtype_and_device, identify, ready
from vidaccel.cli.output import Advance, print_json, progress_bar, reserved_stdout, speaking, staged_file
from vidaccel.cli.plan import Density, Json, Set
from vidaccel.processes import Crew, join


def generate(
    model: Annotated[str, typer.Option(help="A pipeline's folder, a repository id, or miniature:NAME.")],
    out: Annotated[Path, typer.Option(help="The video to write: .mp4, or .mkv without loss; a folder with --prompts.")],
    prompt: Annotated[str | None, typer.Option(help="What to show.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Many clips: a text file, one prompt a line, or .jsonl with an object a line.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="A method, a profile ending in .json, or dense; the model's own by default.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid.")] = None,
    image: Annotated[Path | None, typer.Option(help="First frame, for image-to-video pipelines.")] = None,
    last_image: Annotated[Path | None, typer.Option(help="Last frame, for first-last-frame pipelines.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second of the file.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the noise; 0 by default.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="With --prompts, each of which runs with every seed: such as 0,1,7 or 0-4.")
    ] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="With --prompts: .mkv without loss, not .mp4.")] = False,
    density: Density = None,
    set_: Set = None,
    schedule: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A field of the schedule; repeatable.")
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, triton, cpu, flex or reference.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="int8 or fp8: sparse attention in fewer bits, its error in the summary.")
    ] = None,
    compensation: Annotated[
        str | None, typer.Option(help="What makes up for skipped keys: centroid or residual; none by default.")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="What reuses steps, as listed by `vidaccel ls`; with dense it is all there is.")
    ] = None,
    cache_set: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An option or limit of the cache, or its predictor; repeatable."),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help='"generic" for a transformer that has no family: its stock processors are used.')
    ] = None,
    family_set: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What a generic transformer is, such as text=before; repeatable."),
    ] = None,
    check_finite: Annotated[
        bool, typer.Option("--check-finite", help="Stop at the first attention output that is not finite; slow.")
    ] = False,
    min_tokens: Annotated[int | None, typer.Option(min=0, help="Calls with fewer tokens stay dense.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; bf16 on a GPU and fp32 on a CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; the GPU where there is one.")] = None,
    json: Json = False,
) -> None:
    """Generate a video with any supported pipeline, or one for each prompt of a file."""
    call = {
        "negative_prompt": negative_prompt,
        "num_inference_steps": steps,
        "height": height,
        "width": width,
        "num_frames": frames,
        "guidance_scale": guidance,
        "image": image,
        "last_image": last_image,
    }
    crew = join()
    with reserved_stdout(), speaking(crew):
        with crew.together():
            _check_which(crew, prompt, prompts, seeds, seed, lossless)
            reuse = options.cache_options(cache, cache_set or [])
            told = options.generic(family, family_set or [])
            setting = Chosen(method, density, set_ or [], schedule or [], backend, min_tokens, precision, compensation,
                             check_finite, reuse, told)  # fmt: skip
        if prompts is not None:
            which = seeds if seeds is not None else str(seed or 0)
            result = many(crew, model, prompts, out, which, setting, call, fps, lossless, dtype, device)
        else:
            values, summary = _generate(model, str(prompt), out, setting, call, seed or 0, fps, dtype, device)
    if prompts is not None:
        finish(crew, result, json)
    elif json:
        print_json(values)
    else:
        typer.echo(f"{values['file']}: {values['seconds']:.1f} s\n{summary}".rstrip())


def _generate(
    model: str,
    prompt: str,
    out: Path,
    setting: Chosen,
    call: dict[str, Any],
    seed: int,
    fps: float | None,
    dtype: str | None,
    device: str | None,
) -> tuple[dict[str, Any], str]:
    """Load, run and write; the JSON-ready result, and the session's summary as text."""
    from vidaccel.batch.call import IMAGES, call_kwargs, loaded
    from vidaccel.eval.runner import Runner
    from vidaccel.eval.video import check_video_path, write_video

    check_video_path(out)
    check_fps(fps)
    given = loaded(call)
    with staged_file(out) as part:
        precision, place = dtype_and_device(dtype, device)
        known = identify(model)
        enable_kwargs = setting.enable_kwargs(known)
        pipe, session = ready(known, enable_kwargs, precision, place)
        kwargs = call_kwargs(pipe, known.call(given))
        rate = float(fps if fps is not None else known.defaults().get("fps", FPS))
        with progress_bar("generating") as advance:
            runner = Runner(pipe, kwargs)
            pipe.set_progress_bar_config(disable=runner.reports_steps)
            runner.on_steps = _counted(advance, runner.steps)
            run = runner.run("generating", prompt, seed)
        write_video(run.clip, part, rate)
    summary = None if session is None else session.summary()
    plain = {name: item for name, item in kwargs.items() if name not in IMAGES}
    values = {
        "kind": "generate", "model": model, "pipeline": type(pipe).__name__, "prompt": prompt, "seed": seed,
        "settings": {**plain, "fps": rate, "dtype": precision, "device": str(pipe.device)},
        "seconds": run.seconds, "sparse": summary.to_dict() if summary else None, "file": str(out),
    }  # fmt: skip
    return values, str(summary or "")


def _counted(advance: Advance, steps: int) -> Callable[[str, int], None]:
    """Tells a bar of steps that are reported one by one."""
    done = 0

    def stepped(label: str, count: int) -> None:
        nonlocal done
        done += count
        advance(label, done, steps)

    return stepped


def _check_which(crew: Crew, prompt: str | None, prompts: Path | None, seeds: str | None, seed: int | None,
                 lossless: bool) -> None:  # fmt: skip
    """Refuse options that do not go together.

    Raises:
        ValueError: which.
    """
    if (prompt is None) == (prompts is None):
        raise ValueError("give one prompt, --prompt TEXT, or a file of them, --prompts FILE")
    if seeds is not None and seed is not None:
        raise ValueError("give --seed for all prompts or --seeds, not both")
    if prompt is not None and (seeds is not None or lossless):
        raise ValueError("--seeds and --lossless go with --prompts; one clip takes --seed, and is without loss in .mkv")
    if prompt is not None and crew.size > 1:
        raise ValueError(f"{crew.size} processes would all make the same clip: give --prompts FILE, whose clips they "
                         "share, or start one process")  # fmt: skip
