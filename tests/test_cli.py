from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import vidaccel
from tests.tiny import generate, tiny_cogvideox, tiny_hunyuanvideo, tiny_wan
from vidaccel.cli import app, options
from vidaccel.eval.metrics import ON_FRAMES
from vidaccel.eval.metrics.score import Score
from vidaccel.methods import METHODS
from vidaccel.methods.radial import Radial
from vidaccel.schedule import Schedule

CALL: dict[str, Any] = {"num_frames": 17, "height": 64, "width": 96, "guidance_scale": 3.0, "negative_prompt": "blurry",
                        "max_sequence_length": 16, "fps": 8}  # fmt: skip
PROMPT = "a red circle moves left"
RADIAL = ["--method", "radial", "--set", "block=16", "--set", "split=16", "--min-tokens", "0"]


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def json_of(*words: object) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert isinstance(values, dict)
    return values


def refused(*words: object) -> str:
    """The last line on standard error of a command that ends with exit code 2 and prints no result."""
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    *progress, line = result.stderr.splitlines()
    assert line.startswith("error: ") and not any(before.startswith("error: ") for before in progress)
    return line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "wan"
    tiny_wan(layers=3).save_pretrained(path)
    return path


@pytest.fixture
def miniature(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`vidaccel_miniatures` with a tiny pipeline of random weights as its "wan"."""
    fake = SimpleNamespace(available=lambda: ["wan"], path=lambda name: folder, PROMPTS=[PROMPT],
                           generation_defaults=lambda name: dict(CALL))  # fmt: skip
    monkeypatch.setitem(sys.modules, "vidaccel_miniatures", fake)
    return folder


# plan


def test_plan_has_every_key_and_counts_right() -> None:
    values = json_of("plan", "radial", "--grid", "18x48x80", "--family", "wan")
    assert values["method"] == "radial" and values["grid"] == "18x48x80" and values["heads"] == 40
    assert values["tokens"] == 18 * 48 * 80 and values["density"] == pytest.approx(values["video_density"])
    assert values["computed_density"] >= values["density"] > 0 and 0 < values["seconds"] < 60
    mask = Radial.for_family("wan").plan(None, None, None, options_site(18, 48, 80), {}).mask
    assert mask is not None and values["ranges"] == len(mask.ranges) and values["bytes"] == mask.nbytes


def options_site(*grid: int) -> vidaccel.Site:
    return vidaccel.Site(0, 1, 0, None, "cond", "transformer", vidaccel.TokenLayout(*grid))


def test_plan_takes_text_density_block_and_any_option() -> None:
    values = json_of("plan", "radial", "--grid", "9x12x16", "--text-before", 26, "--text-after", 30, "--block", 32,
                     "--density", 0.7, "--set", "split=32", "--heads", 3)  # fmt: skip
    assert values["tokens"] == 26 + 9 * 12 * 16 + 30 and values["heads"] == 3
    assert values["options"]["block"] == 32 and values["options"]["split"] == 32
    assert values["video_density"] == pytest.approx(0.7, abs=0.03) and values["density"] > values["video_density"]


def test_plan_uses_the_familys_defaults() -> None:
    decays = {family: json_of("plan", "radial", "--grid", "9x12x16", "--family", family)["options"]["decay"]
              for family in ("wan", "hunyuanvideo", "cogvideox")}  # fmt: skip
    assert decays == {"wan": 0.2, "hunyuanvideo": 0.95, "cogvideox": 0.95}
    assert json_of("plan", "radial", "--grid", "9x12x16", "--set", "decay=0.7")["options"]["decay"] == 0.7


@pytest.mark.parametrize("name", [name for name, cls in METHODS.items() if cls.static])
def test_plan_of_every_static_method_as_text(name: str) -> None:
    own = ["--set", "profile=miniature:wan", "--layer", "1"] if name == "head_profile" else []
    result = run("plan", name, "--grid", "9x12x16", *own)
    assert result.exit_code == 0 and re.search(r"^video_density +0\.\d+$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope", "--grid", "3x3x3"], "unknown method 'nope'; choose .*radial"),
        (["radial", "--grid", "3x3"], "grid '3x3' is not FRAMESxHEIGHTxWIDTH"),
        (["radial", "--grid", "0x3x3"], "grid '0x3x3'"),
        (["radial", "--grid", "3x3x3", "--family", "sora"], "unknown family 'sora'; choose .*wan"),
        (["radial", "--grid", "3x3x3", "--density", "0"], r"density 0.0 is outside \(0, 1\]"),
        (["radial", "--grid", "3x3x3", "--density", "1.01"], r"density 1.01 is outside \(0, 1\]"),
        (["radial", "--grid", "3x3x3", "--text-after", "-1"], "text_after=-1"),
        (["radial", "--grid", "3x3x3", "--heads", "0"], "heads 0"),
        (["radial", "--grid", "3x3x3", "--set", "colour=1"], "no option 'colour'; it has decay, density, block"),
        (["radial", "--grid", "3x3x3", "--set", "decay=much"], "decay='much' is not none or a number"),
        (["radial", "--grid", "3x3x3", "--set", "decay"], "'decay' is not NAME=VALUE"),
        (["radial", "--grid", "3x3x3", "--set", "block=16", "--block", "32"], "'block' of .*'radial' is set twice"),
        (["radial", "--grid", "21x45x80", "--set", "preset=upstream", "--density", "0.1"], "below 0.25"),
    ],
)
def test_bad_plans_are_one_line(words: list[str], said: str) -> None:
    assert re.search(said, refused("plan", *words, "--json"))


# options


def test_values_are_typed_by_their_field() -> None:
    found = options.parse(["decay=1", "sink=no", "preset=none", "block=64"], Radial, "radial")
    assert found == {"decay": 1, "sink": False, "preset": None, "block": 64} and found["sink"] is False
    fields = options.parse(["dense-first-steps=2", "dense_first_layers=0.5"], Schedule, "a schedule")
    # A schedule tells a count from a fraction by its type.
    assert fields == {"dense_first_steps": 2, "dense_first_layers": 0.5} and type(fields["dense_first_steps"]) is int
    assert type(options.parse(["dense_first_steps=1.0"], Schedule, "a schedule")["dense_first_steps"]) is float


@pytest.mark.parametrize("text", ["block=1.5", "sink=perhaps", "decay=nan", "decay=inf", "block="])
def test_values_of_another_type_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition("=")[0]):
        options.parse([text], Radial, "radial")


def test_only_bad_input_is_a_user_error() -> None:
    """A ValueError from deeper down is a bug, and keeps its traceback."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["vidaccel.cli.plan"], "planned", lambda *_: int("a bug"))
        result = run("plan", "radial", "--grid", "3x3x3")
    # int() raises in the frame of this test, which is not one of vidaccel's checks.
    assert result.exit_code == 1 and isinstance(result.exception, ValueError)


# env, ls


def test_env_tells_each_backend() -> None:
    values = json_of("env")
    assert values["versions"]["torch"] == torch.__version__ and values["device"]["threads"] == torch.get_num_threads()
    backends = values["backends"]["cpu"]
    assert set(backends) == set(vidaccel.api.kernels.BACKENDS)
    assert backends["cpu"] == backends["reference"] == {"available": True, "reason": None}
    if not torch.cuda.is_available():
        assert not backends["triton"]["available"] and backends["triton"]["reason"]


def test_ls_names_everything(miniature: Path) -> None:
    values = json_of("ls")
    assert set(values["methods"]) == set(METHODS) and "2506.19852" in values["methods"]["radial"]["paper"]
    assert "WanTransformer3DModel" in values["families"]["wan"]["transformers"]
    assert values["compensations"]["centroid"]["options"] == ["kept_mb"]
    assert "2505.22918" in values["compensations"]["residual"]["paper"]
    assert values["caches"]["easycache"]["options"] == ["threshold"] and "2507.02860" in str(values["caches"])
    assert values["predictors"]["taylor"]["options"] == ["order", "start", "trend"]
    assert "guidance_interval" in values["cache_limits"]
    assert values["miniatures"] == ["miniature:wan"] and values["profiles"]
    text = run("ls")
    assert text.exit_code == 0 and "miniature:wan" in text.stdout and "decay" in text.stdout


# the process itself


def process(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "vidaccel.cli", *words], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["plan", "radial", "--grid", "9x12x16"], ["env"]])
def test_standard_output_is_one_json_object(words: list[str]) -> None:
    done = process(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict) and done.stdout.count("\n") == 1


