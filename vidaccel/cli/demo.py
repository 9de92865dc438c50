"""``vidaccel demo``: a small trained pipeline, dense and fast from the same seed, and a page that shows both."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any

import typer

from vidaccel.cli import options
from vidaccel.cli.loading import FPS, Model, identify, miniature_options
from vidaccel.cli.output import print_json, progress_bar, reserved_stdout, staged_folder
from vidaccel.cli.plan import Density, Json, Set

MODEL = "miniature:wan"
METHOD = "radial"
"""Of the fast runs, where the model's family has sparse attention."""
DENSE = "dense"
STEPS = 20


def demo(
    model: Annotated[str, typer.Option(help="A miniature, as listed by `vidaccel ls`.")] = MODEL,
    out: Annotated[Path, typer.Option(help="Folder for the videos, the page and the record.")] = Path("vidaccel-demo"),
    prompt: Annotated[str | None, typer.Option(help="What to show; miniatures know moving shapes.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    method: Annotated[
        str | None, typer.Option(help="A method, or dense; radial by default, dense where the model knows no other.")
    ] = None,
    density: Density = None,
    set_: Set = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = STEPS,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each kind.")] = 3,
    json: Json = False,
) -> None:
    """Run a small video pipeline dense and fast from the same seed, and write videos, figures and a page."""
    with reserved_stdout(), staged_folder(out) as folder:
        known = _miniature(model)
        method = method or (METHOD if known.family else DENSE)
        if method == DENSE:
            if density is not None or set_:
                raise ValueError(f"a dense run of {model} takes no --density and no --set")
            record = _dense_demo(folder, known, prompt, seed, steps, repeats)
        else:
            known.supported_family()
            chosen = options.method_options(method, set_ or [], density=density)
            record = _demo(folder, known, prompt, seed, method, chosen, steps, repeats)
    if json:
        print_json(record)
    else:
        _show(record, out)


def _miniature(name: str) -> Model:
    """The miniature that the demo runs.

    Raises:
        ValueError: there is no such miniature.
    """
    from vidaccel import miniature

    if not name.startswith(miniature.PREFIX):
        there = ", ".join(miniature.PREFIX + each for each in miniature.available()) or "none is installed"
        raise ValueError(f"the demo runs miniatures, not {name!r}; choose {there} (vidaccel generate runs any model)")
    return identify(name)


def _call(model: Model, prompt: str | None, steps: int) -> tuple[dict[str, Any], str, float]:
    """Arguments of the call, prompt and frames per second: what is given, else the miniature's own."""
    from vidaccel import miniature

    call = {**model.defaults(), "num_inference_steps": steps}
    fps = float(call.pop("fps", FPS))
    own = str(call.pop("prompt", None) or miniature.miniatures().PROMPTS[0])
    return call, prompt or own, fps


def _dense_demo(folder: Path, model: Model, prompt: str | None, seed: int, steps: int,
                repeats: int) -> dict[str, Any]:
    """Run a model dense only and write video, page and record into `folder`; the record."""
    from vidaccel import miniature
    from vidaccel.eval.alone import FILES, dense_record, run_dense
    from vidaccel.eval.video import write_mp4
    from vidaccel.report import write_report

    pipe = miniature.load_miniature(model.name.removeprefix(miniature.PREFIX))
    call, text, fps = _call(model, prompt, steps)
    with progress_bar("loading") as advance:
        runs = run_dense(pipe, text, seed=seed, repeats=repeats, generation_kwargs=call, progress=advance)
    write_mp4(runs[-1].clip, folder / FILES["dense"], fps)
    why = "as asked" if model.family else f"vidaccel has no sparse attention for {model.transformer} yet"
    record = dense_record("demo", pipe, model.name, text, seed, runs, call, fps, [f"dense attention only: {why}"])
    write_report(record.to_dict(), folder)
    record.write(folder / "record.json")
    return record.to_dict()


def _demo(folder: Path, model: Model, prompt: str | None, seed: int, method: str, chosen: dict[str, Any], steps: int,
          repeats: int) -> dict[str, Any]:
    """Run, measure and write everything into `folder`; the record."""
    from vidaccel import methods, miniature
    from vidaccel.eval import compare
    from vidaccel.eval.evidence import FILES, comparison_record
    from vidaccel.eval.video import side_by_side, write_mp4
    from vidaccel.report import write_report

    chosen = miniature_options(model, method, chosen)
    methods.method(method, model.supported_family(), **chosen)  # a bad option is an error before anything is loaded
    pipe = miniature.load_miniature(model.name.removeprefix(miniature.PREFIX))
    call, prompt, fps = _call(model, prompt, steps)
    setting = {"method": method, "min_tokens": 0, **chosen}
    with progress_bar("loading") as advance:
        seen = compare(pipe, prompt, seed=seed, repeats=repeats, enable_kwargs=setting, generation_kwargs=call,
                       progress=advance)
    dense, fast = seen.dense[-1].frames, seen.fast[-1].frames
    write_mp4(dense, folder / FILES["dense"], fps)
    write_mp4(fast, folder / FILES["fast"], fps)
    labels = (f"dense  {seen.median('dense'):.1f} s", f"{method}  {seen.median('fast'):.1f} s")
    write_mp4(side_by_side(dense, fast, labels), folder / FILES["side_by_side"], fps)
    record = comparison_record("demo", pipe, model.name, prompt, seed, seen, call, fps, _mask_png(seen.summary))
    write_report(record.to_dict(), folder)
    record.write(folder / "record.json")
    return record.to_dict()


def _mask_png(summary: Any) -> str | None:
    """The mask of the last sparse call as a base64 picture."""
    from vidaccel.report import mask_picture

    if summary.mask is None:
        return None
    return base64.b64encode(mask_picture(summary.mask, summary.tally.layout)).decode()


def _show(record: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    timing, metrics, density = record["timing"], record["metrics"], record["density"]
    fast = bool(record["method"])

    def figure(name: str, pattern: str) -> str:
        return pattern.format(metrics[name]) if metrics[name] is not None else escape(str(metrics[f"{name}_reason"]))

    console = Console()
    steps = record["settings"]["num_inference_steps"]
    table = Table(title=f"{record['model']['name']}, {steps} steps, seed {record['seed']}")
    for heading in ("", "dense", *([record["method"]["name"]] if fast else [])):
        table.add_column(heading)
    medians = [timing[f"{side}_median"] for side in ("dense", "fast")[: 1 + fast]]
    table.add_row("time, median", *(f"{median:.2f} s" for median in medians))
    if fast:
        table.add_row("speed", "1.00x", f"{timing['speedup']:.2f}x")
    if density:
        table.add_row("attention density, sparse calls", "1", f"{density['video_density']:.3f}")
        table.add_row("attention density, all calls", "1", f"{density['all_calls']:.3f}")
    for name, pattern in (("psnr", "{:.2f} dB"), ("ssim", "{:.4f}"), ("lpips", "{:.4f}")) if fast else ():
        table.add_row(name.upper(), "", figure(name, pattern))
    console.print(table)
    sizes = Table(title="counted at real sizes: self-attention of one sparse step (work, not time)")
    for heading in ("model", "tokens", "density", "PFLOP", "gain"):
        sizes.add_column(heading, no_wrap=True)
    for row in record["real_sizes"]:
        work = f"{row['dense_pflop_per_step']:.2f} to {row['sparse_pflop_per_step']:.2f}"
        sizes.add_row(row["model"], f"{row['tokens']:,}", f"{row['video_density']:.3f}", work,
                      f"{row['counted_attention_gain']:.2f}x")
    if record["real_sizes"]:
        console.print(sizes)
    for note in record["notes"]:
        console.print(f"note: {note}", markup=False)
    typer.echo(f"open {out / 'report.html'}")  # not through rich, which would break a long path
