"""Full masks under every supported transformer, and another project's tests under them, unchanged."""

from __future__ import annotations

import copy
import gc
import inspect
import os
import re
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.pipelines.cases import error, forward, gradient
from tests.pipelines.models import models
from tests.pipelines.test_conformance import processors
from vidaccel.everywhere import Everywhere
from vidaccel.pipelines import family_of, supported_classes
from vidaccel.pipelines.processor import Processor
from vidaccel.pytest_plugin import Counting

ROOT = Path(__file__).resolve().parent.parent
WAN = "WanTransformer3DModel"


@pytest.mark.parametrize("name", list(models()))
def test_models_that_are_made_meanwhile_compute_the_same(name: str) -> None:
    model = models()[name]
    before = model.build()
    call, kinds = model.inputs(before), {each: type(found) for each, found in processors(before).items()}
    stock = forward(before, call)
    with Everywhere("reference") as everywhere:
        transformer = model.build()
        sites = family_of(transformer).sites(transformer)
        assert all(isinstance(site.processor, Processor) for site in sites) and everywhere.transformers == 1
        out = forward(transformer, call)
        calls = everywhere.calls
        assert 0 < calls <= len(sites) and not everywhere.left
        assert torch.equal(forward(before, call), stock) and everywhere.calls == calls
    # Not bit for bit, so that the kernel shows.
    assert 0 < error(out, stock) < 1e-5
    assert {each: type(found) for each, found in processors(transformer).items()} == kinds
    assert torch.equal(forward(transformer, call), stock) and everywhere.calls == calls


def test_classes_get_back_exactly_what_they_had() -> None:
    before = {cls: cls.__dict__.get("__init__") for cls in supported_classes()}
    signatures = {cls: inspect.signature(cls.__init__) for cls in before}
    everywhere = Everywhere()
    everywhere.install()
    everywhere.install()
    assert all(cls.__init__ is not before[cls] for cls in before)
    assert {cls: inspect.signature(cls.__init__) for cls in before} == signatures
    everywhere.uninstall()
    everywhere.uninstall()
    assert {cls: cls.__dict__.get("__init__") for cls in supported_classes()} == before


def test_loaded_copied_and_meta_models(tmp_path: Path) -> None:
    model = models()[WAN]
    stock: Any = model.build()
    call = model.inputs(stock)
    stock.save_pretrained(tmp_path)
    with Everywhere() as everywhere:
        loaded = type(stock).from_pretrained(tmp_path).eval()
        assert error(forward(loaded, call), forward(stock, call)) < 1e-5 and everywhere.calls == 2
        copied = copy.deepcopy(loaded)
        assert not any(isinstance(each, Processor) for each in processors(copied).values())
        with torch.device("meta"):
            empty = type(stock).from_config(stock.config)
        filled = empty.to_empty(device="cpu").eval()
        filled.load_state_dict(stock.state_dict())
        filled.rope = copy.deepcopy(stock.rope)  # no part of what is saved
        assert error(forward(filled, call), forward(stock, call)) < 1e-5 and everywhere.calls == 4
        block = loaded.blocks[0].attn1
        gone = weakref.ref(loaded)
        del loaded
        gc.collect()
        assert gone() is None
        with torch.no_grad():  # a block outlives its transformer
            block(torch.randn(1, 12, 128), None, None, None)
        assert everywhere.calls == 5
    assert not isinstance(block.processor, Processor)


def test_training_and_what_no_backend_can_run_are_stock() -> None:
    model = models()[WAN]
    stock = model.build()
    call = model.inputs(stock)
    with Everywhere() as everywhere:
        transformer = model.build()
        assert torch.equal(gradient(transformer, call), gradient(stock, call)) and everywhere.calls == 0
    with Everywhere("triton") as everywhere:
        assert torch.equal(forward(model.build(), call), forward(stock, call))
    assert everywhere.calls == 0 and everywhere.left.total() == 2 and "triton" in next(iter(everywhere.left))
    with pytest.raises(ValueError, match="backend 'fast' is not one of auto, triton, cpu"):
        Everywhere("fast")


