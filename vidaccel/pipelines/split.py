"""Parts of plans for diffusers' context parallelism: what is split and gathered, along which dimension."""

from __future__ import annotations

from typing import Any


def cut(dim: int, dims: int, after: bool = False) -> Any:
    """A tensor of `dims` dimensions split along one: an argument of a module, or its output with `after`.

    Raises:
        ValueError: diffusers has no context parallelism.
    """
    return _parts().ContextParallelInput(split_dim=dim, expected_dims=dims, split_output=after)


def whole(dim: int, dims: int) -> Any:
    """A module's output, gathered along one of its `dims` dimensions.

    Raises:
        ValueError: diffusers has no context parallelism.
    """
    return _parts().ContextParallelOutput(gather_dim=dim, expected_dims=dims)


def rotary(dim: int, dims: int) -> dict[int, Any]:
    """Both outputs of a module of rotary embeddings, split."""
    return {0: cut(dim, dims, after=True), 1: cut(dim, dims, after=True)}


def shipped(transformer: Any) -> dict[str, Any]:
    """The plan that diffusers has for a class.

    Raises:
        ValueError: it has none.
    """
    _parts()
    plan = getattr(type(transformer), "_cp_plan", None)
    if plan is None:
        raise ValueError(f"this diffusers has no plan for splitting {type(transformer).__name__} over processes: use a "
                         "newer one")  # fmt: skip
    return dict(plan)


def _parts() -> Any:
    try:
        from diffusers.models import _modeling_parallel
    except ImportError:
        raise ValueError("this diffusers cannot split one clip over processes: it has no ContextParallelConfig; use a "
                         "newer one, as of 0.36") from None  # fmt: skip
    return _modeling_parallel