@pytest.mark.slow
def test_errors_of_the_process() -> None:
    done = process("plan", "radial", "--grid", "flat", "--json")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: grid 'flat'") and "Traceback" not in done.stderr


@pytest.mark.slow
def test_help_loads_no_command() -> None:
    """Help needs the package, but not what the commands use."""
    code = ("import sys, vidaccel; before = set(sys.modules); import vidaccel.cli;"
            "print(*{name.split('.')[0] for name in set(sys.modules) - before})")  # fmt: skip
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"matplotlib", "jinja2", "skimage", "imageio", "triton"} & set(loaded)
    result = run("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("demo", "generate", "plan", "env", "ls"))


# generate


def frames_of(path: Path) -> np.ndarray:
    with imageio.get_reader(path, format="FFMPEG") as reader:
        return np.stack(list(reader.iter_data()))


def generate_words(model: object, out: Path, *more: object) -> list[object]:
    return ["generate", "--model", model, "--prompt", PROMPT, "--negative-prompt", "blurry", "--out", out, "--steps", 4,
            "--height", 64, "--width", 96, "--frames", 17, "--guidance", 3.0, *more]  # fmt: skip


def test_generate_writes_the_pipelines_own_clip(folder: Path, tmp_path: Path) -> None:
    values = json_of(*generate_words(folder, tmp_path / "clip.mp4", "--method", "dense", "--seed", 7))
    stock = generate(tiny_wan(layers=3), seed=7, max_sequence_length=512)
    clip = frames_of(tmp_path / "clip.mp4")
    assert clip.shape == stock.shape and np.abs(clip / 255 - stock).mean() < 0.05
    assert values["sparse"] is None and values["seed"] == 7 and values["settings"]["num_inference_steps"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_generate_sparse_tells_what_it_did(folder: Path, tmp_path: Path) -> None:
    words = generate_words(folder, tmp_path / "clip.mp4", *RADIAL, "--backend", "reference", "--fps", 4)
    values = json_of(*words, "--schedule", "dense_first_steps=1")
    assert values["sparse"]["method"]["name"] == "radial" and values["sparse"]["backend"] == "reference"
    assert values["sparse"]["calls"]["sparse"] == 3 * 2 * 2 and values["settings"]["fps"] == 4
    assert frames_of(tmp_path / "clip.mp4").shape == (17, 64, 96, 3)


def test_generate_in_fewer_bits_tells_their_error(folder: Path, tmp_path: Path) -> None:
    words = generate_words(folder, tmp_path / "clip.mp4", *RADIAL, "--backend", "reference", "--check-finite")
    values = json_of(*words, "--precision", "int8", "--schedule", "dense_first_steps=1")
    assert values["sparse"]["precision"] == "int8" and 0 < values["sparse"]["precision_error"]["worst"] < 0.05


def test_generate_with_a_compensation_tells_it(folder: Path, tmp_path: Path) -> None:
    words = generate_words(folder, tmp_path / "clip.mp4", *RADIAL, "--compensation", "centroid")
    values = json_of(*words, "--schedule", "dense_first_steps=1")
    assert values["sparse"]["compensation"]["name"] == "centroid" and values["sparse"]["calls"]["sparse"] > 0


def test_generate_with_a_cache_alone_tells_what_it_computed(folder: Path, tmp_path: Path) -> None:
    words = generate_words(folder, tmp_path / "clip.mp4", "--method", "dense", "--cache", "static")
    words += ["--cache-set", "compute=[0, 1]", "--cache-set", "min-steps=1", "--cache-set", "predictor=taylor"]
    cache = json_of(*words)["sparse"]["cache"]
    assert cache["name"] == "static" and cache["predictor"] == {"name": "taylor", "order": 1, "start": 2, "trend": 0.7}
    assert [each["what"] for each in cache["decisions"][::2]] == ["computed", "computed", "predicted", "predicted"]
    taylor = '{"name": "taylor", "order": 2, "start": 0}'
    assert "predictor taylor" in run(*words[:-1], f"predictor={taylor}").stdout


def test_generate_with_sparse_attention_and_a_cache(folder: Path, tmp_path: Path) -> None:
    words = generate_words(folder, tmp_path / "clip.mp4", *RADIAL, "--schedule", "dense_first_steps=0")
    values = json_of(*words, "--cache", "static", "--cache-set", "compute=[0, 1]", "--cache-set", "min_steps=1")
    assert values["sparse"]["calls"] == {"sparse": 8, "dense": 4, "spared": 12}
    assert values["sparse"]["cache"]["computed_share"] == 0.5


def test_generate_by_the_stock_processors_of_a_generic_transformer(folder: Path, tmp_path: Path) -> None:
    words = ["--method", "nabla", "--density", "0.4", "--set", "block=16", "--min-tokens", 0]
    known = json_of(*generate_words(folder, tmp_path / "known.mp4", *words))
    generic = json_of(*generate_words(folder, tmp_path / "generic.mp4", *words, "--family", "generic",
                                      "--family-set", "patch=[1, 2, 2]"))  # fmt: skip
    assert generic["sparse"]["calls"] == known["sparse"]["calls"] and known["sparse"]["calls"]["sparse"] > 0
    assert np.abs(frames_of(tmp_path / "known.mp4") - frames_of(tmp_path / "generic.mp4").astype(float)).max() <= 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--family", "wan"], "--family 'wan' is not 'generic'"),
        (["--family-set", "text=after"], "give --family generic, too"),
        (["--family", "generic", "--family-set", "text=beside"], "text='beside' is none of before, after"),
        (["--family", "generic", "--method", "dense"], "'dense' takes no .*--family"),
    ],
)
def test_a_generic_family_is_checked_first(folder: Path, tmp_path: Path, more: list[str], said: str) -> None:
    assert re.search(said, refused(*generate_words(folder, tmp_path / "clip.mp4", *more)))


