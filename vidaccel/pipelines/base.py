"""What the session needs to know of a model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.processor import Processor
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
        if name not in self.kwargs and position >= len(self.args):
            raise ValueError(f"the transformer was called without {name}")
        return self.optional(name, position)

    def optional(self, name: str, position: int) -> Any:
        """The same where a call may leave it out: then None."""
        return self.kwargs.get(name, self.args[position] if position < len(self.args) else None)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The arguments that are tensors, by name or else by position."""
        values = {**{str(position): each for position, each in enumerate(self.args)}, **self.kwargs}
        return {name: each for name, each in values.items() if isinstance(each, Tensor)}


CONDITIONED = Schedule(dense_first_steps=0.35)
"""Published image-to-video settings keep more steps dense: in Sparse VideoGen's scripts 0.35 of the run."""
VIDEO_AND_TEXT = (("hidden_states", 0), ("encoder_hidden_states", 1))
"""`Family.streams` of blocks that change both."""


class Family(ABC):
    """A model family: which classes it has, where their self-attention is and how to read their inputs."""

    name: ClassVar[str]
    transformers: ClassVar[tuple[str, ...]]
    """Class names of the transformers."""
    like: ClassVar[str | None] = None
    """The family that it is a descendant of, whose published options of methods count for it, too."""
    processor: ClassVar[type[Processor]]
    stock_processors: ClassVar[tuple[str, ...]] = ()
    """Class names of those whose arithmetic `processor` reproduces."""
    attention: ClassVar[str] = "attn1"
    """Attribute of a block that is its self-attention."""
    branches: ClassVar[tuple[str, ...]] = ("cond", "uncond")
    """The guidance passes of a step, in the order in which the pipelines run them."""
    timestep_position: ClassVar[int] = 1
    """Of the timestep among the arguments of the transformer's forward."""
    timesteps_rise: ClassVar[bool] = False
    """Whether timesteps rise over a run, zero being all noise."""
    stacks: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    """Attributes of the transformer that hold its blocks, in the order in which they run; each is a ``ModuleList``
    that the forward goes through once, one self-attention to a block."""
    cacheable: ClassVar[bool] = True
    """Whether its steps can be cached: nothing but the blocks changes the streams between the first and the last."""
    streams: ClassVar[tuple[tuple[str, int], ...]] = (("hidden_states", 0),)
    """What a block takes and returns changed, by name and position: the video tokens first."""
    channel_axis: ClassVar[int] = 1
    """Of latents."""
    batched_guidance: ClassVar[bool] = False
    """Whether both guidance passes share one call: unconditional rows, then as many conditional ones."""
    separate_guidance: ClassVar[bool] = False
    """Whether pipelines call the transformer for one guidance pass after the other, and use none of their predictions
    before the last."""
    early_guidance: ClassVar[tuple[str, ...]] = ()
    """Parts of the class names of pipelines that use each prediction before they ask for the next."""

    stock_splits: ClassVar[bool] = False
    """Whether the stock processors, too, can attend in a clip that `parallel_plan` split over processes."""
    unsplit: ClassVar[str] = "nobody has shown how its model can be split"
    """Why `parallel_plan` refuses."""

    def parallel_plan(self, transformer: nn.Module) -> dict[str, Any]:
        """What diffusers' context parallelism splits and gathers, and where, so that attention has a part of the video.

        Text of a joint attention stays whole on every process.

        Returns:
            The ``cp_plan`` of ``transformer.enable_parallelism``.

        Raises:
            ValueError: one clip of this model cannot be split.
        """
        raise ValueError(f"one clip of {type(transformer).__name__} cannot be split over processes: {self.unsplit}")

    def no_guidance_groups(self, pipeline: str) -> str | None:
        """Why the guidance passes of a pipeline, by its class's name, cannot be computed at the same time, or None."""
        if self.batched_guidance:
            return "both are rows of one call; split its clip over all processes instead"
        if any(part in pipeline for part in self.early_guidance):
            return "it uses the conditional prediction before it asks for the other"
        return None if self.separate_guidance else f"nobody has looked how pipelines of {self.name} compute them"

    def check_split(self, layout: TokenLayout) -> None:
        """Refuse a forward of a model that `parallel_plan` split.

        Raises:
            ValueError: other tokens are split with the video's.
        """
        return

    @property
    def published(self) -> str:
        """The family by whose name methods know their published options."""
        return self.like or self.name

    conditioned_pipelines: ClassVar[tuple[str, ...]] = ("ImageToVideo",)
    """Parts of the class names of pipelines that start from a picture or a clip."""
    predictions: ClassVar[int] = 1
    """Tensors that a forward returns. Of several, only what the blocks add can be reused."""

    def sites(self, transformer: nn.Module) -> list[nn.Module]:
        """The self-attention modules, in the order in which they run."""
        return [getattr(block, self.attention) for block in self.blocks(transformer)]

    def blocks(self, transformer: nn.Module) -> list[nn.Module]:
        """The blocks of its stacks, in the order in which they run."""
        return [block for stack in self.stacks for block in getattr(transformer, stack)]

    def stock(self, processor: Any) -> bool:
        """Whether a processor is one that ours can stand for."""
        return type(processor).__name__ in self.stock_processors

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

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        """Whether runs start from a picture or a clip."""
        return any(each in type(pipeline).__name__ for each in self.conditioned_pipelines)

    def schedule(self, pipeline: Any, transformer: nn.Module) -> Schedule:
        """The default schedule; where nothing is published for a model, Wan's."""
        return CONDITIONED if self.conditioned(pipeline, transformer) else Schedule()
