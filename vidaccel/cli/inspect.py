"""``vidaccel inspect``: what single heads attend to, and what a method keeps of it, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidaccel.cli import options
from vidaccel.cli.chosen import Chosen
from vidaccel.cli.loading import Model, dtype_and_device, identify
from vidaccel.cli.output import print_json, progress_bar, reserved_stdout, staged_file
from vidaccel.cli.plan import Density, Json, Set

if TYPE_CHECKING:
    from vidaccel.eval.inspection import Inspection, Wanted

Strings = list[str] | None
ALL = "all"


def inspect(
    model: Annotated[str, typer.Option(help="A pipeline's folder, a repository id, or miniature:NAME.")],
    out: Annotated[Path, typer.Option(help="The page to write, ending in .html.")],
    method: Annotated[
        str | None, typer.Option(help="A method, a profile ending in .json, or dense; the model's own by default.")
    ] = None,
    density: Density = None,
    set_: Set = None,
    layer: Annotated[Strings, typer.Option(help="Attention layer from 0, or all; repeatable. The middle one.")] = None,
    head: Annotated[Strings, typer.Option(help="Head from 0, or all; repeatable. All by default.")] = None,
    step: Annotated[Strings, typer.Option(help="Denoising step from 0, or all; repeatable. The middle one.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to show; a miniature's own by default.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid.")] = None,
    image: Annotated[Path | None, typer.Option(help="First frame, for image-to-video pipelines.")] = None,
    last_image: Annotated[Path | None, typer.Option(help="Last frame, for first-last-frame pipelines.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    schedule: Annotated[
        Strings, typer.Option(metavar="NAME=VALUE", help="A field of the schedule; repeatable.")
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, triton, cpu, flex or reference.")] = "auto",
    min_tokens: Annotated[int | None, typer.Option(min=0, help="Calls with fewer tokens stay dense.")] = None,
    family: Annotated[str | None, typer.Option(help='"generic" for a transformer that has no family.')] = None,
    family_set: Annotated[
        Strings, typer.Option(metavar="NAME=VALUE", help="What a generic transformer is; repeatable.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; bf16 on a GPU and fp32 on a CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; the GPU where there is one.")] = None,
    record: Annotated[
        Path | None, typer.Option(help="Keep the record, too, ending in .json: a report shows an eval's inspection/.")
    ] = None,
    json: Json = False,
) -> None:
    """Show attention maps, masks and kept mass of heads in one generation."""
    for path, ending in ((out, ".html"), (record, ".json")):
        if path is not None and path.suffix.lower() != ending:
            raise ValueError(f"{str(path)!r} does not end in {ending}")
    wanted = {"steps": _numbers("step", step), "layers": _numbers("layer", layer),
              "heads": _numbers("head", head) or ALL}  # fmt: skip
    call = {"negative_prompt": negative_prompt, "num_inference_steps": steps, "height": height, "width": width,
            "num_frames": frames, "guidance_scale": guidance, "image": image, "last_image": last_image}  # fmt: skip
    with reserved_stdout():
        told = options.generic(family, family_set or [])
        setting = Chosen(
            method=method, density=density, assignments=set_ or [], schedule=schedule or [], backend=backend,
            min_tokens=min_tokens, precision=None, compensation=None, check_finite=False, cache=None, family=told,
        )  # fmt: skip
        found = _inspect(model, prompt, setting, call, wanted, seed, dtype, device, out, record)
    print_json(found.to_dict()) if json else _show(found, out, record)


def _numbers(what: str, given: Strings) -> Wanted:
    """Numbers, "all", or None where nothing is given.

    Raises:
        ValueError: something else.
    """
    if not given or ALL in given:
        return ALL if given else None
    for text in given:
        if not text.isdecimal():
            raise ValueError(f"--{what} {text!r} is neither a number from 0 nor {ALL!r}")
    return [int(text) for text in given]


def _inspect(
    model: str, prompt: str | None, setting: Chosen, call: dict[str, Any], wanted: dict[str, Wanted], seed: int,
    dtype: str | None, device: str | None, out: Path, record: Path | None,
) -> Inspection:  # fmt: skip
    """Load, run and write; a file that cannot be written is an error before anything is loaded."""
    from vidaccel.batch.call import call_kwargs, loaded
    from vidaccel.eval.inspection import inspect
    from vidaccel.report.inspection import write_page

    given = loaded(call)
    with staged_file(out) as page, staged_file(record or out) as kept:
        precision, place = dtype_and_device(dtype, device)
        known = identify(model)
        enable = setting.enable_kwargs(known)
        text = _prompt(known, prompt)
        if enable is None:
            _ = known.supported_family()
        pipe = known.load(precision, place)
        kwargs = call_kwargs(pipe, known.call(given))
        with progress_bar("generating") as advance:
            found = inspect(pipe, text, enable=enable, seed=seed, generation_kwargs=kwargs, name=model,
                            progress=advance, **wanted)  # fmt: skip
        if record is not None:
            found.write(kept.parent, kept.name)
        write_page(found.to_dict(), page)
    return found


def _prompt(model: Model, given: str | None) -> str:
    from vidaccel import miniature

    if given is None and not model.is_miniature:
        raise ValueError("a model that is no miniature needs a prompt: --prompt TEXT")
    return str(miniature.miniatures().PROMPTS[0]) if given is None else given


def _show(found: Inspection, out: Path, record: Path | None) -> None:
    """A line for each layer and step, and where the files are."""
    for call in found.calls:
        place = f"step {call['step']}, layer {call['layer']} of {call['expert']}, {call['how']}"
        heads = call["heads"]
        if call["dense"]:
            typer.echo(f"{place}: {len(heads)} heads")
            continue
        kept = {head["head"]: head["kept_mass"]["mean"] for head in heads}
        worst = min(kept, key=lambda head: kept[head])
        density = sum(head["video_density"] for head in heads) / len(heads)
        mean = sum(kept.values()) / len(kept)
        typer.echo(f"{place}: {len(heads)} heads keep {mean:.3f} of their attention at a video density of "
                   f"{density:.3f}; least {kept[worst]:.3f}, head {worst}")  # fmt: skip
    for note in found.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"page: {out}" + (f", record: {record}" if record is not None else ""))
