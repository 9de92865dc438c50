"""Tests of several processes: they share one pool, and stay together where tests are spread over workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parallel.world import four, world

__all__ = ["four", "world"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One group of all that use the pool; those of four processes only with ``--all-variants``."""
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.xdist_group("parallel"))
    if not config.getoption("--all-variants"):
        many = [item for item in ours if "four" in getattr(item, "fixturenames", ())]
        if many:
            config.hook.pytest_deselected(items=many)
            items[:] = [item for item in items if item not in many]
