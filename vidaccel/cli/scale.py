"""``vidaccel plan --gpus``: a step over several GPUs, and the way to share it that takes the least time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from vidaccel.cli import options

if TYPE_CHECKING:
    from vidaccel.eval.sizes import ModelSize
    from vidaccel.scale import Machine
    from vidaccel.scale.attention import Attention

DENSE = "dense"
MODEL, GPU, NETWORK, PER_NODE = "wan2.1-t2v-14b", "h100", "infiniband", 8
"""Where nothing else is given."""
HEADINGS = ("guidance", "ring", "ulysses", "step", "attention", "other", "exchange", "speed-up", "efficiency", "dense")


@dataclass(frozen=True)
class Asked:
    """What ``--gpus`` and the options beside it say; None where one was not given."""

    gpus: int
    model: str | None = None
    gpu: str | None = None
    interconnect: str | None = None
    network: str | None = None
    per_node: int | None = None
    assume: Sequence[str] = ()


def at_scale(
    method: str, attention: Callable[[ModelSize], Attention], asked: Asked, grid: str | None
) -> dict[str, Any]:  # fmt: skip
    """JSON-ready: every way to share a step of a model, the best one, and what was assumed.

    Args:
        method: its name.
        attention: of a model at its size.
        asked: GPUs and model.
        grid: video tokens, for another size than the model's own.

    Raises:
        ValueError: a model, machine or grid that is none, or GPUs that no way can use all of.
    """
    from vidaccel.scale.chosen import model_size

    size, machine = model_size(asked.model or MODEL, grid), _machine(asked)
    made = attention(size)
    return {"method": method, "density": made.density, **_shared(size, machine, made, asked.gpus),
            "machine": {"gpu": asked.gpu or GPU, **machine.to_dict()}, "assumptions": _assumed(machine)}  # fmt: skip


def _machine(asked: Asked) -> Machine:
    from vidaccel.scale import Assumed, Machine

    assumed = Assumed(**options.parse(asked.assume, Assumed, "a prediction"))
    per_node = PER_NODE if asked.per_node is None else asked.per_node
    return Machine.of(asked.gpu or GPU, asked.interconnect, asked.network or NETWORK, per_node, assumed)


def _shared(size: ModelSize, machine: Machine, attention: Attention, gpus: int) -> dict[str, Any]:
    """Rows for all degrees that take so many GPUs, least time first."""
    from vidaccel.scale import Degrees, Dense, choices, predict

    able, refused = choices(size, gpus, attention.no_ring)
    if not able:
        reasons = "; ".join(f"{degrees}: {reason}" for degrees, reason in refused)
        raise ValueError(f"{size.model} cannot be shared by {gpus} GPUs ({reasons})")
    one = predict(size, Degrees(), machine, attention)
    rows = [
        predict(size, degrees, machine, attention).to_dict(size, one.seconds)
        | {"dense_seconds": predict(size, degrees, machine, Dense()).seconds}
        for degrees in able
    ]
    rows.sort(key=lambda row: row["seconds"])
    return {
        "model": size.model, "tokens": size.layout.tokens, "heads": size.heads, "passes": size.passes, "gpus": gpus,
        "one_gpu_seconds": one.seconds, "best": rows[0], "config": _config(rows[0]), "degrees": rows,
        "fewer": _fewer(size, machine, attention, gpus, rows[0]["seconds"]),
        "refused": [{"degrees": str(degrees), "reason": reason} for degrees, reason in refused],
    }  # fmt: skip


def _fewer(
    size: ModelSize, machine: Machine, attention: Attention, gpus: int, seconds: float
) -> dict[str, Any] | None:  # fmt: skip
    """The least time of fewer GPUs, where that is less: many numbers of GPUs do not divide heads and tokens well."""
    from vidaccel.scale import choices, predict

    found = [
        (predict(size, degrees, machine, attention).seconds, degrees)
        for count in range(-(-gpus // 2), gpus)
        for degrees in choices(size, count, attention.no_ring)[0]
    ]
    least, degrees = min(found, key=lambda each: each[0], default=(seconds, None))
    if degrees is None or least >= seconds:
        return None
    return {"gpus": degrees.gpus, "seconds": least, **vars(degrees)}


def _config(row: dict[str, Any]) -> str | None:
    """What splits a pass so, as Python for diffusers; None where a pass has a GPU to itself."""
    if row["ring"] * row["ulysses"] == 1:
        return None
    words = [f"{name}_degree={row[name]}" for name in ("ring", "ulysses") if row[name] > 1]
    words += [f"{row['needs']}=True"] * bool(row["needs"]) + ["mesh=mesh"] * (row["guidance"] > 1)
    return f"ContextParallelConfig({', '.join(words)})"


def _assumed(machine: Machine) -> list[str]:
    """What the seconds rest on, in words."""
    reached = machine.assumed
    inside, outside = machine.link, machine.network
    return [
        f"{machine.tflops:g} TFLOP/s a GPU, of which dense attention reaches {reached.attention:.0%} and all other "
        f"layers {reached.linear:.0%}",
        "sparse attention costs what the shipped cost model of GPUs says, which is an estimate",
        f"{inside.name} of {inside.gigabytes:g} GB/s a GPU and direction within a node of {machine.per_node} "
        f"({inside.source}), {outside.name} of {outside.gigabytes:g} between nodes ({outside.source}); large exchanges "
        f"reach {reached.bandwidth:.0%}, and each takes {reached.latency_us:g} us before that",
        "no exchange overlaps with computing" if not reached.overlap else
        f"{reached.overlap:.0%} of a ring's hops may hide behind attention, other exchanges never",
        "a step in which every layer is sparse; planning, text encoders, VAE and what caches save are not in it",
        "bf16; weights fit on every GPU",
    ]  # fmt: skip


def show(values: dict[str, Any]) -> None:
    """The rows as a table, the best of them, and the assumptions."""
    machine = f"{values['gpus']} x {values['machine']['gpu']}"
    what = f"{values['method']} at density {values['density']:.2f}"
    typer.echo(f"{values['model']}, {values['tokens']:,} tokens, {what}, {machine}: seconds of a step")
    typer.echo("  ".join(f"{heading:>10}" for heading in HEADINGS))
    for row in values["degrees"]:
        typer.echo("  ".join(f"{cell:>10}" for cell in _cells(row)) + (f"  {row['needs']}" if row["needs"] else ""))
    for each in values["refused"]:
        typer.echo(f"not {each['degrees']}: {each['reason']}")
    best, one = values["best"], values["one_gpu_seconds"]
    mesh = f"guidance, ring, ulysses of {best['guidance']}, {best['ring']}, {best['ulysses']}"
    groups = f"vidaccel.guidance_parallel(pipe, mesh) on a mesh {mesh}, " if best["guidance"] > 1 else ""
    typer.echo(f"best: {best['seconds']:.3g} s ({one:.3g} s on one GPU): {groups}{values['config'] or 'no split'}")
    if (fewer := values["fewer"]) is not None:
        ways = f"guidance {fewer['guidance']} x ring {fewer['ring']} x ulysses {fewer['ulysses']}"
        typer.echo(f"fewer are faster: {fewer['gpus']} GPUs as {ways} take {fewer['seconds']:.3g} s")
    if best["imbalance_plain"] > best["imbalance"] * 1.005:
        typer.echo(f"heads are dealt by cost: attention waits {best['imbalance'] - 1:.1%} for the costliest process, "
                   f"{best['imbalance_plain'] - 1:.1%} if they were not")  # fmt: skip
    typer.echo("\n".join(["assumed:", *(f"- {line}" for line in values["assumptions"])]))


def _cells(row: dict[str, Any]) -> list[str]:
    moved = row["exchange"] + row["ring_exchange"] + row["gather"]
    seconds = [f"{each:.3g}" for each in (row["seconds"], row["attention"], row["linear"], moved)]
    shares = [f"{row['speedup']:.2f}x", f"{row['efficiency']:.0%}", f"{row['dense_seconds']:.3g}"]
    return [str(row["guidance"]), str(row["ring"]), str(row["ulysses"]), *seconds, *shares]
