"""What the tests of every class have proven: ``python -m tests.pipelines.support`` runs them and records it.

The record is vidaccel/pipelines/support.json, which ``vidaccel ls --matrix`` and docs/support.md show. It says of each
model and feature "yes" where every test of the feature passed, "refused" where a clear error refuses it, and else why
it was not tried. A failed test is never recorded: then nothing is written. ``--page`` runs nothing and writes the
page's table from the record as it is.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., None])
RECORD = Path(__file__).parents[2] / "vidaccel" / "pipelines" / "support.json"
TESTS = Path(__file__).with_name("test_conformance.py")
VERSIONS = ("diffusers", "torch", "peft", "torchao")
PAGE = Path(__file__).parents[2] / "docs" / "support.md"
BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"


ALIKE = ("methods", "compile", "lora", "offload", "layerwise casting", "fused projections", "int8 weights")
"""Features in which variants of a class hardly differ: every test run tries the first of them, `--all-variants` all."""


def repeats_the_class(item: pytest.Item) -> bool:
    """Whether a test is one of `ALIKE` with another variant of a class than its first."""
    mark, call = item.get_closest_marker("proves"), getattr(item, "callspec", None)
    if mark is None or call is None or mark.args[0] not in ALIKE:
        return False
    return str(call.params.get("name", call.params.get("model"))) not in first_variants()


@functools.cache
def first_variants() -> frozenset[str]:
    """Of each class the name of its first variant."""
    from tests.pipelines.models import models

    return frozenset({name.split(",")[0]: name for name in reversed(list(models()))}.values())


def proves(feature: str) -> Callable[[Test], Test]:
    """Marks a test as one that shows that a feature works with a model."""
    return pytest.mark.proves(feature)


class Recorder:
    """A pytest plug-in that notes what became of each model's tests."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}
        self.failed: list[str] = []
        self._items: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note what each test stands for."""
        for item in items:
            mark, call = item.get_closest_marker("proves"), getattr(item, "callspec", None)
            if mark is not None and call is not None:
                name = call.params.get("name", call.params.get("model"))
                self._items[item.nodeid] = (str(name), mark.args[0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how one went."""
        if report.failed:
            self.failed.append(report.nodeid)
        if report.nodeid not in self._items or not (report.when == "call" or report.skipped):
            return
        name, feature = self._items[report.nodeid]
        features = self.found.setdefault(name, {})
        said = "refused" if "refused" in report.nodeid else "yes"
        if report.skipped:
            said = str(report.longrepr[2]).removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else "no"
        # "yes" is what all of its tests must say.
        if features.get(feature, "yes") == "yes":
            features[feature] = said


def record() -> dict[str, Any]:
    """As it is written."""
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def between(page: str) -> str:
    """What stands between the markers of a page.

    Raises:
        ValueError: it has not both of them, once each and in their order.
    """
    parts = page.split(BEGIN)
    if len(parts) != 2 or page.count(END) != 1 or END not in parts[1]:
        raise ValueError(f"the page has not one {BEGIN} and then one {END}")
    return parts[1].partition(END)[0].strip()


def shown(page: str, found: dict[str, Any]) -> str:
    """A page with a record's versions and table between its markers.

    Raises:
        ValueError: as `between`.
    """
    from vidaccel.pipelines import support

    between(page)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n{versions}\n\n{support.table(found)}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Run the tests and write the record and the page; 1 where one failed."""
    from vidaccel.files import write_text

    if "--page" not in sys.argv[1:] and (code := run()):
        return code
    write_text(PAGE, shown(PAGE.read_text(encoding="utf-8"), record()))
    return 0


def run() -> int:
    """Run the tests and write the record; 1 where one failed."""
    from tests.pipelines.models import models
    from vidaccel.files import write_text
    from vidaccel.pipelines import family_of

    recorder = Recorder()
    pytest.main(["-q", "-p", "no:cacheprovider", "--all-variants", str(TESTS)], plugins=[recorder])
    if recorder.failed:
        print(f"nothing is recorded: {len(recorder.failed)} failed, such as {recorder.failed[0]}", file=sys.stderr)
        return 1
    made: dict[str, Any] = {}
    for name in sorted(recorder.found):
        transformer = models()[name].build()
        about = {"transformer": type(transformer).__name__, "family": family_of(transformer).name}
        made[name] = {**about, "features": dict(sorted(recorder.found[name].items()))}
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    write_text(RECORD, json.dumps({"versions": versions, "models": made}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
