"""The house rules of docs/architecture.md, read off the source: who imports whom, what loads, how long files are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vidaccel"
FILES = sorted(PACKAGE.rglob("*.py"))

BASE = {"layout", "mask", "plan", "site", "schedule"}
RUN = BASE | {"patterns", "methods", "compensation", "caching", "planning", "kernels", "parallel", "pipelines"}
PUBLIC = RUN | {"session", "clock", "debug", "summary", "profile", "api", "miniature", "_version", "files"}
PUBLIC |= {"processes", "asked", "costs", "heads", "strict", "architecture", "calibration", "tensors"}
PUBLIC |= {"guidance"}
# A room is a file or folder of the package. Each may import itself, and of the others only these.
MAY_IMPORT: dict[str, set[str]] = {
    "_version": set(),
    "files": set(),
    "processes": set(),
    "layout": set(),
    "registry": set(),
    "mask": set(),
    "plan": {"layout", "mask"},
    "site": {"layout", "plan"},
    "schedule": {"layout", "plan", "site"},
    "clock": set(),
    "debug": set(),
    "summary": {"layout", "mask", "plan", "site", "caching", "step_map"},
    "step_map": {"caching"},
    "triton_launch": set(),
    "kernels": {"layout", "mask", "plan", "triton_launch"},
    "planning": {"layout", "mask", "plan", "site", "triton_launch"},
    "costs": {"layout", "mask", "plan", "kernels"},
    "patterns": {"registry", "layout", "mask", "plan"},
    "methods": BASE | {"registry", "planning", "patterns", "heads", "profile"},
    "compensation": BASE | {"registry", "planning"},
    "statics": BASE | {"costs", "methods"},
    "caching": BASE | {"registry", "architecture", "files", "miniature", "parallel", "strict"},
    "pipelines": BASE | {"kernels"},
    "parallel": BASE | {"clock", "kernels", "pipelines", "processes"},
    "strict": set(),
    "architecture": {"strict"},
    "stored": {"layout", "patterns", "strict"},
    "heads": BASE | {"patterns", "planning", "strict", "architecture", "stored"},
    "target": set(),
    "points": {"strict", "target"},
    "stored_cache": {"caching", "miniature", "strict"},
    "profile": BASE | {"files", "miniature", "heads", "strict", "architecture", "caching", "points", "stored_cache",
                       "target"},
    "everywhere": {"kernels", "mask", "patched", "pipelines"},
    "pytest_plugin": {"everywhere"},
    "watch": {"patched", "pipelines"},
    "patched": RUN,
    "setting": RUN | {"costs", "patched"},
    "calls": RUN | {"costs", "debug", "setting", "statics", "summary"},
    "asked": RUN | {"patched", "setting", "profile", "stored_cache"},
    "session": RUN | {"calls", "clock", "patched", "setting", "statics", "summary", "watch"},
    "guidance": RUN | {"clock", "parallel", "session", "watch"},
    "api": RUN | {"asked", "guidance", "session", "summary", "profile"},
    "tensors": RUN | {"asked", "calls", "profile", "setting", "summary"},
    "calibration": RUN | {"_version", "api", "architecture", "clock", "costs", "files", "guidance", "heads", "parallel",
                          "patched", "profile", "processes", "session", "setting"},
    "miniature": {"_version"},
    "__init__": PUBLIC,
    "eval": PUBLIC | {"__init__"},
    "bench": PUBLIC | {"__init__", "eval"},
    "batch": PUBLIC | {"__init__", "eval"},
    "tune": PUBLIC | {"__init__", "eval", "patched", "points", "stored_cache", "target"},
    "__main__": {"cli"},
    "scale": BASE | {"costs", "eval", "methods", "parallel", "statics"},
    "report": {"eval", "files", "layout", "mask", "plan"},
    "cli": PUBLIC | {"__init__", "eval", "batch", "bench", "report", "scale", "target", "tune"},
}
# Of these libraries, only the named rooms know. Everything else about a host model goes through them.
ONLY_IN: dict[str, set[str]] = {
    "diffusers": {"pipelines", "parallel", "session", "caching", "miniature", "eval", "bench", "cli", "__init__"},
    "transformers": {"miniature", "eval", "cli"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "typer": {"cli"},
    "lpips": {"eval"},
    "optuna": {"tune"},
}
# Distributions that are not named as their modules are; jinja2 is what brings markupsafe.
DISTRIBUTION = {"PIL": "pillow", "skimage": "scikit-image", "markupsafe": "jinja2", "yaml": "pyyaml"}
# What an eval has written, and how its files are read: nothing that runs a model.
REPORT_READS = {"caches", "clip", "paired", "runner", "settings", "store", "table", "video"}
NO_PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def module_of(path: Path) -> str:
    """Dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The first name below `vidaccel`; "__init__" for the package itself and for names that it defines."""
    name = (module.split(".") + ["__init__"])[1]
    return name if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file() else "__init__"


def imports_of(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Dotted names of all imports of a module, in functions and under conditions too, and by `import_module`."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join(above + ([node.module] if node.module else []))
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and _name(node.func) in ("import_module", "__import__"):
            yield from _text(node.args[0])


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _text(argument: ast.expr) -> Iterator[str]:
    """The constant start of a string or f-string."""
    first = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        yield first.value.rstrip(".")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> list[str]:
    return list(imports_of(parse(path), module_of(path), path.name == "__init__.py"))


def test_reader_sees_every_kind_of_import() -> None:
    source = """
