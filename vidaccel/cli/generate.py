"""``vidaccel generate``: one clip from any supported pipeline, dense or sparse."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidaccel.cli import options
from vidaccel.cli.loading import FPS, Model, dtype_and_device, identify, miniature_options
from vidaccel.cli.output import print_json, progress_bar, reserved_stdout, staged_file
from vidaccel.cli.plan import Density, Json, Set

if TYPE_CHECKING:
    from vidaccel.pipelines.generic import Generic

DENSE = "dense"
"""As a method: attention is left alone."""


def generate(
    model: Annotated[str, typer.Option(help="A pipeline's folder, a repository id, or miniature:NAME.")],
    prompt: Annotated[str, typer.Option(help="What to show.")],
    out: Annotated[Path, typer.Option(help="The video to write: .mp4, or .mkv without loss.")],
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
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
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
    """Generate one video with any supported pipeline."""
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
    with reserved_stdout():
        reuse = options.cache_options(cache, cache_set or [])
        told = options.generic(family, family_set or [])
        setting = Chosen(method, density, set_ or [], schedule or [], backend, min_tokens, precision, compensation,
                         check_finite, reuse, told)  # fmt: skip
        values, summary = _generate(model, prompt, out, setting, call, seed, fps, dtype, device)
    if json:
        print_json(values)
    else:
        typer.echo(f"{values['file']}: {values['seconds']:.1f} s\n{summary}".rstrip())


@dataclass(frozen=True)
class Chosen:
    """What the options say about sparse attention and the cache."""

    method: str | None
    density: float | None
    assignments: list[str]
    schedule: list[str]
    backend: str
    min_tokens: int | None
    precision: str | None
    compensation: str | None
    check_finite: bool
    cache: dict[str, Any] | None
    family: Generic | None = None

    def enable_kwargs(self, model: Model) -> dict[str, Any] | None:
        """Arguments for `vidaccel.enable`, checked before the model is loaded; None for a dense run without a cache."""
        from vidaccel import kernels, methods, profile
        from vidaccel.asked import profiled
        from vidaccel.compensation import compensation as make_compensation
        from vidaccel.schedule import Schedule

        if self.method == DENSE:
            given = (self.assignments, self.schedule, self.precision, self.compensation, self.check_finite, self.family)
            if self.density is not None or any(given):
                raise ValueError("method 'dense' takes no --density, --set, --schedule, --precision, --compensation, "
                                 "--check-finite and --family")  # fmt: skip
            if self.cache is None:
                return None
            _ = model.supported_family()
            return {"method": None, "cache": self.cache}
        family = self._family(model)
        if self.backend != "auto":
            kernels.backend(self.backend)
        kernels.check_precision(self.precision)
        _ = make_compensation(self.compensation)
        is_profile = self.method is not None and self.method.endswith(".json")
        found = profile.Profile.load(str(self.method)) if is_profile else None
        if self.method is None:
            found = profile.find(model.path)
        name = found.method if found else self.method or "radial"
        if name not in methods.METHODS:
            known = ", ".join((DENSE, *methods.METHODS))
            raise ValueError(f"unknown method {name!r}; choose {known} or a profile ending in .json")
        chosen = options.method_options(name, self.assignments, density=self.density)
        min_tokens = self.min_tokens
        if model.is_miniature and found is None:
            chosen = miniature_options(model, name, chosen)
            min_tokens = min_tokens or 0
        # Only to be refused here, before the model is loaded.
        _ = profiled(found, family, chosen) if found else methods.method(name, family, **chosen)
        fields = options.parse(self.schedule, Schedule, "a schedule")
        schedule = {"schedule": Schedule.of(fields)} if fields else {}
        return {"method": self.method or "auto", "backend": self.backend, "min_tokens": min_tokens,
                "precision": self.precision, "compensation": self.compensation, "check_finite": self.check_finite,
                "cache": self.cache, "family": self.family, **chosen, **schedule}  # fmt: skip

    def _family(self, model: Model) -> str:
        """By whose name methods and profiles know the model."""
        return model.supported_family() if self.family is None else options.GENERIC


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
    import torch

    import vidaccel
    from vidaccel.eval.video import check_video_path, write_video

    check_video_path(out)
    if fps is not None and not 0 < fps < 1000:
        raise ValueError(f"--fps {fps} is not a number of frames per second between 0 and 1000")
    images = {name: read_image(path) for name, path in call.items() if isinstance(path, Path)}
    with staged_file(out) as part:
        precision, place = dtype_and_device(dtype, device)
        known = identify(model)
        enable_kwargs = setting.enable_kwargs(known)
        pipe = known.load(precision, place)
        if enable_kwargs is not None:
            vidaccel.enable(pipe, **enable_kwargs)
        defaults = known.defaults()
        kwargs = call_kwargs(pipe, {**defaults, **{k: v for k, v in call.items() if v is not None}, **images})
        rate = float(fps if fps is not None else defaults.get("fps", FPS))
        noise = torch.Generator("cpu").manual_seed(seed)
        start = time.perf_counter()
        result = _run(pipe, prompt=prompt, output_type="np", generator=noise, **kwargs)
        seconds = time.perf_counter() - start
        write_video(result.frames[0], part, rate)
    summary = vidaccel.summary(pipe) if enable_kwargs is not None else None
    plain = {name: item for name, item in kwargs.items() if name not in images}
    values = {
        "kind": "generate", "model": model, "pipeline": type(pipe).__name__, "prompt": prompt, "seed": seed,
        "settings": {**plain, "fps": rate, "dtype": precision, "device": str(pipe.device)},
        "seconds": seconds, "sparse": summary.to_dict() if summary else None, "file": str(out),
    }  # fmt: skip
    return values, str(summary or "")


def call_kwargs(pipe: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The values that go to the pipeline's call.

    Raises:
        ValueError: one that this pipeline does not take, or an image that it needs.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    values = {name: item for name, item in values.items() if name != "fps"}
    unknown = [name for name in values if name not in parameters]
    if unknown:
        raise ValueError(f"{type(pipe).__name__} takes no {unknown[0]}")
    image = parameters.get("image")
    if image is not None and image.default is inspect.Parameter.empty and "image" not in values:
        raise ValueError(f"{type(pipe).__name__} needs a first frame: --image PATH")
    return values


def _run(pipe: Any, **kwargs: Any) -> Any:
    """One call of the pipeline under our progress bar, where it reports its steps."""
    parameters = inspect.signature(pipe.__call__).parameters
    if "callback_on_step_end" not in parameters:
        return pipe(**kwargs)
    steps = int(kwargs.get("num_inference_steps", parameters["num_inference_steps"].default))
    pipe.set_progress_bar_config(disable=True)
    with progress_bar("generating") as advance:

        def on_step_end(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            advance("generating", step + 1, steps)
            return tensors

        return pipe(**kwargs, callback_on_step_end=on_step_end)


def read_image(path: Path) -> Any:
    """An image of the user's, in RGB.

    Raises:
        ValueError: it cannot be read.
    """
    from PIL import Image

    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise ValueError(f"image {str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
