"""The cells of an eval: the product of its axes, with the baselines that follow each, none of them run yet."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import vidaccel
from vidaccel.compensation import COMPENSATIONS
from vidaccel.eval import env
from vidaccel.eval.caches import NONE, CacheValues, text_of
from vidaccel.eval.first_frame import IMAGE, identify_image
from vidaccel.eval.identity import key_of
from vidaccel.eval.runner import LATENT
from vidaccel.eval.settings import DENSE, FEWER_STEPS, QUICK_PROMPTS, RANDOM, STEPS_ALONE, Choice, Settings
from vidaccel.eval.sources import Source

FORMAT = 1
WORD = 28
"""Letters of the prompt in a folder's name."""
SHORT = 18
"""Letters of the prompt in a line about progress."""
CACHE_WORD = 40
"""Letters of the cache in a folder's name."""


@dataclass(frozen=True)
class Cell:
    """One generation to measure against its dense reference; an independent unit of work.

    Args:
        source: the model.
        reference: all that the dense reference depends on: model's digest, prompt, seed, call, dtype, device, versions.
        call: arguments of the pipeline's call, apart from the prompt.
        method: its name, or "dense", or a baseline's.
        options: all options of the method on this model; a baseline's are known once its parent has run.
        given: those of them that were asked for, for the label.
        schedule: fields of a `Schedule`; None for the family's.
        density: requested; None for the method's own.
        cache: "none", or as of `Cache.to_dict`.
        backend: of the sparse attention.
        precision: of the sparse attention; None for the model's own type.
        repeats: timed runs.
        parent: the cell that a baseline is compared with.
        compensation: of what is skipped, its name and all its options; None for none.
        image: where the first frame lies, whose digest is in `call`; None without one.
        breakdown: whether its record is to tell where the time goes.
        lossless: whether its video is to be kept without loss, too.
    """

    source: Source = field(repr=False)
    reference: dict[str, Any]
    call: dict[str, Any]
    method: str
    options: dict[str, Any]
    given: dict[str, Any]
    schedule: dict[str, Any] | None
    density: float | None
    cache: CacheValues
    backend: str
    precision: str | None
    repeats: int
    parent: Cell | None = None
    compensation: dict[str, Any] | None = None
    # No result depends on the last three.
    image: str | None = None
    breakdown: bool = False
    lossless: bool = False

    @property
    def prompt(self) -> str:
        """Of the generation."""
        return str(self.reference["prompt"])

    @property
    def seed(self) -> int:
        """Of the noise."""
        return int(self.reference["seed"])

    @property
    def label(self) -> str:
        """What its row of a table is called; the density has a column of its own."""
        if self.parent is not None:
            return f"{self.method} for {self.parent.label}"
        shown = {**self.given, **(self.schedule or {})}
        shown.pop("density", None)
        return self.method + _in_brackets(shown) + self._compensated(with_options=True) + self._cached()

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """All that its result depends on, JSON-ready: a cell is done where a folder with this very config is whole."""
        named = {"format": FORMAT, "vidaccel": vidaccel.__version__, "name": self.source.name}
        return {**named, "reference": self.reference, **self._setting()}

    @functools.cached_property
    def key(self) -> str:
        """Hash of `config`."""
        return key_of(self.config)

    @functools.cached_property
    def row(self) -> str:
        """Hash of all but prompt and seed: cells of one row may be averaged."""
        shared = {name: item for name, item in self.reference.items() if name not in ("prompt", "seed")}
        return key_of({**self.config, "reference": shared})

    @functools.cached_property
    def name(self) -> str:
        """Of its folder: for people, with the start of `key`."""
        model = self.source.name.split(":")[-1].split("/")[-1]
        parts = [model, *self._words(), _slug(self.prompt)[:WORD].strip("-"), f"s{self.seed}", self.key[:8]]
        return "-".join(filter(None, (re.sub(r"[^\w.-]+", "-", part) for part in parts)))

    @property
    def title(self) -> str:
        """What a line about its progress calls it."""
        prompt = self.prompt if len(self.prompt) <= SHORT else self.prompt[: SHORT - 3].rstrip() + "..."
        return f"{' '.join(filter(None, self._words()))}, seed {self.seed}, {prompt}"

    def _words(self) -> tuple[str, str]:
        """Method and requested density, of a baseline its parent's."""
        density = (self.parent or self).density
        of = self.parent or self
        more = of._compensated() + of._cached()[:CACHE_WORD].rstrip("(., ")
        name = self.method if self.parent is None else f"{self.method}-for-{of.method}"
        return name + more, "" if density is None else f"{density:g}"

    def _setting(self) -> dict[str, Any]:
        names = ("method", "options", "schedule", "density", "cache", "backend", "precision", "repeats")
        of = None if self.parent is None else self.parent._setting()
        # Only where there is one: cells without keep the hash that they had before there were any.
        added = {} if self.compensation is None else {"compensation": self.compensation}
        return {name: getattr(self, name) for name in names} | {"of": of} | added

    def _cached(self) -> str:
        """What a method's name is followed by; with "dense", the cache is all that is enabled."""
        return "" if self.cache == NONE else f"+{text_of(self.cache)}"

    def _compensated(self, with_options: bool = False) -> str:
        """What a method's name is followed by, with the options that are not the usual ones."""
        if self.compensation is None:
            return ""
        name, options = self.compensation["name"], self.compensation["options"]
        usual = COMPENSATIONS[name]().to_dict()["options"]
        changed = {option: item for option, item in options.items() if item != usual[option]}
        return f"+{name}" + (_in_brackets(changed) if with_options else "")


