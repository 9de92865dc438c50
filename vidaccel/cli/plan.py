"""``vidaccel plan``: what a method would compute on a grid, or how several GPUs would share it, without a model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidaccel.cli import options
from vidaccel.cli.output import print_json, reserved_stdout, staged_file
from vidaccel.cli.scale import DENSE, Asked, at_scale, show

if TYPE_CHECKING:
    from vidaccel.eval.sizes import ModelSize
    from vidaccel.layout import TokenLayout
    from vidaccel.patterns import Pattern
    from vidaccel.plan import AttentionPlan
    from vidaccel.scale.attention import Attention

    Make = Callable[[TokenLayout], tuple[dict[str, Any], AttentionPlan]]
    """From a layout to the options that a plan was made with, and the plan."""

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any option of the method; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Density = Annotated[float | None, typer.Option(help="Video density to reach, in (0, 1].")]
PATTERN = "pattern:"
"""Before the name of a pattern, which stands for a method whose heads all have it."""
PATTERN_BLOCK = 128
FAMILY = "wan"
"""Where none is given."""


def plan(
    method: Annotated[str, typer.Argument(help="Method, as listed by `vidaccel ls`, or a pattern as pattern:NAME.")],
    grid: Annotated[
        str | None, typer.Option(help="Video tokens, FRAMESxHEIGHTxWIDTH, such as 21x45x80; of --model by default.")
    ] = None,
    family: Annotated[str, typer.Option(help="Model family whose defaults count.")] = FAMILY,
    text_before: Annotated[int, typer.Option(help="Text tokens before the video.")] = 0,
    text_after: Annotated[int, typer.Option(help="Text tokens after the video.")] = 0,
    heads: Annotated[int | None, typer.Option(help="Attention heads; the family's largest model by default.")] = None,
    block: Annotated[int | None, typer.Option(help="Tile size in tokens.")] = None,
    density: Density = None,
    set_: Set = None,
    layer: Annotated[int, typer.Option(min=0, help="Attention layer, for methods whose layers differ.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Draw the block maps of distinct heads into a PNG.")] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Predict a step of --model that so many GPUs share, and the best way to.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --gpus: such as wan2.1-t2v-14b or hunyuanvideo.")] = None,
    gpu: Annotated[str | None, typer.Option(help="With --gpus: h100, h200, h20, b200, a100, l40s or l20.")] = None,
    interconnect: Annotated[
        str | None, typer.Option(help="With --gpus: nvlink, pcie, another name or GB/s; the GPU's own by default.")
    ] = None,
    network: Annotated[str | None, typer.Option(help="With --gpus: between nodes; infiniband by default.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="With --gpus: 8 by default.")] = None,
    assume: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="With --gpus: a share that is reached; repeatable.")
    ] = None,
    json: Json = False,
) -> None:
    """Build a plan without a model: what it keeps, how large it is and how long it took.

    With --gpus, predict how long a step takes over so many GPUs, from counted work and exchanged bytes.
    """
    machine = {"--model": model, "--gpu": gpu, "--interconnect": interconnect, "--network": network,
               "--gpus-per-node": gpus_per_node, "--assume": assume or None}  # fmt: skip
    if gpus is None:
        _refuse(machine, "says how GPUs share a step: give --gpus, too")
        _one(method, grid, family, text_before, text_after, heads, block, density, set_ or [], layer, picture, json)
        return
    _refuse({"--text-before": text_before or None, "--text-after": text_after or None, "--heads": heads,
             "--layer": layer or None, "--picture": picture, "--family": None if family == FAMILY else family},
            "does not go with --gpus, where --model says it")  # fmt: skip
    asked = Asked(gpus, model, gpu, interconnect, network, gpus_per_node, assume or [])
    with reserved_stdout():
        values = at_scale(method, _attention(method, set_ or [], density, block), asked, grid)
    print_json(values) if json else show(values)


def _one(
    method: str, grid: str | None, family: str, text_before: int, text_after: int, heads: int | None,
    block: int | None, density: float | None, set_: list[str], layer: int, picture: Path | None, json: bool,
) -> None:  # fmt: skip
    """Build one plan and print what it is; see `plan`."""
    if grid is None:
        raise ValueError("a plan needs a grid: give --grid, or --gpus and --model")
    if picture is not None and picture.suffix.lower() != ".png":
        raise ValueError(f"--picture {str(picture)!r} does not end in .png")
    with reserved_stdout():
        if method.startswith(PATTERN):
            make = _pattern_plan(method, set_, density, block)
        else:
            make = _method_plan(method, family, set_, density, block, layer)
        values, made = planned(method, make, family, grid, text_before, text_after, heads)
        if picture is not None:
            _draw(made, f"{method} on {values['grid']}", picture)
    if json:
        print_json(values)
        return
    for name, item in values.items():
        typer.echo(f"{name:<17} {', '.join(item) or 'none' if isinstance(item, list) else item}")


def _refuse(given: Mapping[str, object], why: str) -> None:
    """Options that do not belong to what the command was asked for; None where one was not given.

    Raises:
        ValueError: one was given.
    """
    for name, item in given.items():
        if item is not None:
            raise ValueError(f"{name} {why}")


def _attention(
    name: str, set_: list[str], density: float | None, block: int | None
) -> Callable[[ModelSize], Attention]:  # fmt: skip
    """From a model's size to its attention by a method, a pattern in all heads, or dense."""
    from vidaccel.scale import Dense, chosen

    if name == DENSE:
        if set_ or density is not None or block is not None:
            raise ValueError("dense attention has no options: give a method, or pattern:NAME")
        return lambda _: Dense()
    if name.startswith(PATTERN):
        make = _pattern_plan(name, set_, density, block)
        return lambda size: chosen.planned([make(size.layout)[1]] * size.layers, size)
    given = options.method_options(name, set_, density=density, block=block)
    return lambda size: chosen.attention_of(name, size, given)


