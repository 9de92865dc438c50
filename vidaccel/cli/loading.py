"""Load what ``--model`` names, refusing it before its weights are read where vidaccel could not use it."""

from __future__ import annotations

from typing import Any

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def load(model: str, dtype: str | None, device: str | None) -> tuple[Any, dict[str, Any]]:
    """The pipeline on its device, and a miniature's defaults for the call.

    Raises:
        ValueError: a model, dtype or device that is none, or a pipeline that is not supported.
    """
    import torch

    from vidaccel import miniature

    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    path = miniature.resolve_model(model)
    _check_supported(model, miniature.model_index(path))
    pipe = miniature.load_pipeline(path, getattr(torch, DTYPES[dtype]) if dtype else usual_dtype(device)).to(device)
    is_miniature = model.startswith(miniature.PREFIX)
    return pipe, miniature.generation_defaults(model.removeprefix(miniature.PREFIX)) if is_miniature else {}


def usual_dtype(device: str) -> Any:
    """bf16 on a GPU, fp32 on a CPU, where half-precision convolutions are tens of times slower."""
    import torch

    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


def _check_supported(model: str, index: dict[str, Any]) -> None:
    """Whether the pipeline that a model's index describes has a transformer of a family of ours."""
    from vidaccel.pipelines import families

    supported = [name for family in families().values() for name in family.transformers]
    listed = index.get("transformer")
    transformer = listed[1] if isinstance(listed, list) and len(listed) > 1 else None
    if transformer not in supported:
        has = f"the transformer {transformer}" if transformer else "no transformer"
        raise ValueError(f"model {model!r} is a {index.get('_class_name')} with {has}; vidaccel supports pipelines "
                         f"with {', '.join(supported)}")
