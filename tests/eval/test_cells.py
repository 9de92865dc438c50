from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.eval.cases import ImagePipeline, plan, source
from vidaccel.eval.cells import plan_cells, random_options
from vidaccel.eval.settings import Settings

LATTE = "LatteTransformer3DModel"
"""One that is refused for a reason."""


def test_cells_are_the_product_of_the_axes() -> None:
    axes = {"method": ["dense", "radial", {"name": "radial", "decay": 0.1}], "density": [0.2, 0.3],
            "prompt": ["a", "b"], "seed": [0, 1]}  # fmt: skip
    cells = plan(axes, source(), source(name="other", identify=lambda: "sha256:1"))
    # Dense and the radial that sets its own decay run once, radial at each density.
    assert len(cells) == 2 * 2 * 2 * (1 + 2 + 1)
    assert len({cell.key for cell in cells}) == len({cell.name for cell in cells}) == len(cells)
    first = [(cell.label, cell.density, cell.prompt, cell.seed) for cell in cells[:5]]
    assert first == [("dense", None, "a", 0), ("radial", 0.2, "a", 0), ("radial", 0.3, "a", 0),
                     ("radial(decay=0.1)", None, "a", 0), ("dense", None, "a", 1)]  # fmt: skip
    assert len({cell.row for cell in cells}) == 2 * 4
    assert {cell.options["decay"] for cell in cells if cell.label == "radial(decay=0.1)"} == {0.1}


