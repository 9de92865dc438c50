"""The models of an eval: known by name, digest and family before any is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vidaccel.eval.identity import digest, digest_pipeline
from vidaccel.methods import METHODS
from vidaccel.pipelines import experts, families, family_named, unsupported

SHOWN = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale")
"""Arguments that every record shows, as given or as the pipeline's own."""
FPS = 16.0


@dataclass(frozen=True)
class Source:
    """A model that an eval can load when its turn comes.

    Args:
        name: in records and tables.
        pipeline: class of the pipeline.
        transformer: name of its transformer's class; where no family of ours has that, only dense cells run.
        load: makes the pipeline, on its device.
        identify: tells its digest; see `vidaccel.eval.identity`.
        dtype, device: as torch names them, such as "float32" and "cpu".
        defaults: arguments of the call that it was made for; ``fps`` among them is the previews'.
        options: options of a method by the method's name and those given; for models with settings of their own.
    """

    name: str
    pipeline: Any
    transformer: str
    load: Callable[[], Any]
    identify: Callable[[], str]
    dtype: str
    device: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda method, given: given

    @classmethod
    def of(cls, pipe: Any, name: str | None = None) -> Source:
        """A pipeline that is loaded already.

        Raises:
            ValueError: it has no video transformer.
        """
        transformer = next(iter(experts(pipe).values()))
        dtype = str(transformer.dtype).removeprefix("torch.")
        return cls(name or type(pipe).__name__, type(pipe), type(transformer).__name__, lambda: pipe,
                   lambda: digest_pipeline(pipe), dtype, str(pipe.device))  # fmt: skip

    @property
    def fps(self) -> float:
        """Frames per second of the previews."""
        return float(self.defaults.get("fps", FPS))

    def call(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the pipeline's call: the model's own, overridden by `given`, and those that records show.

        Raises:
            ValueError: one that the pipeline does not take, or a first frame that it needs.
        """
        parameters = inspect.signature(self.pipeline.__call__).parameters
        own = {name: item for name, item in self.defaults.items() if name not in ("fps", "prompt")}
        shown = {name: parameters[name].default for name in SHOWN if name in parameters}
        values = {**shown, **own, **given}
        for name in values:
            if name not in parameters:
                raise ValueError(f"{self.pipeline.__name__} takes no {name}")
        image = parameters.get("image")
        if image is not None and image.default is inspect.Parameter.empty and "image" not in values:
            raise ValueError(f"{self.pipeline.__name__} needs a first frame: image, the path of one")
        return values

    def check_family(self) -> str:
        """The family, which sparse attention and caches need.

        Raises:
            ValueError: it has none; the message says why, or lists what is supported.
        """
        found = family_named(self.transformer)
        if found is None:
            why = unsupported(self.transformer)
            raise ValueError(f"{self.name}, a {self.pipeline.__name__}, runs dense only: {why}")
        return found.name

    def method_options(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """All options of a method on this model.

        Raises:
            ValueError: the model's family has no processor, or a bad value.
        """
        import dataclasses

        family = self.check_family()
        made = METHODS[name].for_family(families()[family].published, **self.options(name, given))
        return dataclasses.asdict(made)  # type: ignore[call-overload,no-any-return]


def source_at(path: str, name: str, **values: Any) -> Source:
    """A model in a folder or a repository of which only the index is read so far; `values` are a `Source`'s.

    Raises:
        ValueError: diffusers does not know its class.
    """
    import diffusers

    from vidaccel.miniature import model_index

    known = model_index(path).get("_class_name")
    pipeline = getattr(diffusers, str(known), None)
    if pipeline is None:
        raise ValueError(f"model {name!r} is a {known}, which this version of diffusers does not have")
    return Source(name, pipeline, identify=lambda: digest(path), **values)