def planned(
    name: str, make: Make, family: str, grid: str, text_before: int, text_after: int, heads: int | None
) -> tuple[dict[str, Any], AttentionPlan]:
    """The JSON-ready description of one plan, and the plan.

    Raises:
        ValueError: a family, grid, option or number of heads that is none, or a method that plans from a run's tensors.
    """
    from vidaccel.eval.sizes import typical_heads
    from vidaccel.layout import TokenLayout

    families = known_families()
    if family not in families:
        raise ValueError(f"unknown family {family!r}; choose {', '.join(families)}")
    heads = typical_heads(family) if heads is None else heads
    if heads < 1:
        raise ValueError(f"heads {heads} is not a number of attention heads of at least 1")
    layout = TokenLayout.parse(grid, text_before, text_after)
    start = time.perf_counter()
    chosen, made = make(layout)
    seconds = time.perf_counter() - start
    mask = made.mask
    return {
        "method": name, "family": family, "options": chosen,
        "grid": f"{layout.frames}x{layout.height}x{layout.width}", "text_before": text_before, "text_after": text_after,
        "tokens": layout.tokens, "heads": heads, **dataclasses.asdict(made.density(layout)),
        "patterns": mask.patterns if mask else 1, "ranges": len(mask.ranges) if mask else 0,
        "bytes": mask.nbytes if mask else 0, "seconds": seconds, "notes": list(made.notes),
    }, made  # fmt: skip


def _method_plan(
    name: str, family: str, set_: list[str], density: float | None, block: int | None, layer: int
) -> Make:  # fmt: skip
    """How to plan with a method: options are read here, so that bad ones are refused before any work."""
    from vidaccel import methods
    from vidaccel.eval.sizes import plan_site

    given = options.method_options(name, set_, density=density, block=block)

    def make(layout: TokenLayout) -> tuple[dict[str, Any], AttentionPlan]:
        method = methods.method(name, family, **given)
        if not method.static:
            static = [each for each, cls in methods.METHODS.items() if cls.static]
            raise ValueError(
                f"method {name!r} plans from a run's queries and keys; without a model: {', '.join(static)}"
            )
        made = method.plan(None, None, None, plan_site(layout, layer + 1, layer), {})
        return dataclasses.asdict(method), made  # type: ignore[call-overload]

    return make


def _pattern_plan(name: str, set_: list[str], density: float | None, block: int | None) -> Make:
    """How to plan with a pattern: as it is set, or the one of its family with a density."""
    from vidaccel import patterns

    word = name.removeprefix(PATTERN)
    if word not in patterns.PATTERNS:
        raise ValueError(f"unknown pattern {word!r}; choose {', '.join(patterns.PATTERNS)}")
    kind = patterns.PATTERNS[word]
    given = options.parse(set_, kind, f"pattern {word!r}")
    tile = PATTERN_BLOCK if block is None else block
    if tile < 1:
        raise ValueError(f"block {tile} is not a number of tokens of at least 1")

    def make(layout: TokenLayout) -> tuple[dict[str, Any], AttentionPlan]:
        found = (
            patterns.pattern({"name": word, **given})
            if density is None
            else _solved(kind, given, layout, tile, density)
        )
        return {**found.to_dict(), "block": tile}, patterns.plan_of([found], layout, tile)

    return make


def _solved(kind: type[Pattern], given: dict[str, Any], layout: TokenLayout, block: int, density: float) -> Pattern:
    """The pattern of a kind with a video density, and with fields as given.

    Raises:
        ValueError: a density out of range, a kind without a size, or fields that leave none.
    """
    from vidaccel.patterns import at_density

    def make(share: float) -> Pattern:
        return dataclasses.replace(kind.scaled(share), **given)  # type: ignore[type-var]

    try:
        sized = make(0.0) != make(1.0)
    except TypeError:
        sized = False
    if not sized:
        raise ValueError(
            f"pattern {kind.name!r}{' with these fields' if given else ''} has no size to solve a density for"
        )
    return at_density(make, layout, block, density)[0]


def _draw(made: AttentionPlan, title: str, path: Path) -> None:
    from vidaccel.report.patterns import patterns_picture, plan_maps

    with staged_file(path) as staged:
        staged.write_bytes(patterns_picture(plan_maps(made), title))


def known_families() -> list[str]:
    """Families with a pipeline of ours, and those whose sizes are known."""
    from vidaccel.eval.sizes import REAL_SIZES
    from vidaccel.pipelines import families

    return sorted({*families(), *(size.family for size in REAL_SIZES)})
