"""``vidaccel env`` and ``vidaccel ls``: what is here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vidaccel.cli.loading import DTYPES, usual_dtype
from vidaccel.cli.output import print_json, reserved_stdout
from vidaccel.cli.plan import Json


def env(json: Json = False) -> None:
    """Versions, devices, and which backends run here."""
    with reserved_stdout():
        values = environment()
    print_json(values) if json else _echo(values)


Matrix = Annotated[bool, typer.Option("--matrix", help="What was tested with which transformer class instead.")]


def ls(json: Json = False, matrix: Matrix = False) -> None:
    """Methods, compensations, cache policies, model families, backends, miniatures and shipped profiles."""
    with reserved_stdout():
        from vidaccel.pipelines import support

        values = support.recorded() if matrix else listing()
    if json:
        print_json(values)
    elif matrix:
        typer.echo(support.table(values))
    else:
        _echo(values)


def environment() -> dict[str, Any]:
    """Versions, hardware, git revision, and per device and backend why it cannot run, None if it can."""
    import torch

    from vidaccel.eval import env as here

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return {
        "versions": here.versions(),
        "device": here.device(),
        "gpus": {name: torch.cuda.get_device_name(name) for name in gpus},
        "backends": {name: _backends(name) for name in ("cpu", *gpus)},
        "git": here.git_revision(),
    }


def _backends(device: str) -> dict[str, Any]:
    """For each backend, whether it runs calls of the device's usual dtype (head dim 128), and why not."""
    import torch

    from vidaccel import kernels

    query = torch.empty(1, 1, 1, 128, device=device, dtype=getattr(torch, DTYPES[usual_dtype(device)]))
    found: dict[str, Any] = {}
    for name in kernels.BACKENDS:
        try:
            reason = kernels.backend(name).why_not(query)
        except ImportError as error:
            reason = f"cannot be imported: {error}"
        found[name] = {"available": reason is None, "reason": reason}
    return found


def listing() -> dict[str, Any]:
    """Names of everything that can be chosen, with what tells them apart."""
    import dataclasses

    from vidaccel import caching, compensation, kernels, methods, miniature, profile
    from vidaccel.caching import predictors
    from vidaccel.caching.cache import LIMITS
    from vidaccel.pipelines import families

    def options(cls: Any) -> list[str]:
        return [item.name for item in dataclasses.fields(cls)]

    return {
        "methods": {
            name: {"paper": cls.paper, "options": options(cls)} for name, cls in methods.METHODS.items()
        },
        "compensations": {
            name: {"paper": cls.paper, "options": options(cls)} for name, cls in compensation.COMPENSATIONS.items()
        },
        "caches": {
            name: {"paper": cls.paper, "options": options(cls)} for name, cls in caching.POLICIES.items()
        },
        "predictors": {
            name: {"paper": cls.paper, "options": options(cls)} for name, cls in predictors.PREDICTORS.items()
        },
        "cache_limits": list(LIMITS),
        "families": {name: {"transformers": list(each.transformers)} for name, each in families().items()},
        "backends": list(kernels.BACKENDS),
        "miniatures": [miniature.PREFIX + name for name in miniature.available()],
        "profiles": {name: {"models": list(each.models), "method": each.method}
                     for name, each in profile.shipped().items()},
    }  # fmt: skip


def _echo(values: dict[str, Any], depth: int = 0) -> None:
    for name, item in values.items():
        if isinstance(item, dict) and item:
            typer.echo(f"{'  ' * depth}{name}")
            _echo(item, depth + 1)
        else:
            typer.echo(f"{'  ' * depth}{name:<20} {_text(item)}")


def _text(item: Any) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{key} {_text(each)}" for key, each in item.items()) or "none"
    if isinstance(item, list):
        return ", ".join(map(_text, item)) or "none"
    return "none" if item is None else str(item)
