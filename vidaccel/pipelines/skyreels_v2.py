"""SkyReels-V2: text and image to video, and diffusion forcing, where each frame has a timestep of its own.

The processor is Wan's (`vidaccel.pipelines.wan`): diffusers' ``SkyReelsV2AttnProcessor`` (Apache-2.0) computes what
Wan's does. Served is diffusion forcing with all new frames at one timestep, after frames of history and before a last
image, which have little or no noise. Two things are refused: frames that are denoised one after another, as such runs
have more steps than the scheduler has timesteps, and the mask by which blocks of frames do not see later ones.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call
from vidaccel.pipelines.split import cut, rotary, whole
from vidaccel.pipelines.wan import Wan

MOST_NOISE = 60
"""Timestep up to which a frame counts as history; diffusers warns of more noise on it (``addnoise_condition``)."""


class SkyReelsV2(Wan):
    """SkyReels-V2 with ``SkyReelsV2Transformer3DModel``."""

    name: ClassVar[str] = "skyreels_v2"
    transformers: ClassVar[tuple[str, ...]] = ("SkyReelsV2Transformer3DModel",)
    like: ClassVar[str | None] = "wan"
    stock_splits: ClassVar[bool] = False

    def parallel_plan(self, transformer: nn.Module) -> dict[str, Any]:
        # Timesteps may be those of frames: then each token has its own modulation, that of the output too, which the
        # forward has of all tokens.
        return {"rope": rotary(1, 4), "blocks.0": {"hidden_states": cut(1, 3)}, "blocks.*": {"temb": cut(2, 4)},
                "norm_out": whole(1, 3)}  # fmt: skip

    def stock(self, processor: Any) -> bool:
        name = type(processor).__name__
        if name == "SkyReelsV2AttnProcessor2_0":
            raise ValueError(f"SkyReels-V2 has the attention processor {name} in diffusers 0.35, which computes "
                             "otherwise and is not supported: install a newer diffusers")  # fmt: skip
        return name == "SkyReelsV2AttnProcessor"

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        config: Any = transformer.config
        if config.num_frame_per_block > 1:
            raise ValueError(
                f"the attention of {type(transformer).__name__} is masked in causal blocks of "
                f"num_frame_per_block={config.num_frame_per_block} frames, which is not supported: only 1 is "
                "(causal_block_size=1 in the pipeline's call)"
            )
        return super().layout(transformer, call)

    def timestep(self, call: Call) -> Tensor:
        """The timestep of the frames that are denoised, ``[batch]``.

        Raises:
            ValueError: they have several.
        """
        step = super().timestep(call)
        if step.ndim < 2:
            return step
        frames = step[0].tolist()
        # A last image, which has no noise, stands after the new frames, and history before them.
        place = max((index for index, each in enumerate(frames) if each != 0), default=0)
        if any(each > MOST_NOISE for each in frames if each != frames[place]):
            raise ValueError(
                f"frames at timesteps {sorted(set(frames))} in one call: frames that are denoised one after another "
                f"are not supported, only ar_step=0, and history of a noise of at most {MOST_NOISE} "
                "(addnoise_condition)"
            )
        return step[:, place]

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        return super().conditioned(pipeline, transformer) or "VideoToVideo" in type(pipeline).__name__


FAMILY = SkyReelsV2()