def test_baselines_follow_their_cell() -> None:
    cells = plan({"baselines": True, "density": [0.2, 0.3], "seed": [0, 1]})
    labels = [cell.label for cell in cells[: len(cells) // 2]]
    assert labels == ["dense", *["radial", "fewer-steps for radial", "random for radial"] * 2]
    assert all(cell.parent is cells[index - 1] or cell.parent is cells[index - 2]
               for index, cell in enumerate(cells) if cell.parent)  # fmt: skip
    assert len({cell.name for cell in cells}) == len(cells) and len({cell.row for cell in cells}) == 7
    assert [cell.label for cell in plan({"baselines": ["dense"], "method": ["radial", "dense"]})] == ["radial", "dense"]


def test_a_random_method_is_not_its_own_baseline() -> None:
    cells = plan({"baselines": True, "method": "random", "density": 0.2})
    assert [cell.label for cell in cells] == ["dense", "random", "fewer-steps for random"]


def test_a_method_with_and_without_compensation_are_cells_of_their_own() -> None:
    residual = {"name": "residual", "refresh": 3}
    entries = ["radial", *({"name": "radial", "compensation": each} for each in ("centroid", "residual", residual))]
    cells = plan({"method": entries, "density": 0.2})
    assert [cell.label for cell in cells] == ["radial", "radial+centroid", "radial+residual",
                                              "radial+residual(refresh=3)"]  # fmt: skip
    assert len({cell.key for cell in cells}) == len({cell.row for cell in cells}) == 4
    assert "radial-residual-0.2" in cells[3].name and cells[0].reference == cells[1].reference
    # One without keeps the hash that it had when there was none.
    assert "compensation" not in cells[0].config and cells[1].config["compensation"]["name"] == "centroid"


def test_compensation_of_an_eval_is_for_methods_without_their_own() -> None:
    methods = ["dense", {"name": "radial", "block": 16}, {"name": "radial", "compensation": "residual"}]
    cells = plan({"method": methods, "compensation": "centroid", "baselines": ["random"]})
    assert [cell.label for cell in cells] == ["dense", "radial(block=16)+centroid",
                                              "random for radial(block=16)+centroid", "radial+residual",
                                              "random for radial+residual"]  # fmt: skip
    assert [cell.compensation is None for cell in cells] == [True, False, True, False, True]
    assert len({cell.key for cell in cells}) == 5


def test_quick_takes_four_prompts_and_latents() -> None:
    cells = plan({"quick": True, "prompt": list("abcdef")})
    assert [cell.prompt for cell in cells] == list("abcd")
    assert {cell.reference["output"] for cell in cells} == {"latent"}
    assert {cell.reference["output"] for cell in plan()} == {"np"}


def test_the_call_is_the_models_own_under_what_was_given() -> None:
    made_for = source(defaults={"height": 144, "num_inference_steps": 20, "fps": 8, "prompt": "x"})
    call = plan({"steps": 4}, made_for)[0].call
    assert call == {"height": 144, "width": 832, "num_frames": 81, "num_inference_steps": 4, "guidance_scale": 5.0}
    assert made_for.fps == 8


@pytest.mark.parametrize(
    ("values", "other"),
    [({"seed": 1}, {}), ({"prompt": "a blue circle"}, {}), ({"steps": 4}, {}), ({"guidance": 1.0}, {}),
     ({"negative_prompt": "blurry"}, {}), ({"quick": True}, {}), ({}, {"identify": lambda: "sha256:1"}),
     ({}, {"dtype": "float16"})],
)  # fmt: skip
def test_a_reference_is_of_all_that_dense_output_depends_on(values: dict[str, Any], other: dict[str, Any]) -> None:
    cell, changed = plan()[0], plan(values, source(**other))[0]
    assert cell.reference != changed.reference and cell.key != changed.key


@pytest.mark.parametrize("values", [{"repeats": 2}, {"backend": "reference"}, {"schedule": {"dense_first_steps": 0}},
                                    {"density": 0.5}, {"method": {"name": "radial", "block": 64}}])  # fmt: skip
def test_methods_share_their_reference(values: dict[str, Any]) -> None:
    cell, changed = plan()[0], plan(values)[0]
    assert cell.reference == changed.reference and cell.key != changed.key


def test_a_reference_is_of_this_machine_and_these_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = plan()[0]
    assert cell.reference["versions"]["torch"] == torch.__version__
    assert cell.reference["device"]["threads"] == torch.get_num_threads()
    other = dict.fromkeys(("torch", "diffusers", "transformers"), "0")
    monkeypatch.setattr("vidaccel.eval.env.versions", lambda: other)
    assert plan()[0].key != cell.key


def test_names_are_readable_and_fit_a_file_system() -> None:
    name = plan({"prompt": "Größe: a/../b? " * 20, "density": 0.25}, source(name="owner/Some Model"))[0].name
    assert re.fullmatch(r"Some-Model-radial-0\.25-[a-z0-9-]{1,28}-s0-[0-9a-f]{8}", name)


@pytest.mark.parametrize(
    ("values", "other", "said"),
    [
        ({"density": 0.5}, {"transformer": LATTE}, f"runs dense only: {LATTE} is not supported: its blocks attend"),
        ({"method": {"name": "radial", "block": 5}}, {}, "block 5 is not a power of two"),
        ({"method": {"name": "radial", "decay": 0.1, "density": 0.3}}, {}, "not both"),
        ({}, {"pipeline": ImagePipeline}, "needs a first frame"),
        ({"height": 64}, {"defaults": {"colour": 1}}, "Pipeline takes no colour"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_anything_is_read(values: dict[str, Any], other: dict[str, Any],
                                                            said: str) -> None:  # fmt: skip
    with pytest.raises(ValueError, match=said):
        plan(values, source(**other, identify=lambda: pytest.fail("it was read")))


def test_an_eval_needs_prompts_and_models_of_different_names() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        plan_cells([source()], Settings.of({}))
    with pytest.raises(ValueError, match="names of their own"):
        plan({}, source(), source())


def test_dense_cells_need_no_family() -> None:
    assert [cell.label for cell in plan({"method": "dense"}, source(transformer=LATTE))] == ["dense"]


def test_random_blocks_are_of_the_parents_size() -> None:
    cell = plan({"method": {"name": "radial", "block": 16}, "seed": 7})[0]
    assert random_options(cell, 0.31) == {"density": 0.31, "block": 16, "seed": 7}
    assert random_options(replace(cell, options={"window": 3}), 0.31) == {"density": 0.31, "seed": 7}
