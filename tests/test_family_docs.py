"""docs/families.md against the code: which pipelines are served, how many, and what is said of real sizes."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import diffusers
import pytest
from diffusers import DiffusionPipeline

from vidaccel import Site, TokenLayout
from vidaccel.methods import method
from vidaccel.pipelines import families

INDEX = Path(__file__).parents[1] / "docs" / "families.md"
COUNTED_ON = "0.42.1"
TRANSFORMERS = {name: family for family in families().values() for name in family.transformers}


@functools.cache
def served() -> dict[str, str]:
    """Pipeline classes that diffusers exports and whose transformer has a family, with the transformer's class.

    Those that need a library which is not installed count, too: they are looked up where they are defined.
    """
    import diffusers.pipelines as home

    found = {}
    for info in pkgutil.walk_packages(home.__path__, f"{home.__name__}."):
        if not info.name.rpartition(".")[2].startswith("pipeline_"):
            continue
        module = importlib.import_module(info.name)
        for name, cls in vars(module).items():
            own = isinstance(cls, type) and issubclass(cls, DiffusionPipeline) and cls.__module__ == info.name
            if own and name in dir(diffusers) and (kind := transformer_of(cls)):
                found[name] = kind
    return found


def transformer_of(pipeline: type) -> str | None:
    """The class that a pipeline says its transformer is of, if it has a family."""
    parameter = inspect.signature(pipeline).parameters.get("transformer")
    said = set(re.findall(r"\w+", str(parameter.annotation))) if parameter else set()
    return next(iter(said & TRANSFORMERS.keys()), None)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table whose first heading is `heading`, backticks taken off."""
    lines = INDEX.read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


@pytest.mark.skipif(diffusers.__version__ != COUNTED_ON, reason=f"the count is of diffusers {COUNTED_ON}")
def test_the_index_names_every_pipeline_that_is_served_and_counts_them() -> None:
    told = {name: row[0].strip("`") for row in rows("transformer") for name in re.findall(r"`(\w+)`", row[2])}
    assert told == served()
    number = re.search(r"\*\*(\d+) pipeline classes\*\*", INDEX.read_text(encoding="utf-8"))
    assert number is not None and int(number[1]) == len(told)


def test_the_index_names_every_transformer_its_family_and_its_page() -> None:
    told = {row[0].strip("`"): row[1].strip("`") for row in rows("transformer")}
    assert told == {name: family.name for name, family in TRANSFORMERS.items()}
    for transformer, name, _, link in rows("transformer"):
        page = (INDEX.parent / re.search(r"\]\(([^)]+)\)", link)[1]).read_text(encoding="utf-8")  # type: ignore[index]
        assert transformer in page and name in page, transformer


def test_the_families_without_caching_are_named() -> None:
    text = INDEX.read_text(encoding="utf-8")
    told = re.search(r"cannot be passed by: ([^.]+)\.", text)
    assert told is not None
    refused = {name for name, family in families().items() if not family.cacheable}
    assert set(re.findall(r"`(\w+)`", told[1])) == refused


@pytest.mark.parametrize("row", rows("model"), ids=lambda row: f"{row[0]}, {row[1]}")
def test_densities_of_real_sizes(row: list[str]) -> None:
    _, _, grid, text, name, density = row
    family = families()[name.strip("`")]
    place = "text_before" if family.published == "cogvideox" else "text_after"
    layout = TokenLayout.parse(grid, **{place: int(text)})
    site = Site(5, 30, 30, 50, "cond", "transformer", layout)
    plan = method("radial", family.published).plan(None, None, None, site, {})
    assert f"{plan.density(layout).video_density:.3f}" == density
