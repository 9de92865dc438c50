"""What training, export and measurement need to know of a family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidaccel_miniatures.captions import MAX_TOKENS

LATENT_CHANNELS = 8
"""Channels of the latent space that all miniatures share."""
LARGE, SMALL, FRAMES = (144, 208), (96, 144), 49
"""Height and width of the two trained sizes, and frames."""
Text = dict[str, Tensor]
"""What an encoder makes of texts: tensors whose first dimension is the text."""


class Family(ABC):
    """One of diffusers' video pipelines in miniature. A family is one file; this says what it holds."""

    name: ClassVar[str]
    """The miniature's, and its folder's."""
    vae_pieces: ClassVar[bool] = False
    """Whether the autoencoder decodes long clips in pieces that forget what was before."""
    distilled: ClassVar[bool] = False
    """Whether the guidance scale is an input of the transformer, which is trained to follow it in one pass."""
    guidance: ClassVar[float] = 3.0
    """Guidance scale of the pipeline's call."""
    text: ClassVar[dict[str, int]] = {}
    """Text tokens in the sequence of self-attention, as fields of a `TokenLayout`."""
    call: ClassVar[dict[str, Any]] = {}
    """Further arguments of the pipeline's call."""

    @property
    def defaults(self) -> dict[str, Any]:
        """The arguments of the pipeline's call that suit the miniature."""
        return {
            "height": LARGE[0], "width": LARGE[1], "num_frames": FRAMES, "num_inference_steps": 20,
            "guidance_scale": self.guidance, "max_sequence_length": MAX_TOKENS, **self.call,
        }  # fmt: skip

    @abstractmethod
    def build_vae(self) -> nn.Module:
        """A new autoencoder: 8x smaller in space, 4x in time, with `LATENT_CHANNELS`."""

    @abstractmethod
    def load_vae(self, folder: Path) -> nn.Module:
        """The autoencoder saved in `folder`, in float32."""

    @abstractmethod
    def build_transformer(self) -> nn.Module:
        """A new transformer that predicts zero."""

    @abstractmethod
    def embed(self, texts: list[str]) -> Text:
        """What the pipeline makes of prompts."""

    @abstractmethod
    def predict(self, model: Any, noisy: Tensor, timestep: Tensor, text: Text, guidance: Tensor) -> Tensor:
        """The transformer's output for noisy latents `[B, 8, F, H, W]` at timesteps `[B]` of 0..1000."""

    @abstractmethod
    def noised(self, latents: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents at random timesteps, the timesteps, and what the transformer should say of them."""

    @abstractmethod
    def pipeline(self, vae: Any, transformer: Any) -> Any:
        """The whole pipeline, its text side included."""