def test_cache_options_are_typed_by_the_policys_fields() -> None:
    given = ["threshold=0.1", "coefficients=[1, 0]", "range=none", "most-reused=3", "first_steps=0.2"]
    assert options.cache_options("teacache", given) == {
        "name": "teacache", "threshold": 0.1, "coefficients": [1, 0], "range": None, "most_reused": 3,
        "first_steps": 0.2}  # fmt: skip
    assert options.cache_options(None, []) is None


def test_generate_takes_a_miniature_with_its_defaults(miniature: Path, tmp_path: Path) -> None:
    result = run("generate", "--model", "miniature:wan", "--prompt", PROMPT, "--out", tmp_path / "clip.mp4",
                 "--steps", 2)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "clip.mp4" in result.stdout and "8 sparse calls" in result.stdout and "block=16" in result.stdout
    assert frames_of(tmp_path / "clip.mp4").shape == (17, 64, 96, 3)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "nope"], "unknown method 'nope'; choose dense, .*radial"),
        (["--method", "dense", "--density", "0.5"], "'dense' takes no --density"),
        (["--density", "2"], r"density 2.0 is outside \(0, 1\]"),
        (["--backend", "magic"], "unknown backend 'magic'; choose auto"),
        (["--precision", "int4"], "unknown precision 'int4'; choose int8, fp8"),
        (["--compensation", "prayer"], "unknown compensation 'prayer'; choose centroid, residual"),
        (["--method", "dense", "--compensation", "centroid"], "'dense' takes no --density, .* --compensation, .* and"),
        (["--cache", "nope"], "unknown cache policy 'nope'; choose .*easycache"),
        (["--cache-set", "threshold=0.1"], "'threshold=0.1' sets an option of a cache: give --cache NAME"),
        (["--cache", "easycache", "--cache-set", "colour=1"], "'easycache' has no option 'colour'; it has threshold, "),
        (["--cache", "easycache", "--cache-set", "threshold=low"], "threshold='low' is not a number"),
        (["--cache", "easycache", "--cache-set", "predictor=oracle"], "unknown predictor 'oracle'; choose hold"),
        (["--cache", "easycache", "--cache-set", "predictor={"], "not JSON|unknown predictor"),
        (["--method", "dense", "--cache", "magcache"], "needs a calibration"),
        (["--precision", "int8"], "cpu: it computes in the inputs' own type, not in int8"),
        (["--method", "dense", "--check-finite"], "'dense' takes no --density, --set, --schedule"),
        (["--schedule", "dense_first_steps=1.5"], "dense_first_steps=1.5"),
        (["--schedule", "pace=1"], "a schedule has no option 'pace'; it has dense_first_steps"),
        (["--dtype", "fp4"], "dtype 'fp4' is not one of fp32, bf16, fp16"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--image", "absent.png"], "image 'absent.png' cannot be read"),
        (["--method", "absent.json"], "absent.json"),
        (["--fps", "0"], "--fps 0"),
        (["--height", "65"], "height.*65|divisible"),
    ],
)
def test_bad_generations_write_nothing(folder: Path, tmp_path: Path, more: list[str], said: str) -> None:
    assert re.search(said, refused(*generate_words(folder, tmp_path / "clip.mp4", *more)))
    assert not list(tmp_path.iterdir())


