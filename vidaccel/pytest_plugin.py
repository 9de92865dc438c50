"""Run a project's tests with vidaccel under every supported transformer: ``pytest -p vidaccel.pytest_plugin``.

See docs/testing-your-project.md. The tests stay as they are; a line at the end says how many attention calls went
through vidaccel, also of workers of pytest-xdist, whose counts come with their reports.
"""

from __future__ import annotations

from typing import Any

from vidaccel.everywhere import Everywhere

OPTION = "--vidaccel-backend"
CALLS, MODELS, LEFT = "vidaccel_calls", "vidaccel_transformers", "vidaccel_left_to_stock"


class Counting:
    """Installs, counts for each test and tells.

    Args:
        everywhere: what is installed.
    """

    def __init__(self, everywhere: Everywhere) -> None:
        self.everywhere = everywhere
        self.totals = {CALLS: 0, MODELS: 0, LEFT: 0}
        self.tests = 0
        self._told = self._now()

    def _now(self) -> dict[str, int]:
        found = self.everywhere
        return {CALLS: found.calls, MODELS: found.transformers, LEFT: found.left.total()}

    def pytest_runtest_teardown(self, item: Any) -> None:
        """Note what was computed since the last test; fixtures that live longer count with the test that made them."""
        now = self._now()
        item.user_properties += [(name, count - self._told[name]) for name, count in now.items()]
        self._told = now

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add up a test's counts, which its last report has."""
        if report.when == "teardown":
            counts = {name: count for name, count in report.user_properties if name in self.totals}
            self.totals = {name: total + counts.get(name, 0) for name, total in self.totals.items()}
            self.tests += counts.get(CALLS, 0) > 0

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say it, and clearly where nothing ran by vidaccel."""
        terminalreporter.section("vidaccel")
        calls, left = self.totals[CALLS], self.totals[LEFT]
        terminalreporter.line(
            f"{calls} attention calls in {self.tests} tests went through vidaccel ({self.everywhere.backend}), of "
            f"{self.totals[MODELS]} transformers that were made",
            **({} if calls else {"yellow": True, "bold": True}),
        )
        if left:
            terminalreporter.line(f"{left} calls were left to stock, which no backend can run", yellow=True)
            for reason, count in self.everywhere.left.most_common():
                terminalreporter.line(f"  {count} times here: {reason}")

    def pytest_unconfigure(self) -> None:
        """Give everything back."""
        self.everywhere.uninstall()


def pytest_addoption(parser: Any) -> None:
    """Offer a choice of the backend."""
    parser.getgroup("vidaccel").addoption(OPTION, default="auto", help="that computes attention: auto, triton, cpu, "
                                          "flex or reference")  # fmt: skip


def pytest_configure(config: Any) -> None:
    """Patch the classes before any test makes a model."""
    everywhere = Everywhere(config.getoption(OPTION))
    everywhere.install()
    config.pluginmanager.register(Counting(everywhere), "vidaccel-counting")
