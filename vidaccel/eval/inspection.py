"""What attention does in one generation: maps, masks and kept mass of chosen heads, as the layers really had them."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect as signatures
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import vidaccel
from vidaccel.api import facts, set_aside
from vidaccel.asked import NONE
from vidaccel.calibration.probe import observed_dense
from vidaccel.eval import env
from vidaccel.eval.evidence import describe
from vidaccel.eval.inspected import SCALE, call_values
from vidaccel.eval.record import to_json
from vidaccel.eval.sources import SHOWN
from vidaccel.files import write_text
from vidaccel.pipelines import experts, family_for
from vidaccel.session import Session
from vidaccel.site import Observed, Observer

MOST_HEADS = 256
"""Heads that one inspection shows, over all its steps and layers: a record of 10 MB."""
NAME = "inspection.json"
ALL, DENSE = "all", "dense"
UNTOUCHED: dict[str, Any] = {"method": {"name": DENSE, "options": {}}, "schedule": None, "backend": None, "notes": []}
"""What a session would say of itself, where attention is left alone."""
OURS = ("prompt", "generator", "output_type", "callback_on_step_end")
"""Arguments of the pipeline's call that an inspection sets itself."""
Wanted = Collection[int] | str | None
"""Numbers counted from 0, "all", or None for the one in the middle."""
Progress = Callable[[str, int, int], None]
"""Called with what runs, denoising steps done and all of them."""


@dataclass(frozen=True)
class Inspection:
    """What was seen in one generation, JSON-ready; `vidaccel.report.inspection` makes a page of it.

    Args:
        kind: "inspection".
        created, git, vidaccel, device, versions: when and where it was made.
        seed, prompt, negative_prompt, model, settings: of the generation.
        method, schedule, backend, notes: of the session; where attention was left alone, the method "dense" and no
            schedule and backend.
        scale: how maps and masks are to be read.
        calls: one for each inspected layer at each inspected step, see `vidaccel.eval.inspected.call_values`.
    """

    kind: str
    created: str
    vidaccel: str
    git: str | None
    device: dict[str, Any]
    versions: dict[str, str | None]
    seed: int
    prompt: str
    negative_prompt: str | None
    model: dict[str, Any]
    settings: dict[str, Any]
    method: dict[str, Any]
    schedule: dict[str, Any] | None
    backend: str | None
    notes: list[str]
    scale: dict[str, Any]
    calls: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready values."""
        return dataclasses.asdict(self)

    def write(self, folder: str | os.PathLike[str], name: str = NAME) -> Path:
        """Write it into a folder, which is made if need be, whole or not at all.

        Raises:
            OSError: the folder cannot be made or written.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        return write_text(Path(folder) / name, to_json(self.to_dict()) + "\n")


def inspect(
    pipe: Any, prompt: str, *, enable: Mapping[str, Any] | None = None, steps: Wanted = None, layers: Wanted = None,
    heads: Wanted = ALL, seed: int = 0, generation_kwargs: Mapping[str, Any] | None = None, name: str | None = None,
    progress: Progress | None = None,
) -> Inspection:  # fmt: skip
    """Generate once and look into the attention of some heads; the clip would be the same without.

    Of guidance passes the first is seen, and of a batch the last row: the pass with the prompt. Of a pipeline that runs
    through its steps more than once, the first time counts. Nothing is decoded.

    Args:
        pipe: a diffusers video pipeline of a supported family; what is enabled on it comes back afterwards.
        enable: arguments of `vidaccel.enable`; None leaves every call dense. A cache is refused, and that of a profile
            left out: a step that is reused attends to nothing.
        steps, layers, heads: counted from 0; of a pipeline with two experts, layers and heads of each.
        seed: of the noise, drawn on the CPU.
        generation_kwargs: for the pipeline's call.
        name: of the model, in the record; by default the pipeline's class.
        progress: told of every step.

    Raises:
        ValueError: what cannot be inspected, before the generation; or calls that were not seen in it.
    """
    kwargs = dict(generation_kwargs or {})
    _check(pipe, kwargs, enable or {})
    modules = experts(pipe)
    models = [facts(module, family_for((enable or {}).get("family"), modules)) for module in modules.values()]
    total = int(_argument(pipe, kwargs, "num_inference_steps") or 0)
    watch = _Watch(
        _numbers("step", steps, total), _numbers("layer", layers, min(each.layers for each in models)),
        _numbers("head", heads, min(each.heads for each in models)),
    )  # fmt: skip
    with observing(pipe, watch, enable) as session:
        _generate(pipe, prompt, seed, kwargs, total, progress)
        said = UNTOUCHED if enable is None else session.summary().to_dict()
    watch.check()
    return Inspection(
        kind="inspection", vidaccel=vidaccel.__version__, **env.provenance(), seed=seed, prompt=prompt,
        negative_prompt=kwargs.get("negative_prompt"), model=describe(pipe, name or type(pipe).__name__),
        settings=_settings(pipe, kwargs), scale=dict(SCALE), **{each: said[each] for each in UNTOUCHED},
        calls=[watch.calls[place] for place in sorted(watch.calls)],
    )  # fmt: skip


