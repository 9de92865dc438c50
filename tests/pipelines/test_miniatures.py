"""The trained miniatures by the one line of the README, with the profiles that they bring along."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vidaccel
from tests.pipelines.cases import error

pytest.importorskip("vidaccel_miniatures")


@pytest.mark.slow
@pytest.mark.parametrize("name, sparse, dense", [("wan", 6, 10), ("hunyuanvideo", 4, 6), ("cogvideox", 3, 5)])
def test_the_second_of_two_steps_is_sparse_but_for_its_first_layer(name: str, sparse: int, dense: int) -> None:
    pipe = vidaccel.load_miniature(name)
    pipe.set_progress_bar_config(disable=True)
    call = vidaccel.miniature.generation_defaults(name) | {"num_inference_steps": 2, "output_type": "latent"}
    call.pop("prompt", None), call.pop("fps", None)

    def latents() -> Tensor:
        return pipe("a red circle moves left", generator=torch.Generator().manual_seed(0), **call).frames

    stock = latents()
    session = pipe.enable_sparse_attention(schedule={"dense_first_steps": 1})
    found, summary = latents(), session.summary().to_dict()
    assert summary["calls"] == {"sparse": sparse, "dense": dense} and 0 < summary["density"]["video_density"] < 1
    assert torch.isfinite(found).all() and 0 < error(found, stock) < 1
