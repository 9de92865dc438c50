"""``vidaccel plan``: what a method would compute on a grid, without a model."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from vidaccel.cli import options
from vidaccel.cli.output import print_json, reserved_stdout

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any option of the method; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Density = Annotated[float | None, typer.Option(help="Video density to reach, in (0, 1].")]


def plan(
    method: Annotated[str, typer.Argument(help="Method, as listed by `vidaccel ls`.")],
    grid: Annotated[str, typer.Option(help="Video tokens, FRAMESxHEIGHTxWIDTH, such as 21x45x80.")],
    family: Annotated[str, typer.Option(help="Model family whose defaults count.")] = "wan",
    text_before: Annotated[int, typer.Option(help="Text tokens before the video.")] = 0,
    text_after: Annotated[int, typer.Option(help="Text tokens after the video.")] = 0,
    heads: Annotated[int | None, typer.Option(help="Attention heads; the family's largest model by default.")] = None,
    block: Annotated[int | None, typer.Option(help="Tile size in tokens.")] = None,
    density: Density = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Build a plan without a model: what it keeps, how large it is and how long it took."""
    with reserved_stdout():
        chosen = options.method_options(method, set_ or [], density=density, block=block)
        values = planned(method, chosen, family, grid, text_before, text_after, heads)
    if json:
        print_json(values)
        return
    for name, item in values.items():
        typer.echo(f"{name:<17} {', '.join(item) or 'none' if isinstance(item, list) else item}")


def planned(name: str, chosen: dict[str, Any], family: str, grid: str, text_before: int, text_after: int,
            heads: int | None) -> dict[str, Any]:
    """The JSON-ready description of one plan.

    Raises:
        ValueError: a family, grid, option or number of heads that is none, or a method that plans from a run's tensors.
    """
    import dataclasses

    from vidaccel import methods
    from vidaccel.eval.sizes import plan_site, typical_heads
    from vidaccel.layout import TokenLayout

    families = known_families()
    if family not in families:
        raise ValueError(f"unknown family {family!r}; choose {', '.join(families)}")
    heads = typical_heads(family) if heads is None else heads
    if heads < 1:
        raise ValueError(f"heads {heads} is not a number of attention heads of at least 1")
    layout = TokenLayout.parse(grid, text_before, text_after)
    method = methods.method(name, family, **chosen)
    if not method.static:
        static = [each for each, cls in methods.METHODS.items() if cls.static]
        raise ValueError(f"method {name!r} plans from a run's queries and keys; without a model: {', '.join(static)}")
    start = time.perf_counter()
    made = method.plan(None, None, None, plan_site(layout), {})
    seconds = time.perf_counter() - start
    mask = made.mask
    return {
        "method": name, "family": family, "options": dataclasses.asdict(method),  # type: ignore[call-overload]
        "grid": f"{layout.frames}x{layout.height}x{layout.width}", "text_before": text_before, "text_after": text_after,
        "tokens": layout.tokens, "heads": heads, **dataclasses.asdict(made.density(layout)),
        "patterns": mask.patterns if mask else 1, "ranges": len(mask.ranges) if mask else 0,
        "bytes": mask.nbytes if mask else 0, "seconds": seconds, "notes": list(made.notes),
    }  # fmt: skip


def known_families() -> list[str]:
    """Families with a pipeline of ours, and those whose sizes are known."""
    from vidaccel.eval.sizes import REAL_SIZES
    from vidaccel.pipelines import families

    return sorted({*families(), *(size.family for size in REAL_SIZES)})
