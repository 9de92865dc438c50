"""What the session needs to know of a model family."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidaccel.kernels import op
from vidaccel.layout import TokenLayout
from vidaccel.schedule import Schedule


@dataclass(frozen=True)
class Call:
    """The arguments of one transformer forward, by name where they were named."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def get(self, name: str, position: int) -> Any:
        """The argument called `name`, or standing at `position`.

        Raises:
            ValueError: the call has neither.
        """
        if name in self.kwargs:
            return self.kwargs[name]
        if position < len(self.args):
            return self.args[position]
        raise ValueError(f"the transformer was called without {name}")


class Mode(Enum):
    """How a patched layer attends in this transformer call."""

    DENSE = "dense"
    STATIC = "static"
    """By a plan that is known beforehand."""
    BY_HANDLE = "by handle"
    """As the session decides when the layer runs."""


class Processor(ABC):
    """A replacement attention processor: hands query, key and value to the session, and the rest to the stock one.

    A plain object that holds no tensor of a device, so that nothing of it is saved, moved or hooked.
    """

    def __init__(self, inner: Any, handle: Tensor) -> None:
        self.inner = inner
        self.handle = handle
        self.mode = Mode.BY_HANDLE
        self.backend = ""
        self.plan: op.Arguments | None = None
        """What `Mode.STATIC` computes, and by which backend."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        """Attention as the session decided for this transformer call, or decides now.

        Args:
            query, key, value: ``[batch, tokens, heads, head_dim]``.
            key_lengths: int ``[batch]``, valid keys of each row, where the sequence ends in padding.
        """
        if self.mode is Mode.DENSE:
            return self.dense(query, key, value, key_lengths)
        if self.mode is Mode.STATIC and self.plan is not None:
            sparse: Tensor = op.block_sparse(query, key, value, key_lengths, self.backend, *self.plan)
            return sparse
        out: Tensor = op.attention(query, key, value, self.handle, key_lengths)
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A copy of a model is not enabled: it gets a copy of what was there.
        return copy.deepcopy(self.inner, memo)

    @property
    def _attention_backend(self) -> Any:
        return getattr(self.inner, "_attention_backend", None)

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.inner._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return getattr(self.inner, "_parallel_config", None)

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        if config is not None:
            raise ValueError(
                "vidaccel does not split one clip over devices yet: call disable_sparse_attention() before "
                "enable_parallelism()"
            )
        self.inner._parallel_config = config

    @abstractmethod
    def dense(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        """Attention exactly as the stock processor computes it; `key_lengths` as in `attend`."""


class Family(ABC):
    """A model family: which classes it has, where their self-attention is and how to read their inputs."""

    name: ClassVar[str]
    transformers: ClassVar[tuple[str, ...]]
    """Class names of the transformers."""
    like: ClassVar[str | None] = None
    """The family that it is a descendant of, whose published options of methods count for it, too."""
    processor: ClassVar[type[Processor]]
    branches: ClassVar[tuple[str, ...]] = ("cond", "uncond")
    """The guidance passes of a step, in the order in which the pipelines run them."""
    timestep_position: ClassVar[int] = 1
    """Of the timestep among the arguments of the transformer's forward."""
    timesteps_rise: ClassVar[bool] = False
    """Whether timesteps rise over a run, zero being all noise."""
    stacks: ClassVar[tuple[str, ...]] = ()
    """Attributes of the transformer that hold its blocks, in the order in which they run; each is a ``ModuleList``
    that the forward goes through once, one self-attention to a block. None: its steps cannot be cached."""
    streams: ClassVar[tuple[tuple[str, int], ...]] = (("hidden_states", 0),)
    """What a block takes and returns changed, by name and position: the video tokens first."""
    channel_axis: ClassVar[int] = 1
    """Of latents."""
    batched_guidance: ClassVar[bool] = False
    """Whether both guidance passes share one call: unconditional rows, then as many conditional ones."""

    @property
    def published(self) -> str:
        """The family by whose name methods know their published options."""
        return self.like or self.name

    predictions: ClassVar[int] = 1
    """Tensors that a forward returns. Of several, only what the blocks add can be reused."""

    @abstractmethod
    def sites(self, transformer: nn.Module) -> list[nn.Module]:
        """The self-attention modules, in the order in which they run."""

    @abstractmethod
    def stock(self, processor: Any) -> bool:
        """Whether a processor is the family's own, whose arithmetic ours reproduces."""

    @abstractmethod
    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        """The token grid of one forward."""

    def queries(self, transformer: nn.Module, call: Call, layout: TokenLayout) -> Tensor:
        """Like the queries of one forward, without contents: ``[batch, tokens, heads, head_dim]`` on "meta"."""
        states = call.get("hidden_states", 0)
        kind, shape = states.device.type, (len(states), layout.tokens, *self.heads(transformer))
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        return torch.empty(shape, dtype=dtype, device="meta")

    def timestep(self, call: Call) -> Tensor:
        """The timestep of one forward, of any shape; the largest value counts."""
        step: Tensor = call.get("timestep", self.timestep_position)
        return step

    def scheduled(self, scheduler: Any) -> Tensor | None:
        """A run's timesteps as the transformer gets them, one for each of the scheduler's; None without a scheduler."""
        timesteps = getattr(scheduler, "timesteps", None)
        return timesteps if isinstance(timesteps, Tensor) else None

    def latents(self, transformer: nn.Module, call: Call) -> Tensor:
        """Of a forward's input, the channels that its output has; those of an image to start from come after them."""
        states: Tensor = call.get("hidden_states", 0)
        config: Any = transformer.config
        return states.narrow(self.channel_axis, 0, config.out_channels or config.in_channels)

    def time_embedding(self, transformer: nn.Module, timesteps: Tensor) -> Tensor:
        """The model's embedding of timesteps ``[steps]``: ``[steps, dim]``.

        Raises:
            ValueError: what the blocks get of a timestep depends on more than it.
        """
        raise ValueError(f"{self.name} has no signal of the timestep alone")

    def modulated(self, block: nn.Module, call: Call) -> Tensor:
        """What the attention of the first block reads in a call of it: ``[batch, video tokens, dim]``.

        Raises:
            ValueError: the family's blocks have no such signal.
        """
        raise ValueError(f"{self.name} has no signal of modulated inputs")

    def heads(self, transformer: nn.Module) -> tuple[int, int]:
        """Heads and head dim of the self-attention."""
        config: Any = transformer.config
        return config.num_attention_heads, config.attention_head_dim

    def distance_unit(self, transformer: nn.Module) -> str:
        """What position embeddings measure distances along rows and columns in: "tokens", or "frame" where every size
        of frame has the same coordinates."""
        return "tokens"

    def output_projection(self, transformer: nn.Module, index: int) -> Tensor | None:
        """Weight through which video outputs of the site at `index` leave: ``[out, heads * head_dim]``.

        A LoRA on it does not count. None where its values cannot be read: quantised, or not loaded.
        """
        site: Any = self.sites(transformer)[index]
        return self._plain_weight(transformer, site.to_out[0])

    def _plain_weight(self, transformer: nn.Module, linear: Any) -> Tensor | None:
        """The columns of a linear layer's weight that heads write to, if they are numbers that can be read."""
        heads, head_dim = self.heads(transformer)
        weight = getattr(linear, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point() or weight.is_meta:
            return None
        return weight.detach()[:, : heads * head_dim] if weight.shape[1] >= heads * head_dim else None

    def probe(self, transformer: nn.Module, device: torch.device) -> Tensor:
        """An empty query of one token, like those of `transformer`: enough to ask backends whether they can run it."""
        model: Any = transformer
        heads, head_dim = self.heads(transformer)
        return torch.empty(1, 1, heads, head_dim, dtype=model.dtype, device=device)

    def schedule(self, pipeline: Any, transformer: nn.Module) -> Schedule:
        """The default schedule."""
        return Schedule()
