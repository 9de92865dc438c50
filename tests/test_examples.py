"""Every script in examples/: run with ``--miniature``, and its other branch with models that only look loaded."""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import imageio.v3 as imageio
import numpy as np
import pytest
import transformers
from PIL import Image

from tests.tiny import tiny_image
from vidaccel import profile

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SHARED = EXAMPLES / "common.py"
OF_OTHER_HOSTS = ("adapter_", "comfyui")
SCRIPTS = [each for each in sorted(EXAMPLES.glob("*.py"))
           if each != SHARED and not each.stem.startswith(OF_OTHER_HOSTS)]  # fmt: skip
MOST_LINES = 60
STEPS = 4
Run = Callable[..., dict[str, Any]]

every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("an example went to the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a script as the shell would, in an empty folder; gives its global names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    # Other scripts of this repository have a module of this name, too.
    before = sys.modules.pop("common", None)

    def call(script: Path, *words: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [str(script), *words])
        return runpy.run_path(str(script), run_name="__main__")

    yield call
    sys.modules.pop("common", None)
    if before is not None:
        sys.modules["common"] = before


def pixels(frames: Any) -> np.ndarray:
    """Frames as a pipeline gives them, arrays or pictures, as floats in [0, 1]."""
    made = np.stack([np.asarray(frame) for frame in frames])
    return made / 255 if made.dtype == np.uint8 else made


def coarse(frames: Any, side: int = 16) -> np.ndarray:
    """Means of squares of pixels: what is left of noise after h.264."""
    made = pixels(frames)
    count, height, width, colors = made.shape
    squares = made.reshape(count, height // side, side, width // side, side, colors)
    return squares.mean(axis=(2, 4))


def small_model(script: Path) -> str:
    """Which miniature a script takes."""
    (name,) = re.findall(r'miniature\("(\w+)"\) if args\.miniature', script.read_text())
    return name


@every_script
def test_miniature(script: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(script, "--miniature", "--steps", str(STEPS))
    frames, clip, small = (made[name] for name in ("frames", "clip", "small"))
    assert pixels(frames).shape[1:] == (clip["height"], clip["width"], 3) and len(frames) >= clip["num_frames"]
    assert np.isfinite(pixels(frames)).all()

    written = imageio.imread(f"{script.stem}.mp4", plugin="FFMPEG")
    assert written.shape == pixels(frames).shape
    # Swapped channels or frames out of order are far below.
    near = np.corrcoef(coarse(written).ravel(), coarse(frames).ravel())[0, 1]
    assert near > 0.9 and np.abs(coarse(written) - coarse(frames)).mean() < 0.02

    printed = capsys.readouterr().out
    assert int(re.search(r"(\d+) sparse calls", printed)[1]) > 0
    assert float(re.search(r"video density ([\d.]+) where", printed)[1]) < 0.8
    found = made["pipe"].sparse_attention_summary().to_dict()
    assert (found["min_tokens"], found["method"]["options"]["block"]) == (small["min_tokens"], small["block"])
    assert found["steps"] == STEPS and found["runs"] >= 1


def test_wan_has_a_cache_that_reuses_steps(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """With as many steps as are the default."""
    found = run(EXAMPLES / "wan_t2v.py", "--miniature")["pipe"].sparse_attention_summary().to_dict()
    assert found["steps"] == 20 and found["cache"]["name"] == "easycache" and found["calls"]["spared"] > 0
    assert "cache: easycache" in capsys.readouterr().out


def test_seed_and_prompt_matter(run: Run) -> None:
    script = EXAMPLES / "ltx.py"
    first, again, seed, prompt = (
        pixels(run(script, "--miniature", "--steps", "2", "--out", "clip.mp4", *words)["frames"])
        for words in ((), (), ("--seed", "1"), ("--prompt", "a red circle"))
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, prompt) and np.abs(first - seed).max() > 0.01
    assert Path("clip.mp4").is_file() and not Path("ltx.mp4").exists()


def test_image_matters(run: Run) -> None:
    tiny_image(5).save("other.png")
    script = EXAMPLES / "cosmos.py"
    first, other = (
        pixels(run(script, "--miniature", "--steps", "2", *words)["frames"])
        for words in ((), ("--image", "other.png"))
    )  # fmt: skip
    assert np.abs(first[0] - other[0]).max() > 0.01


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "'0' is not a number of steps of at least 1"),
        (["--steps", "many"], "'many' is not a number of steps"),
        (["--out", "clip.gif"], "'clip.gif' does not end in .mp4"),
        (["--image", "absent.png"], "'absent.png' is neither a file nor a URL"),
        (["--speed", "2"], "unrecognized arguments: --speed 2"),
    ],
)
def test_bad_arguments(words: list[str], message: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before any model is made."""
    with pytest.raises(SystemExit) as stopped:
        run(EXAMPLES / "cosmos.py", "--miniature", *words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_without_the_miniatures_the_error_says_how_to_get_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vidaccel_miniatures", None)
    for name in ("wan_t2v", "ltx"):
        with pytest.raises(ValueError, match=r"pip install 'vidaccel\[demo\]'"):
            run(EXAMPLES / f"{name}.py", "--miniature", "--prompt", "a red circle")


class Hub:
    """Stands in for what a script loads, places and runs, and writes it down."""

    def __init__(self, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pipe, self.kind = pipe, type(pipe)
        self.loaded: dict[str, set[str]] = {}
        self.placed: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.images: list[str] = []
        hub, original = self, self.kind.__call__

        def pipeline(cls: Any, repo: str, **parts: Any) -> Any:
            assert cls is hub.kind and parts.pop("torch_dtype") is not None
            assert set(parts) <= set(pipe.components)
            hub.loaded.setdefault(repo, set()).add("pipeline")
            pipe.register_to_config(_name_or_path=repo)
            return pipe

        def part(cls: Any, repo: str, subfolder: str = "", **_: Any) -> Any:
            # A part is of the class that the tiny pipeline has, or an ancestor of it.
            assert any(isinstance(each, cls) for each in pipe.components.values()), cls
            hub.loaded.setdefault(repo, set()).add(subfolder)
            return SimpleNamespace()

        def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(original).bind(self, *args, **kwargs)
            bound.apply_defaults()
            takes = inspect.signature(self.check_inputs).parameters
            self.check_inputs(**{name: bound.arguments[name] for name in takes if name in bound.arguments})
            hub.calls.append(kwargs)
            return SimpleNamespace(frames=[[tiny_image(seed) for seed in range(5)]])

        monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", classmethod(pipeline))
        for base in (diffusers.ModelMixin, transformers.PreTrainedModel,
                     transformers.image_processing_base.ImageProcessingMixin):  # fmt: skip
            monkeypatch.setattr(base, "from_pretrained", classmethod(part))
        monkeypatch.setattr(self.kind, "__call__", generate)
        for name in ("enable_model_cpu_offload", "to"):
            monkeypatch.setattr(self.kind, name, lambda self, *where, name=name: hub.placed.append(name))
        monkeypatch.setattr(diffusers.utils, "load_image", self.load_image)

    def load_image(self, where: str) -> Image.Image:
        self.images.append(where)
        return tiny_image()


@pytest.fixture
def hub(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Hub]:
    """Makes a stand-in for the hub, with the pipeline that a script asks for in tiny."""

    def make(script: Path) -> Hub:
        common = importlib.import_module("common")
        pipe = common.miniature(small_model(script))[0]
        # The script is to import it anew, with what is patched.
        del sys.modules["common"]
        return Hub(pipe, monkeypatch)

    return make


@every_script
def test_real_branch(
    script: Path, run: Run, hub: Callable[[Path], Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the weights: repositories, the arguments that loaders and calls take, and the settings of vidaccel."""
    there = hub(script)
    made = run(script, "--seed", "7")
    (call,) = there.calls
    assert there.loaded[made["REPO"]] and len(there.placed) == 1
    assert all(re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9.-]+[\w.-]*", repo) for repo in there.loaded)
    assert call["prompt"] == made["PROMPT"] and call["generator"].initial_seed() == 7
    assert {**call, **made["CLIP"]} == call and call["num_inference_steps"] >= 30
    assert call["height"] * call["width"] * call["num_frames"] >= 480 * 720 * 49
    expected = made.get("IMAGES") or ([made["IMAGE"]] if "IMAGE" in made else [])
    assert there.images == expected and all(url.startswith("https://huggingface.co/") for url in expected)
    assert len(imageio.imread(f"{script.stem}.mp4", plugin="FFMPEG")) == 5
    found = there.pipe.sparse_attention_summary().to_dict()
    assert found["min_tokens"] is None and found["method"]["options"]["block"] >= 64
    assert "no run yet" in capsys.readouterr().out


def test_wan22_gets_the_profile_that_is_shipped_for_it(run: Run, hub: Callable[[Path], Hub]) -> None:
    script = EXAMPLES / "wan22_t2v.py"
    there = hub(script)
    run(script)
    found = there.pipe.sparse_attention_summary().to_dict()
    shipped = profile.find("Wan-AI/Wan2.2-T2V-A14B-Diffusers")
    assert found["method"]["name"] == shipped.method and shipped.options.items() <= found["method"]["options"].items()
    assert shipped.schedule and shipped.schedule.items() <= found["schedule"].items()


@every_script
def test_script_is_short_and_says_what_matters(script: Path) -> None:
    text = script.read_text()
    assert len(text.splitlines()) < MOST_LINES
    for needed in ("pipe.enable_sparse_attention(", "export_to_video(", "manual_seed(args.seed)",
                   "print(pipe.sparse_attention_summary())"):  # fmt: skip
        assert needed in text


def test_readme_lists_the_scripts() -> None:
    listed = re.findall(r"^\| \[`(\w+\.py)`\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [path.name for path in SCRIPTS]


def test_every_untrained_miniature_is_run_by_a_script() -> None:
    from vidaccel_miniatures import untrained

    used = [small_model(script) for script in SCRIPTS]
    assert len(used) == len(set(used)) and set(untrained.available()) <= set(used)
