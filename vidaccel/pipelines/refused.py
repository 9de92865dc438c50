"""Denoisers that are known and not supported: why each is not, and what else can be done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """Args:
    why: a clause about the class.
    instead: what else to do; "" where there is nothing.
    """

    why: str
    instead: str = ""

    def __str__(self) -> str:
        return f"{self.why}. {self.instead}" if self.instead else self.why


REFUSED: dict[str, Refusal] = {
    "SanaVideoTransformer3DModel": Refusal(
        "its self-attention is linear: no pairs of queries and keys are computed that could be left out"
    ),
    "SanaWMTransformer3DModel": Refusal(
        "three of its four blocks attend linearly, and the others inside modules that have no attention processor"
    ),
    "SanaWMLTX2RefinerTransformer3DModel": Refusal(
        "it generates chunk by chunk over a cache of earlier keys, so that there are more keys than queries",
        "Its sibling LTX2VideoTransformer3DModel is supported",
    ),
    "LatteTransformer3DModel": Refusal(
        "its blocks attend within a frame or along one place, to 1,024 or 16 tokens at 512x512 and 16 frames: too few "
        "for sparse attention to win anything",
        "diffusers' caches run on it: pipe.transformer.enable_cache(...)",
    ),
    "AnyFlowFARTransformer3DModel": Refusal(
        "it generates chunk by chunk, with a cache of earlier keys and a block mask of its own for FlexAttention",
        "Its sibling AnyFlowTransformer3DModel, which attends to the whole clip, is supported",
    ),
    "WanAnimate2Transformer3DModel": Refusal(
        "it packs generated and reference tokens, more keys than queries, behind a block mask of its own for "
        "FlexAttention",
        "WanAnimateTransformer3DModel is supported",
    ),
    "Cosmos3OmniTransformer": Refusal(
        "it attends in two pathways, a causal one and one with more keys than queries, and has fewer key heads than "
        "query heads",
        "CosmosTransformer3DModel, that of Cosmos 1, Predict 2 and 2.5, is supported",
    ),
    "MiniMaxH3Transformer3DModel": Refusal(
        "text, sound, conditions and video stand in one sequence, in an order that each call gives by indices",
        "vidaccel.sparse_attention works on tensors, for a processor of your own",
    ),
    "Kandinsky6Transformer3DModel": Refusal(
        "it has no family yet, and its stock processor runs as it is",
        'Pass family=vidaccel.Generic(latents="BTHWC", '
        'sites="visual_transformer_blocks.*.video_dec_block.self_attention")',
    ),
    "Kandinsky6SRTransformer3DModel": Refusal(
        "its self-attention is sparse already: it chooses blocks itself, for FlexAttention"
    ),
    "RFD4ProteinaTransformer": Refusal("it makes proteins, not video"),
    "TransformerTemporalModel": Refusal("it attends along time alone, to as many tokens as a clip has frames"),
}
"""By the class's name; see `refusal` for the classes that are refused by what their names tell."""

IMAGE = Refusal(
    "it makes single images: what these methods leave out lies between the frames of a video",
    "diffusers has caches for such models, such as FasterCacheConfig and FirstBlockCacheConfig",
)
SOUND = Refusal("it makes sound, not video")
UNET = Refusal("it is a UNet, whose blocks attend within a frame or along one place, never to all tokens of a clip")
# Not named like the others of their kind.
IMAGES = ("JoyImageEditTransformer3DModel", "JoyImageEditPlusTransformer3DModel", "PriorTransformer")
SOUNDS = ("StableAudioDiTModel", "StableAudio3DiTModel", "LongCatAudioDiTTransformer")


def refusal(name: str) -> Refusal | None:
    """Why a denoiser's class is not supported, and what else to do; None for a class that is not known.

    diffusers names image models "...2DModel", music models "...1DModel" and convolutional ones "...UNet...".
    """
    if name in REFUSED:
        return REFUSED[name]
    if "UNet" in name:
        return UNET
    if name.endswith("2DModel") or name in IMAGES:
        return IMAGE
    return SOUND if name.endswith("1DModel") or name in SOUNDS else None
