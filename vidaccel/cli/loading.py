"""Load what ``--model`` names, refusing it before its weights are read where vidaccel could not use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidaccel.session import Session

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

FPS = 16.0
"""Frames per second of a video whose model does not say; Wan's."""
BLOCK = 16
"""Tile size for a miniature's 1,500 tokens: about 95 tiles a row, as many as real models have of 128 tokens or more."""


@dataclass(frozen=True)
class Model:
    """A video model of which nothing but the index is read yet.

    Args:
        name: as given by the user.
        path: a folder or repository id for `from_pretrained`.
        family: name of its transformer's family; None where none of ours has it, and it can only run dense.
        pipeline, transformer: names of its classes.
    """

    name: str
    path: str
    family: str | None
    pipeline: str
    transformer: str

    @property
    def is_miniature(self) -> bool:
        """Whether it was named as one."""
        from vidaccel import miniature

        return self.name.startswith(miniature.PREFIX)

    def defaults(self) -> dict[str, Any]:
        """Arguments of the call that a miniature was made for; none of other models."""
        from vidaccel import miniature

        return miniature.generation_defaults(self.name.removeprefix(miniature.PREFIX)) if self.is_miniature else {}

    def call(self, given: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the pipeline's call: those that are given and not None, over the model's own."""
        own = {name: item for name, item in self.defaults().items() if name != "fps"}
        return own | {name: item for name, item in given.items() if item is not None}

    def supported_family(self) -> str:
        """Its family, for sparse attention.

        Raises:
            ValueError: it has none; the message says why, or lists what is supported.
        """
        from vidaccel.pipelines import unsupported

        if self.family is not None:
            return self.family
        raise ValueError(f"sparse attention cannot run in model {self.name!r}, a {self.pipeline}, which runs with "
                         f"--method dense alone: {unsupported(self.transformer)}")  # fmt: skip

    def load(self, dtype: str, device: str) -> Any:
        """The pipeline, on its device.

        Raises:
            ValueError: it cannot be read.
        """
        import torch

        from vidaccel import miniature

        return miniature.load_pipeline(self.path, getattr(torch, dtype)).to(device)


def identify(name: str) -> Model:
    """The model behind ``--model``, of a family of ours or not.

    Raises:
        ValueError: there is none, or it has no transformer.
    """
    from vidaccel import miniature
    from vidaccel.pipelines import family_named

    path = miniature.resolve_model(name)
    index = miniature.model_index(path)
    listed = index.get("transformer")
    transformer = listed[1] if isinstance(listed, (list, tuple)) and len(listed) > 1 else None
    if not transformer:
        raise ValueError(f"model {name!r} is a {index.get('_class_name')} with no transformer: no video pipeline")
    found = family_named(str(transformer))
    return Model(name, path, found.name if found else None, str(index.get("_class_name")), str(transformer))


def ready(known: Model, enable_kwargs: dict[str, Any] | None, dtype: str, device: str) -> tuple[Any, Session | None]:
    """The pipeline of a model, loaded, and what is enabled on it; None where nothing is.

    Raises:
        ValueError: it cannot be read, or cannot run so.
    """
    import vidaccel

    pipe = known.load(dtype, device)
    return pipe, None if enable_kwargs is None else vidaccel.enable(pipe, **enable_kwargs)


def check_fps(fps: float | None) -> None:
    """Refuse a rate that no video has.

    Raises:
        ValueError: it is none.
    """
    if fps is not None and not 0 < fps < 1000:
        raise ValueError(f"--fps {fps} is not a number of frames per second between 0 and 1000")


def dtype_and_device(dtype: str | None, device: str | None) -> tuple[str, str]:
    """Names of the dtype and device to use, by default the GPU, if there is one, and its usual dtype.

    Raises:
        ValueError: no such dtype, or a device that is not here.
    """
    import torch

    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return DTYPES[dtype or usual_dtype(device)], device


def usual_dtype(device: str) -> str:
    """bf16 on a GPU, fp32 on a CPU, where half-precision convolutions are tens of times slower."""
    return "fp32" if device.startswith("cpu") else "bf16"


def miniature_options(model: Model, method: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """Options of a method on so few tokens: those of the miniature's own profile if it is for it, then `chosen`."""
    import dataclasses

    from vidaccel import profile
    from vidaccel.methods import METHODS

    found = profile.find(model.path)
    if found is not None and found.method == method and "profile" not in chosen:
        own = found.options if found.heads is None else {"profile": model.name, **found.options}
        return METHODS[method].merged(own, chosen)
    fields = {item.name for item in dataclasses.fields(METHODS[method])}  # type: ignore[arg-type]
    return {"block": BLOCK, **chosen} if "block" in fields else chosen
