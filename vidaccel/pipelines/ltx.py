"""LTX-Video: text, image, conditions and windows to video; packed tokens, both guidance branches in one batch.

The processor computes what diffusers' ``LTXVideoAttnProcessor`` (Apache-2.0) computes, with the attention itself
replaced. Latents come packed, so that the grid is what the call says, or what the coordinates of its tokens show:
condition frames may stand before the clip or after it in the sequence, and count as text, which masks keep whole.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call, Family
from vidaccel.pipelines.processor import Processor, left_to_stock
from vidaccel.pipelines.rotary import Rotary, rotate_pairs
from vidaccel.pipelines.split import cut, rotary, whole


class LTXProcessor(Processor):
    """Self-attention of an LTX block through the session; anything else goes to the stock processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Tensor:
        if left_to_stock(hidden_states, encoder_hidden_states, attention_mask):
            out: Tensor = self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
            return out
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        if image_rotary_emb is not None:
            query = rotate_pairs(query, *image_rotary_emb)
            key = rotate_pairs(key, *image_rotary_emb)
        value = attn.to_v(hidden_states)
        query, key, value = (each.unflatten(2, (attn.heads, -1)) for each in (query, key, value))
        out = self.attend(query, key, value).flatten(2, 3).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](out))  # type: ignore[no-any-return]


def clip(coordinates: Tensor) -> TokenLayout:
    """The grid of a clip among tokens whose places are known.

    Frames of the clip follow each other in even strides from time 0, the first stride apart, as it is that of a single
    frame; where no frame is at time 0, from the first frame on. All other tokens are conditions.

    Args:
        coordinates: of each token its time, row and column: ``[3, tokens]``. They are read on the CPU.

    Raises:
        ValueError: they are not those of frames, each row by row.
    """
    found = coordinates.detach().float().cpu()
    tokens = found.shape[1]
    again = ((found[1] == found[1, 0]) & (found[2] == found[2, 0])).nonzero().flatten()
    size = int(again[1]) if len(again) > 1 else tokens
    width = int((found[1, :size] == found[1, 0]).sum())
    height = size // width
    if height * width != size or not _row_by_row(found[1:, :size].reshape(2, height, width)):
        raise ValueError("video_coords are not those of frames, each row by row, so that the token grid is unknown")
    frames = found[:, : tokens // size * size].reshape(3, -1, size)
    alike = (frames[1:] == frames[1:, :1]).all(dim=(0, 2)) & (frames[0] == frames[0, :, :1]).all(dim=1)
    times: list[float] = frames[0, : int(alike.int().cumprod(0).sum()), 0].tolist()
    first = times.index(0.0) if 0.0 in times else 0
    end = _end(times, first)
    return TokenLayout(end - first, height, width, first * size, tokens - end * size)


def _row_by_row(frame: Tensor) -> bool:
    """Whether rows and columns ``[2, height, width]`` are those of a grid."""
    return bool((frame[0] == frame[0, :, :1]).all() and (frame[1] == frame[1, :1]).all())


def _end(times: list[float], first: int) -> int:
    """One past the last frame that goes on from `first` in even strides, the first stride apart."""
    end = first + 1
    while end < len(times) and times[end] > times[end - 1]:
        stride, before = times[end] - times[end - 1], times[end - 1] - times[end - 2]
        if end - first > 2 and abs(stride - before) > 1e-3 * before:
            break
        end += 1
    return end


class LTX(Family):
    """LTX-Video with ``LTXVideoTransformer3DModel``."""

    name: ClassVar[str] = "ltx"
    transformers: ClassVar[tuple[str, ...]] = ("LTXVideoTransformer3DModel",)
    processor: ClassVar[type[Processor]] = LTXProcessor
    conditioned_pipelines: ClassVar[tuple[str, ...]] = ("ImageToVideo", "I2V", "Condition")
    stock_processors: ClassVar[tuple[str, ...]] = ("LTXVideoAttnProcessor",)
    branches: ClassVar[tuple[str, ...]] = ("cond_uncond",)
    timestep_position: ClassVar[int] = 2
    channel_axis: ClassVar[int] = 2
    batched_guidance: ClassVar[bool] = True

    def parallel_plan(self, transformer: nn.Module) -> dict[str, Any]:
        # diffusers' own splits the text, too, but not the mask that its cross attention then needs.
        return {"": {"hidden_states": cut(1, 3), "timestep": cut(1, 2)}, "rope": rotary(1, 3), "proj_out": whole(1, 3)}

    def check_split(self, layout: TokenLayout) -> None:
        if layout.tokens != layout.video_tokens:
            raise ValueError("one clip of LTX with conditions cannot be split over processes: they stand before the "
                             "video in one stream")  # fmt: skip

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        # Pipelines that give coordinates give no grid, or one of a single token.
        coordinates = call.optional("video_coords", 8)
        if coordinates is not None:
            return clip(coordinates[0])
        return TokenLayout(call.get("num_frames", 4), call.get("height", 5), call.get("width", 6))

    def time_embedding(self, transformer: nn.Module, timesteps: Tensor) -> Tensor:
        model: Any = transformer
        out: Tensor = model.time_embed(timesteps, hidden_dtype=model.dtype)[1]
        return out

    def modulated(self, block: nn.Module, call: Call) -> Tensor:
        return modulated(block, call.get("hidden_states", 0), call.get("temb", 2))


def modulated(block: Any, states: Tensor, embedded: Tensor) -> Tensor:
    """What the self-attention of a block reads: tokens ``[batch, tokens, dim]``, normalised, scaled and shifted.

    Args:
        embedded: timesteps, ``[batch, 1 or tokens, parameters * dim]``, to which the block adds a table of its own.
    """
    table = block.scale_shift_table.to(embedded.device)
    shift, scale = (table + embedded.unflatten(-1, (len(table), -1))).unbind(2)[:2]
    out: Tensor = block.norm1(states) * (1 + scale) + shift
    return out


FAMILY = LTX()