PROJECT = '''
import torch
from diffusers import CogVideoXTransformer3DModel, HunyuanVideoTransformer3DModel, WanTransformer3DModel

import pytest

SIZES = {size}


@pytest.fixture(scope="module")
def known():
    return torch.load({path!r}, weights_only=True)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_forward(name, known):
    torch.manual_seed(1)
    model = globals()[name](**SIZES[name]).eval()
    model.load_state_dict(known[name]["weights"])
    with torch.no_grad():
        out = model(**known[name]["call"], return_dict=False)[0]
    assert (out - known[name]["out"]).norm() <= 1e-5 * known[name]["out"].norm()


def test_without_a_model():
    assert True
'''


def project(folder: Path) -> None:
    """Another project, which knows nothing of vidaccel: its tests, and what stock gives."""
    known: dict[str, Any] = {}
    sizes: dict[str, Any] = {}
    for name in (WAN, "CogVideoXTransformer3DModel", "HunyuanVideoTransformer3DModel, text"):
        model: Any = models()[name].build()
        kind, call = type(model).__name__, models()[name].inputs(model)
        sizes[kind] = {key: each for key, each in dict(model.config).items() if not key.startswith("_")}
        known[kind] = {"weights": model.state_dict(), "call": call, "out": forward(model, call)}
    torch.save(known, folder / "known.pt")
    (folder / "test_project.py").write_text(textwrap.dedent(PROJECT.format(size=sizes, path=str(folder / "known.pt"))))


def run(folder: Path, *options: str) -> str:
    """What pytest prints about that project."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    for name in [name for name in environment if name.startswith("PYTEST_XDIST") or name == "COLUMNS"]:
        del environment[name]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_project.py"],
                          cwd=folder, env=environment, capture_output=True, text=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_another_projects_tests_run_under_it(tmp_path: Path) -> None:
    project(tmp_path)
    calls = 2 + 3 + 4
    told = run(tmp_path, "-p", "vidaccel.pytest_plugin", "--vidaccel-backend", "reference", "--junitxml", "found.xml")
    assert f"{calls} attention calls in 3 tests went through vidaccel (reference), of 3 transformers" in told
    assert "4 passed" in told
    assert len(re.findall('name="vidaccel_calls" value="[1-9]', (tmp_path / "found.xml").read_text())) == 3
    told = run(tmp_path, "-p", "vidaccel.pytest_plugin", "-n", "1")
    assert f"{calls} attention calls in 3 tests went through vidaccel (auto), of 3 transformers" in told


class Lines:
    """Stands for pytest's terminal: keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def section(self, title: str) -> None: ...

    def line(self, text: str, **markup: Any) -> None:
        self.lines.append((text, markup))


def test_nothing_that_ran_and_what_was_left_are_told() -> None:
    everywhere, item = Everywhere("triton"), SimpleNamespace(user_properties=[("own", "kept")])
    counting, told = Counting(everywhere), Lines()
    everywhere.left["no GPU"] += 2
    counting.pytest_runtest_teardown(item)
    counting.pytest_runtest_logreport(SimpleNamespace(when="call", user_properties=item.user_properties))
    counting.pytest_runtest_logreport(SimpleNamespace(when="teardown", user_properties=item.user_properties))
    counting.pytest_terminal_summary(told)
    first, second, third = told.lines
    assert first[0].startswith("0 attention calls in 0 tests went through vidaccel (triton)") and first[1]["yellow"]
    assert second[0].startswith("2 calls were left to stock") and third[0].endswith("2 times here: no GPU")


def test_subclasses_are_patched_and_families_are_not_asked_twice() -> None:
    wan: Any = type(models()[WAN].build())

    class Own(wan):  # type: ignore[misc]
        pass

    config = dict(models()[WAN].build().config)
    with Everywhere() as everywhere:
        made: nn.Module = Own(**{name: each for name, each in config.items() if not name.startswith("_")}).eval()
        forward(made, models()[WAN].inputs(made))
    assert everywhere.transformers == 1 and everywhere.calls == 2