def test_a_backend_that_cannot_run_is_refused(folder: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("Triton runs here")
    said = refused(*generate_words(folder, tmp_path / "clip.mp4", *RADIAL, "--backend", "triton", "--device", "cpu"))
    assert "triton" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "said"), [("clip.avi", "does not end in .mp4"), ("file/clip.mp4", "cannot write into folder")]
)
def test_bad_outputs_are_refused_before_loading(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    # The model does not exist either: the output is checked first.
    assert said in refused(*generate_words("miniature:absent", tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_models_that_are_none_are_refused(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out" / "clip.mp4"
    assert "no model_index.json" in refused(*generate_words(tmp_path, out))
    assert "neither a pipeline's folder" in refused(*generate_words(tmp_path / "absent", out))
    other = tmp_path / "other"
    other.mkdir()
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"transformer": ["diffusers", "LatteTransformer3DModel"], "_class_name": "LattePipeline"}
    (other / "model_index.json").write_text(json.dumps(index))
    said = refused(*generate_words(other, out))
    assert "LatteTransformer3DModel is not supported" in said and "enable_cache" in said
    assert not out.parent.exists()


def test_image_pipelines_need_their_image(tmp_path: Path) -> None:
    tiny_wan(image=True).save_pretrained(tmp_path / "i2v")
    said = refused(*generate_words(tmp_path / "i2v", tmp_path / "clip.mp4", *RADIAL))
    assert "--image PATH" in said and not (tmp_path / "clip.mp4").exists()
    first = tmp_path / "first.png"
    imageio.imwrite(first, np.zeros((64, 96, 3), np.uint8))
    values = json_of(*generate_words(tmp_path / "i2v", tmp_path / "clip.mp4", *RADIAL, "--image", first))
    assert values["pipeline"] == "WanImageToVideoPipeline" and (tmp_path / "clip.mp4").exists()


# demo

KEYS = {"kind", "created", "vidaccel", "git", "seed", "prompt", "negative_prompt", "model", "settings", "device",
        "versions", "method", "schedule", "backend", "layout", "density", "timing", "metrics", "calls", "notes",
        "peak_memory_gib", "mask_png", "real_sizes", "files"}  # fmt: skip
FILES = {"dense.mp4", "fast.mp4", "side_by_side.mp4", "report.html", "record.json"}


def test_demo_writes_everything(miniature: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "demo"
    result = run("demo", "--out", out, "--steps", 4, "--repeats", 2, "--seed", 9, "--json")
    assert result.exit_code == 0, result.output
    values, shown = json.loads(result.stdout), result.stderr
    assert {path.name for path in out.iterdir()} == FILES
    assert set(values) == KEYS and json.loads((out / "record.json").read_text()) == values
    assert values["seed"] == 9 and values["prompt"] == PROMPT and values["settings"]["num_inference_steps"] == 4
    assert "warm-up dense: step 1 of 20" in shown and "fast: step " in shown
    assert len(values["timing"]["dense"]) == len(values["timing"]["fast"]) == 2
    assert values["method"]["options"]["block"] == 16 and values["calls"]["sparse"] == 3 * 2 * 2
    assert values["mask_png"] and 0 < values["density"]["video_density"] < 1
    dense, fast = frames_of(out / "dense.mp4"), frames_of(out / "fast.mp4")
    assert dense.shape == fast.shape == (17, 64, 96, 3)
    assert frames_of(out / "side_by_side.mp4").shape[2] > 2 * 96
    stock = generate(tiny_wan(layers=3), seed=9)
    assert np.abs(dense / 255 - stock).mean() < 0.05
    assert "data:video/mp4;base64," in (out / "report.html").read_text()


OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "hunyuanvideo": (tiny_hunyuanvideo, {"prompt_template": {"template": "{}", "crop_start": 0}}),
    "cogvideox": (tiny_cogvideox, {}),
}


@pytest.fixture(params=list(OTHERS))
def another(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory,
            monkeypatch: pytest.MonkeyPatch) -> str:  # fmt: skip
    """A miniature of another family than Wan; its name."""
    build, more = OTHERS[request.param]
    path = tmp_path_factory.mktemp("model") / request.param
    build().save_pretrained(path)
    call = {key: item for key, item in CALL.items() if key != "negative_prompt"} | more
    fake = SimpleNamespace(available=lambda: [request.param], path=lambda name: path, PROMPTS=[PROMPT],
                           generation_defaults=lambda name: dict(call))  # fmt: skip
    monkeypatch.setitem(sys.modules, "vidaccel_miniatures", fake)
    return f"miniature:{request.param}"


@pytest.fixture
def other(another: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A miniature of a family that has no sparse attention; its name."""
    monkeypatch.delitem(vidaccel.pipelines.families(), another.removeprefix("miniature:"))
    return another


def test_demo_of_every_family_is_sparse(another: str, tmp_path: Path) -> None:
    result = run("demo", "--model", another, "--out", tmp_path / "demo", "--steps", 4, "--repeats", 1, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["calls"]["sparse"] > 0 and {path.name for path in (tmp_path / "demo").iterdir()} == FILES


def test_demo_of_a_family_without_sparse_attention_is_dense(other: str, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = run("demo", "--model", other, "--out", out, "--steps", 2, "--repeats", 2, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert set(values) == KEYS and values["method"] == {} and values["model"]["name"] == other
    assert {path.name for path in out.iterdir()} == {"dense.mp4", "report.html", "record.json"}
    assert len(values["timing"]["dense"]) == 2 and values["timing"]["speedup"] is None
    assert values["model"]["transformer"] in values["notes"][0]
    assert frames_of(out / "dense.mp4").shape == (17, 64, 96, 3)
    page = (out / "report.html").read_text()
    assert page.count("<video") == 1 and "no sparse attention for" in page and "not measured" not in page


def test_sparse_demo_of_a_family_without_sparse_attention_is_refused(other: str, tmp_path: Path) -> None:
    for words in (["--method", "radial"], ["--method", "radial", "--density", "0.3"]):
        said = refused("demo", "--model", other, "--out", tmp_path / "demo", *words)
        assert "is not supported" in said and ("WanTransformer3DModel" in said or "attend within a frame" in said)
    assert "takes no --density" in refused("demo", "--model", other, "--out", tmp_path / "demo", "--density", "0.3")
    assert not list(tmp_path.iterdir())


def test_generate_of_a_family_without_sparse_attention(other: str, tmp_path: Path) -> None:
    words = ["generate", "--model", other, "--prompt", PROMPT, "--out", tmp_path / "clip.mp4", "--steps", 2]
    said = refused(*words)
    assert "--method dense" in said and "Transformer3DModel is not supported" in said and not list(tmp_path.iterdir())
    values = json_of(*words, "--method", "dense")
    assert values["sparse"] is None and frames_of(tmp_path / "clip.mp4").shape == (17, 64, 96, 3)


def test_demo_of_a_supported_family_can_be_dense(miniature: Path, tmp_path: Path) -> None:
    result = run("demo", "--method", "dense", "--out", tmp_path, "--steps", 2, "--repeats", 1)
    assert result.exit_code == 0, result.output
    assert "dense" in result.stdout and "speed" not in result.stdout
    assert json.loads((tmp_path / "record.json").read_text())["notes"] == ["dense attention only: as asked"]


def test_demo_runs_miniatures_only(miniature: Path, tmp_path: Path) -> None:
    assert "choose miniature:wan" in refused("demo", "--model", miniature, "--out", tmp_path / "demo")
    assert "'nope'; choose wan" in refused("demo", "--model", "miniature:nope", "--out", tmp_path / "demo")


def test_demo_replaces_an_older_one_and_shows_a_table(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "record.json").write_text("old")
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setitem(ON_FRAMES, "lpips", lambda *_: Score.missing("no pictures today"))
    result = run("demo", "--out", tmp_path, "--steps", 2, "--repeats", 1, "--prompt", "a blue square")
    assert result.exit_code == 0, result.output
    for part in ("PSNR", "speed", "no pictures today", "Wan2.1-T2V-14B", "HunyuanVideo", "report.html", "counted"):
        assert part in result.stdout
    assert json.loads((tmp_path / "record.json").read_text())["prompt"] == "a blue square"
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"mine.txt"}


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--method", "nope"], "unknown method"), (["--density", "0"], r"\(0, 1\]"), (["--set", "block=5"], "block 5")],
)
def test_bad_demos_leave_nothing(miniature: Path, tmp_path: Path, more: list[str], said: str) -> None:
    assert re.search(said, refused("demo", "--out", tmp_path / "demo", *more))
    assert not list(tmp_path.iterdir())


def test_demo_into_an_unwritable_folder_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vidaccel_miniatures", None)
    (tmp_path / "file").write_text("kept")
    assert "cannot write into folder" in refused("demo", "--out", tmp_path / "file" / "demo")
    assert "cannot write into folder" in refused("demo", "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    assert "pip install 'vidaccel[demo]'" in refused("demo", "--out", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_a_demo_that_breaks_off_leaves_the_old_files(miniature: Path, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidaccel.report.write_report", lambda *_: 1 / 0)
        result = run("demo", "--out", tmp_path, "--steps", 1, "--repeats", 1)
    assert isinstance(result.exception, ZeroDivisionError)
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    assert (tmp_path / "record.json").read_text() == "old"
