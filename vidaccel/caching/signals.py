"""What a policy may look at before a call's blocks run, read from the model when it is asked for."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vidaccel.site import Ranks


class Model(Protocol):
    """What is asked of a model family; `vidaccel.pipelines.Family` is such."""

    @property
    def stacks(self) -> tuple[str, ...]:
        """See `Family.stacks`."""

    @property
    def cacheable(self) -> bool:
        """See `Family.cacheable`."""

    @property
    def streams(self) -> tuple[tuple[str, int], ...]:
        """See `Family.streams`."""

    @property
    def predictions(self) -> int:
        """See `Family.predictions`."""

    @property
    def batched_guidance(self) -> bool:
        """See `Family.batched_guidance`."""

    def blocks(self, transformer: nn.Module) -> list[nn.Module]:
        """See `Family.blocks`."""

    def timestep(self, call: Any) -> Tensor:
        """See `Family.timestep`."""

    def latents(self, transformer: nn.Module, call: Any) -> Tensor:
        """See `Family.latents`."""

    def time_embedding(self, transformer: nn.Module, timesteps: Tensor) -> Tensor:
        """See `Family.time_embedding`."""

    def modulated(self, block: nn.Module, call: Any) -> Tensor:
        """See `Family.modulated`."""


def twice(states: Tensor) -> bool:
    """Whether a batch is two equal halves: one clip for both guidance passes. Waits for a GPU."""
    half = len(states) // 2
    return len(states) == 2 * half and torch.equal(states[:half], states[half:])


class Seen:
    """The signals of one forward; see `vidaccel.caching.base.Signals`.

    Args:
        rows: where the batch rows that decide begin, as a share of the batch.
        every: the processes that compute this clip together; None for this one alone.
    """

    def __init__(
        self, model: Model, transformer: nn.Module, call: Any, rows: float, every: Ranks | None = None
    ) -> None:
        self._model, self._transformer, self._call, self._rows = model, transformer, call, rows
        self._every = every
        self._first: tuple[nn.Module, Any] | None = None
        self._entered: Tensor | None = None
        self._second: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the forward's work happens."""
        states: Tensor = self._call.get("hidden_states", 0)
        return states.device

    def block_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments of a block's call, in the form of the forward's."""
        return type(self._call)(args, kwargs)

    def first(self, block: nn.Module, call: Any, streams: list[Tensor]) -> None:
        """Take note of the first block's call, and of its streams as the block gets them: of this process's tokens."""
        self._first, self._entered = (block, call), streams[0]

    def entering(self, streams: list[Tensor]) -> None:
        """Take note of what enters the first segment."""
        self._second = streams[0]

    def rows(self, states: Tensor) -> Tensor:
        """Of a batch, the rows that decide."""
        return states[int(len(states) * self._rows) :]

    def all_latents(self) -> Tensor:
        """Of every batch row; see `latents`."""
        return self._model.latents(self._transformer, self._call)

    def latents(self) -> Tensor:
        return self.rows(self.all_latents())

    def time_embedding(self, timesteps: tuple[float, ...]) -> Tensor:
        states: Tensor = self._call.get("hidden_states", 0)
        values = torch.tensor(timesteps, dtype=torch.float32, device=states.device)
        return self._model.time_embedding(self._transformer, values)

    def modulated(self) -> Tensor:
        assert self._first is not None
        return self.rows(self._model.modulated(*self._first))

    def first_residual(self) -> Tensor:
        assert self._entered is not None and self._second is not None
        return self.rows(self._second - self._entered)

    def mean(self, values: Tensor) -> Tensor:
        if self._every is None:
            return values.mean()
        # Processes may have different numbers of tokens: each one's mean counts by its elements.
        count = values.new_full((), values.numel(), dtype=torch.float32)
        total, elements = self._every.mean(torch.stack([values.mean(dtype=torch.float32) * count, count]))
        whole: Tensor = (total / elements).to(values.dtype)
        return whole

    def agreed(self, values: Tensor) -> Tensor:
        return values if self._every is None else self._every.mean(values).to(values.dtype)
