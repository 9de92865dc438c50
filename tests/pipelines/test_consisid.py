"""ConsisID: CogVideoX's attention in a model that adds a face between its blocks."""

from __future__ import annotations

import torch

import vidaccel
from tests.pipelines.cases import error, forward
from tests.pipelines.models import cogvideox
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call

RADIAL = {"decay": 0.0, "split": 16, "sink": False, "block": 16}


def test_family_layout_and_schedule() -> None:
    transformer = cogvideox.build_consisid()
    family = family_of(transformer)
    assert family.name == "consisid" and family.distance_unit(transformer) == "frame"
    # 49 frames of 480 x 720.
    states, text = torch.empty(1, 13, 32, 60, 90, device="meta"), torch.empty(1, 226, 4096, device="meta")
    assert family.layout(transformer, Call((states, text), {})) == TokenLayout(13, 30, 45, text_before=226)
    assert family.schedule(None, transformer).resolve(50, 42).first_step == 17
    assert family.latents(transformer, Call((states,), {})).shape[2] == cogvideox.CHANNELS


def test_the_face_counts_in_sparse_runs_too() -> None:
    transformer = cogvideox.build_consisid()
    call = cogvideox.consisid_inputs(transformer)
    other = call | {"id_cond": -call["id_cond"]}
    with vidaccel.enable(transformer, "radial", **RADIAL, min_tokens=0, num_inference_steps=4,
                         schedule={"dense_first_steps": 0, "dense_first_layers": 0}):  # fmt: skip
        assert error(forward(transformer, call), forward(transformer, other)) > 1e-4