import torch.nn as nn
from vidaccel import plan
def late():
    from .op import run
    from ..plan import BlockMask
    importlib.import_module(f"vidaccel.kernels.{name}")
    __import__("triton.language")
"""
    assert sorted(imports_of(ast.parse(source), "vidaccel.kernels.cpu", False)) == [
        "torch.nn", "triton.language", "vidaccel.kernels", "vidaccel.kernels.op.run", "vidaccel.plan",
        "vidaccel.plan.BlockMask",
    ]  # fmt: skip
    assert list(imports_of(ast.parse("from . import cpu"), "vidaccel.kernels", True)) == ["vidaccel.kernels.cpu"]
    assert [room_of(name) for name in ("vidaccel", "vidaccel.enable", "vidaccel.plan.BlockMask")] == [
        "__init__", "__init__", "plan",
    ]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_import_direction(path: Path) -> None:
    room = room_of(module_of(path))
    assert room in MAY_IMPORT, f"{room} is a new room: give it a row in MAY_IMPORT and in docs/architecture.md"
    ours = {room_of(name) for name in imports(path) if name.split(".")[0] == "vidaccel"} - {room}
    assert ours <= MAY_IMPORT[room], f"{room} may not import {sorted(ours - MAY_IMPORT[room])}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "report").glob("*.py")), ids=module_of)
def test_report_reads_records_alone(path: Path) -> None:
    parts = [name.split(".") for name in imports(path)]
    read = {name[2] for name in parts if name[:2] == ["vidaccel", "eval"] and len(name) > 2}
    assert read <= REPORT_READS, f"of an eval, the report may import only {sorted(REPORT_READS)}"
    assert not {"diffusers", "transformers"} & {name[0] for name in parts}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imports(path)}
    room = room_of(module_of(path))
    strays = {name for name in libraries if room not in ONLY_IN.get(name, {room})}
    assert not strays, f"{room} may not import {sorted(strays)}"
    assert may_use_triton(path) or "triton" not in libraries, (
        "triton is imported only by triton*.py of vidaccel/kernels and vidaccel/planning, and timed by bench/measure.py"
    )


def may_use_triton(path: Path) -> bool:
    """Files that hold kernels, which are imported by the first call that needs one, and the one that times them."""
    room, name = path.parent.relative_to(PACKAGE).as_posix(), path.name
    return (room in ("kernels", "planning") and name.startswith("triton")) or (room, name) == ("bench", "measure.py")


def test_every_library_is_declared() -> None:
    """What the package imports stands in pyproject.toml, and does not just happen to come with something else."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    requirements = project["dependencies"] + optional["demo"] + optional["lpips"] + optional["tune"]
    declared = {re.split(r"[^\w-]", requirement)[0].replace("-", "_") for requirement in requirements}
    used = {name.split(".")[0] for path in FILES for name in imports(path)} - sys.stdlib_module_names - {"vidaccel"}
    needed = {DISTRIBUTION.get(name, name).replace("-", "_") for name in used}
    assert needed <= declared, f"not declared in pyproject.toml: {sorted(needed - declared)}"


def test_no_import_cycle_between_rooms() -> None:
    """The table itself has a direction: rooms can be removed one by one, each when nothing it imports is left."""
    left = {room: set(others) for room, others in MAY_IMPORT.items()}
    while free := {room for room, others in left.items() if not others & left.keys()}:
        left = {room: others for room, others in left.items() if room not in free}
    assert not left, f"rooms that import each other: {sorted(left)}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_pickles(path: Path) -> None:
    assert not NO_PICKLES & {name.split(".")[0] for name in imports(path)}
    for call in (node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)):
        options = {option.arg: option.value for option in call.keywords}
        unpickles = options.get("allow_pickle")
        assert unpickles is None or ast.unparse(unpickles) == "False", f"line {call.lineno} allows pickles"
        if ast.unparse(call.func) == "torch.load":
            assert "weights_only" in options, f"line {call.lineno}: torch.load without weights_only=True"
            assert ast.unparse(options["weights_only"]) == "True", f"line {call.lineno}: weights_only is not True"


def test_no_long_file() -> None:
    lengths = {module_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: lines for name, lines in lengths.items() if lines > 400}


def test_package_is_small() -> None:
    """All that the wheel ships stays under 3 MB unpacked. Weights live in the miniatures."""
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert sum(path.stat().st_size for path in files) < 3_000_000


def test_import_is_light() -> None:
    """`import vidaccel` needs no Triton, plotting, video, template or command-line library."""
    # None in sys.modules makes an import of that name fail; torch and diffusers themselves get by without these.
    heavy = ["triton", "matplotlib", "skimage", "imageio", "jinja2", "typer", "optuna"]
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy})); import vidaccel; print(vidaccel.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == PACKAGE / "__init__.py"


def test_tracked_files_name_no_machine() -> None:
    """No path of a developer's machine and no registry setting is in a file that git keeps."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    # Written in pieces, so that this file passes its own test.
    machine = re.compile(r"/(work|far" + r"m|home|root)/|/tm" + r"p/[A-Za-z][\w-]*/|index-" + r"url")
    found = []
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 1 << 20 and b"\0" not in (data := path.read_bytes()):
            found += [f"{name}: {hit.group()}" for hit in machine.finditer(data.decode("utf-8", "replace"))]
    assert not found