@contextlib.contextmanager
def observing(pipe: Any, observer: Observer, enable: Mapping[str, Any] | None = None) -> Iterator[Session]:
    """A block in which `observer` sees every self-attention call of a pipeline; its outputs are bit for bit the same.

    Args:
        enable: arguments of `vidaccel.enable`; None leaves every call dense.

    Raises:
        ValueError: as of `vidaccel.enable`.
    """
    if enable is None:
        # Not "as planned": nothing but the observer was there.
        with observed_dense(pipe, lambda seen: observer(dataclasses.replace(seen, how=DENSE))) as session:
            yield session
        return
    with set_aside(pipe):
        # A profile's own cache would leave out steps, too.
        session = vidaccel.enable(pipe, **{**enable, "cache": NONE})
        session.observer = observer
        yield session


class _Watch:
    """Measures the first call of each inspected layer at each inspected step."""

    def __init__(self, steps: tuple[int, ...], layers: tuple[int, ...], heads: tuple[int, ...]) -> None:
        self.steps, self.layers, self.heads = steps, layers, heads
        self.calls: dict[tuple[int, str, int], dict[str, Any]] = {}
        asked = len(steps) * len(layers) * len(heads)
        if asked > MOST_HEADS:
            raise ValueError(
                f"{len(steps)} steps x {len(layers)} layers x {len(heads)} heads are {asked} maps, and one inspection "
                f"shows at most {MOST_HEADS}: name fewer steps, layers or heads"
            )

    def __call__(self, seen: Observed) -> None:
        site = seen.site
        place = (site.step, site.expert, site.layer)
        if site.step in self.steps and site.layer in self.layers and place not in self.calls:
            with torch.no_grad():
                self.calls[place] = call_values(seen, self.heads)

    def check(self) -> None:
        """Refuse a run in which something was not seen.

        Raises:
            ValueError: what.
        """
        seen = {(step, layer) for step, _, layer in self.calls}
        missing = [(step, layer) for step in self.steps for layer in self.layers if (step, layer) not in seen]
        if missing:
            raise ValueError(
                f"no self-attention was seen at step {missing[0][0]} in layer {missing[0][1]}: fewer steps were run, "
                "or the pipeline left the call to its stock processor"
            )


def _check(pipe: Any, kwargs: Mapping[str, Any], enable: Mapping[str, Any]) -> None:
    if enable.get("cache") not in (None, NONE):
        raise ValueError("an inspection takes no cache: a step that is reused attends to nothing")
    parameters = signatures.signature(pipe.__call__).parameters
    for name in kwargs:
        if name in OURS:
            raise ValueError(f"an inspection sets {name} itself; generation_kwargs may not")
        if name not in parameters:
            raise ValueError(f"{type(pipe).__name__} takes no {name}")


def _argument(pipe: Any, kwargs: Mapping[str, Any], name: str) -> Any:
    """An argument of the pipeline's call, as given or by default; None where it has no such."""
    found = signatures.signature(pipe.__call__).parameters.get(name)
    return kwargs.get(name, None if found is None or found.default is found.empty else found.default)


def _numbers(what: str, wanted: Wanted, count: int) -> tuple[int, ...]:
    """The numbers that are asked for, rising.

    Raises:
        ValueError: none, or one that there is not.
    """
    if wanted is None or isinstance(wanted, str):
        if wanted not in (None, ALL):
            raise ValueError(f"{what}s are numbers from 0 to {count - 1} or {ALL!r}, not {wanted!r}")
        return tuple(range(count)) if wanted == ALL else (count // 2,)
    wrong = [each for each in wanted if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < count]
    if wrong or not wanted:
        raise ValueError(f"{what} {wrong[0]!r} is not one of 0 to {count - 1}" if wrong else f"no {what} is named")
    return tuple(sorted(set(wanted)))


def _generate(
    pipe: Any, prompt: str, seed: int, kwargs: dict[str, Any], total: int, progress: Progress | None
) -> None:  # fmt: skip
    if progress is not None and "callback_on_step_end" in signatures.signature(pipe.__call__).parameters:

        def on_step_end(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            progress("generating", step + 1, total)
            return tensors

        kwargs = {**kwargs, "callback_on_step_end": on_step_end}
    noise = torch.Generator("cpu").manual_seed(seed)
    pipe(prompt=prompt, generator=noise, output_type="latent", **kwargs)


def _settings(pipe: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Size, frames, steps and guidance of the generation, and on what it ran."""
    dtype = str(next(iter(experts(pipe).values())).dtype).removeprefix("torch.")
    return {name: _argument(pipe, kwargs, name) for name in SHOWN} | {"dtype": dtype, "device": str(pipe.device)}
