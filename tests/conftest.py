"""What every test starts from: no network, no display, one seed, and no GPU tests where there is no GPU."""

from __future__ import annotations

import importlib.util
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before diffusers is imported: it is read once
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

from tests.pipelines.support import repeats_the_class

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make support` and nox test every variant of a transformer class; see tests/pipelines/support.py."""
    parser.addoption("--all-variants", action="store_true", help="every feature on every variant of a class")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests marked `gpu` where torch sees no GPU, those marked `torchao` where that is not installed, and what
    a class's first variant shows for the others."""
    here = {"gpu": torch.cuda.is_available(), "torchao": importlib.util.find_spec("torchao") is not None}
    missing = [name for name in here if not here[name]]
    without = [item for item in items if any(item.get_closest_marker(name) for name in missing)]
    if not config.getoption("--all-variants"):
        without += [item for item in items if repeats_the_class(item) and item not in without]
    if without:
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test draws the same random numbers, whatever ran before it."""
    torch.manual_seed(0)