def plan_cells(sources: Sequence[Source], settings: Settings) -> list[Cell]:
    """All cells in the order in which they run: a reference's cells together, a baseline after its parent.

    Raises:
        ValueError: what a source or method refuses; nothing has been loaded.
    """
    if not settings.prompt:
        raise ValueError("an eval needs at least one prompt")
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ValueError(f"models of an eval have names of their own, not {', '.join(names)}")
    # Refused before any digest, which reads whole files.
    columns = [list(_columns(source, settings)) for source in sources]
    given = settings.call() | ({} if settings.image is None else {IMAGE: identify_image(settings.image)})
    calls = [source.call(given) for source in sources]
    prompts = settings.prompt[:QUICK_PROMPTS] if settings.quick else settings.prompt
    cells = []
    for source, call, choices in zip(sources, calls, columns, strict=True):
        shared = _shared(source, call, settings)
        for prompt in prompts:
            for seed in settings.seed:
                reference = {**shared, "prompt": prompt, "seed": seed}
                first = prompt == prompts[0] and seed == settings.seed[0]
                for choice in choices:
                    split = settings.breakdown and first and (choice["method"] != DENSE or choice["cache"] != NONE)
                    cell = Cell(source, reference, call, backend=settings.backend, precision=settings.precision,
                                repeats=settings.repeats, image=settings.image, breakdown=split,
                                lossless=settings.lossless, **choice)  # fmt: skip
                    cells += [cell, *_baselines(cell, settings)]
    return cells


def _columns(source: Source, settings: Settings) -> Iterator[dict[str, Any]]:
    """What the method, density and cache axes say of a cell."""
    dense: dict[str, Any] = {"method": DENSE, "options": {}, "given": {}, "schedule": None, "density": None}
    columns = list(_methods(source, settings, dense))
    if DENSE in settings.baselines and not (dense in columns and NONE in settings.cache):
        yield {**dense, "cache": NONE}
    for cache in settings.cache:
        if cache != NONE:
            source.check_family()
        yield from ({**each, "cache": cache} for each in columns)


def _methods(source: Source, settings: Settings, dense: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the method and density axes say of a cell."""
    for choice in settings.method:
        if choice.name == DENSE:
            yield dense
            continue
        made_up = settings.compensation if choice.compensation is None else choice.compensation
        for density in (settings.density or (None,)) if choice.crosses() else (None,):
            given = choice.options if density is None else {**choice.options, "density": density}
            yield {"method": choice.name, "options": source.method_options(choice.name, given), "given": given,
                   "schedule": settings.schedule if choice.schedule is None else choice.schedule,
                   "density": given.get("density"), "compensation": made_up}  # fmt: skip


def _baselines(cell: Cell, settings: Settings) -> Iterator[Cell]:
    cached = cell.cache != NONE
    kinds = {**dict.fromkeys(STEPS_ALONE, cached), FEWER_STEPS: cached or cell.method != DENSE,
             RANDOM: cell.method not in (DENSE, RANDOM)}  # fmt: skip
    for kind, fits in kinds.items():
        if fits and kind in settings.baselines:
            # Random blocks take the place of the method's and leave the rest as it is.
            kept = {"schedule": cell.schedule, "cache": cell.cache} if kind == RANDOM else {"schedule": None,
                                                                                         "cache": NONE}  # fmt: skip
            yield dataclasses.replace(cell, method=kind, options={}, given={}, density=None, parent=cell,
                                      compensation=None, breakdown=False, **kept)  # fmt: skip


def _shared(source: Source, call: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """What all references of one model have in common."""
    here, versions = env.device(), env.versions()
    device = {"kind": source.device.split(":")[0]}
    device |= {"name": here["gpu"]} if device["kind"] == "cuda" else {"name": here["name"], "threads": here["threads"]}
    return {
        "format": FORMAT, "model": source.identify(), "call": call, "output": LATENT if settings.quick else "np",
        "dtype": source.dtype, "device": device,
        "versions": {name: versions[name] for name in ("torch", "diffusers", "transformers")},
    }  # fmt: skip


def random_options(parent: Cell, video_density: float) -> dict[str, Any]:
    """Options of the method "random" that match a cell which realised `video_density`: its block size, too.

    Each seed of the noise draws blocks of its own, so that a mean over seeds is one over draws.
    """
    block = parent.options.get("block")
    return {"density": video_density, "seed": parent.seed} | ({"block": block} if isinstance(block, int) else {})


def _in_brackets(options: dict[str, Any]) -> str:
    return f"({', '.join(f'{name}={item}' for name, item in options.items())})" if options else ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())


__all__ = ["Cell", "Choice", "plan_cells", "random_options"]
