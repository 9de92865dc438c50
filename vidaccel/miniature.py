"""Load pipelines by name, folder or repository; the miniatures come from the distribution `vidaccel-miniatures`."""

from __future__ import annotations

import importlib
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = "miniature:"
"""Before a miniature's name where a model is asked for: ``miniature:wan``."""
INDEX = "model_index.json"


def miniatures() -> ModuleType:
    """The package that holds the miniatures.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("vidaccel_miniatures")
    except ModuleNotFoundError as error:
        if error.name != "vidaccel_miniatures":
            raise
        raise ValueError("the miniature models are not installed: pip install 'vidaccel[demo]'") from error


def available() -> list[str]:
    """Names of the installed miniatures; none where their package is missing."""
    try:
        return sorted(miniatures().available())
    except ValueError:
        return []


def miniature_path(name: str) -> Path:
    """The folder of a miniature.

    Raises:
        ValueError: no such miniature, or none installed.
    """
    names = sorted(miniatures().available())
    if name not in names:
        raise ValueError(f"no miniature {name!r}; choose {', '.join(names) or 'none, as this build holds none'}")
    return Path(miniatures().path(name))


def generation_defaults(name: str) -> dict[str, Any]:
    """Arguments for the pipeline's call that the miniature was made for, such as its size and number of frames."""
    return dict(miniatures().generation_defaults(name))


def load_miniature(name: str = "wan", *, torch_dtype: Any = None) -> Any:
    """A trained miniature as a diffusers pipeline, on the CPU and without a network.

    `generation_defaults` has what its call should be given; without them "hunyuanvideo" makes clips of NaN.

    Args:
        name: such as "wan".
        torch_dtype: fp32 by default: fp16 convolutions are tens of times slower on a CPU.

    Raises:
        ValueError: no such miniature, or `vidaccel-miniatures` is not installed.
    """
    import torch

    return load_pipeline(str(miniature_path(name)), torch.float32 if torch_dtype is None else torch_dtype)


def resolve_model(model: str) -> str:
    """What `from_pretrained` takes for a miniature's name, a folder or a repository id.

    Raises:
        ValueError: none of the three; nothing is downloaded to find out.
    """
    if model.startswith(PREFIX):
        return str(miniature_path(model.removeprefix(PREFIX)))
    path = Path(model).expanduser()
    if model and path.is_dir():
        if not (path / INDEX).is_file():
            raise ValueError(f"folder {model!r} is not a diffusers pipeline: it has no {INDEX}")
        return str(path)
    if (model and path.exists()) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        raise ValueError(
            f"model {model!r} is neither a pipeline's folder nor a repository id (owner/name) nor a "
            f"miniature ({PREFIX}NAME)"
        )
    return model


def model_index(model: str) -> dict[str, Any]:
    """A pipeline's index, which names the classes of its parts; of a repository, nothing else is downloaded.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    from diffusers import DiffusionPipeline

    try:
        return dict(DiffusionPipeline.load_config(model, local_files_only=Path(model).is_dir()))
    except OSError as error:
        raise ValueError(f"model {model!r} cannot be read: {' '.join(str(error).split())}") from error


def load_pipeline(model: str, dtype: Any) -> Any:
    """A diffusers pipeline in one dtype; Wan's VAE stays in fp32, as its authors run it.

    Raises:
        ValueError: the model cannot be found or read.
    """
    import torch
    from diffusers import DiffusionPipeline

    wan_vae = "AutoencoderKLWan" in (model_index(model).get("vae") or ())
    dtypes = {"vae": torch.float32, "default": dtype} if wan_vae and dtype != torch.float32 else dtype
    with warnings.catch_warnings():
        # diffusers 0.35 knows only this name, 0.42 warns about it.
        warnings.filterwarnings("ignore", message=".*torch_dtype.*", category=FutureWarning)
        try:
            return DiffusionPipeline.from_pretrained(model, torch_dtype=dtypes, local_files_only=Path(model).is_dir())
        except OSError as error:
            raise ValueError(f"model {model!r} cannot be loaded: {' '.join(str(error).split())}") from error
