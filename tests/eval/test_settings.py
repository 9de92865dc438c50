from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vidaccel.eval.settings import BASELINES, Choice, Settings
from vidaccel.eval.settings_file import read_prompts, read_settings


def test_an_axis_takes_one_value_or_a_list() -> None:
    one = Settings.of({"method": "radial", "density": 0.3, "prompt": "a", "seed": 4})
    methods = ["dense", {"name": "radial", "block": 32}]
    several = Settings.of({"method": methods, "density": [0.3, 1], "prompt": ["a", "b"]})
    assert one.method == (Choice("radial"),) and one.density == (0.3,) and one.prompt == ("a",) and one.seed == (4,)
    assert several.method == (Choice("dense"), Choice("radial", {"block": 32})) and several.density == (0.3, 1.0)
    assert one.cache == ("none",) and one.repeats == 1 and one.baselines == BASELINES and not one.quick


def test_baselines_are_all_none_or_some() -> None:
    assert Settings.of({"baselines": False}).baselines == () and Settings.of({"baselines": True}).baselines == BASELINES
    assert Settings.of({"baselines": ["random", "dense"]}).baselines == ("dense", "random")


def test_calls_have_the_pipelines_names() -> None:
    given = Settings.of({"steps": 4, "frames": 17, "height": 64, "guidance": 3, "negative_prompt": "blurry"})
    assert given.call() == {"num_inference_steps": 4, "num_frames": 17, "height": 64, "guidance_scale": 3,
                            "negative_prompt": "blurry"}  # fmt: skip


def test_the_density_axis_passes_over_methods_that_set_their_own() -> None:
    choices = [Choice.of({"name": "radial", **more}) for more in ({}, {"block": 32}, {"decay": 0.2}, {"density": 0.4})]
    assert [choice.crosses() for choice in (*choices, Choice("dense"))] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"methods": "radial"}, "no setting 'methods'; it has method, density, .*backend"),
        ({"method": "nope"}, "unknown method 'nope'; choose dense, .*radial"),
        ({"method": 3}, "method 3 is neither a name nor a mapping"),
        ({"method": {"block": 16}}, "is neither a name nor a mapping with a name"),
        ({"method": {"name": "radial", "colour": 1}}, "'radial' has no option 'colour'; it has decay, density"),
        ({"method": {"name": "radial", "block": "16"}}, "option 'block' .* '16' is not a whole number"),
        ({"method": {"name": "radial", "sink": 1}}, "option 'sink' .* 1 is not true or false"),
        ({"method": {"name": "radial", "schedule": {"pace": 1}}}, "a schedule has no 'pace'; it has dense_first_steps"),
        ({"method": {"name": "radial", "schedule": 3}}, "schedule 3 is not a mapping of dense_first_steps"),
        ({"method": {"name": "dense", "density": 0.2}}, "method 'dense' takes no density"),
        ({"method": {"name": "dense", "schedule": {}}}, "method 'dense' takes no schedule"),
        ({"method": {"name": "dense", "compensation": "centroid"}}, "method 'dense' takes no compensation"),
        ({"method": {"name": "radial", "compensation": "x"}}, "unknown compensation 'x'; choose centroid, residual"),
        ({"compensation": {"name": "centroid", "size": 1}}, "'centroid' has no option 'size'; it has kept_mb"),
        ({"method": "fewer-steps"}, "'fewer-steps' is a baseline"),
        ({"method": "dense", "density": 0.2}, "none of the methods dense takes a density"),
        ({"method": ["radial", "radial"]}, "method has 'radial' twice"),
        ({"method": []}, "method is an empty list"),
        ({"density": []}, "density is an empty list"),
        ({"density": [0.2, 0.2]}, "density has 0.2 twice"),
        ({"density": 0}, r"density 0 is outside \(0, 1\]"),
        ({"density": True}, "density: True is not a number"),
        ({"density": "0.2"}, "density: '0.2' is not a number"),
        ({"cache": "teacache"}, "teacache needs coefficients"),
        ({"cache": None}, "unknown cache policy None"),
        ({"prompt": ["a", 3]}, "prompt: 3 is not a text"),
        ({"prompt": " "}, "a prompt is empty"),
        ({"seed": 0.5}, "seed: 0.5 is not a whole number"),
        ({"seed": -1}, "seed -1 is not"),
        ({"seed": [1, 1]}, "seed has 1 twice"),
        ({"steps": 0}, "steps 0 is not a whole number of at least 1"),
        ({"repeats": 0}, "repeats 0"),
        ({"guidance": float("nan")}, "guidance: nan is not a number"),
        ({"quick": "yes"}, "quick: 'yes' is not true or false"),
        ({"schedule": {"dense_first_steps": 1.5}}, "dense_first_steps=1.5"),
        ({"baselines": "sparse"}, "unknown baseline 'sparse'; choose dense, fewer-steps, random"),
        ({"backend": "magic"}, "unknown backend 'magic'"),
    ],
)  # fmt: skip
def test_bad_settings_say_what_is_allowed(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings.of(values)


def test_settings_file(tmp_path: Path) -> None:
    (tmp_path / "eval.yaml").write_text("method: [radial]\ncache: none\ndensity: 0.2\nprompts_file: prompts.txt\n")
    (tmp_path / "prompts.txt").write_text("# colours\na red circle\n\n  a blue square \n")
    values = read_settings(tmp_path / "eval.yaml")
    assert values == {"method": ["radial"], "cache": "none", "density": 0.2,
                      "prompts_file": str(tmp_path / "prompts.txt")}  # fmt: skip
    assert read_prompts(Path(values["prompts_file"])) == ["a red circle", "a blue square"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("- a\n", "holds no mapping"), ("", "holds no mapping"), ("a: [1", "is not YAML"), ("1: 2", "holds no mapping"),
     ("a: !!python/object/apply:os.getcwd []", "is not YAML")],
)  # fmt: skip
def test_bad_settings_files(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "eval.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_settings(tmp_path / "eval.yaml")


def test_absent_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="settings file .* cannot be read: No such file"):
        read_settings(tmp_path / "absent.yaml")
    (tmp_path / "prompts.txt").write_text("# none\n")
    with pytest.raises(ValueError, match="has no prompt"):
        read_prompts(tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_prompts(tmp_path / "prompts.txt")
