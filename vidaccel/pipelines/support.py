"""What was shown to work with which class: the record that the project's tests of every class leave, and its table."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

YES, REFUSED = "yes", "refused"
FEATURES = {
    "dense": "dense", "sparse": "full mask", "methods": "methods", "cache": "cache", "lora": "LoRA",
    "fused projections": "fused", "offload": "offload", "compile": "compile", "layerwise casting": "fp8 storage",
    "int8 weights": "int8", "pipeline": "pipeline",
}  # fmt: skip
"""What is tested of each class, with the heading of its column."""


def recorded() -> dict[str, Any]:
    """``{"versions": {library: version}, "models": {name: {"transformer", "family", "features": {feature: said}}}}``;
    `said` is "yes", "refused" or why it was not tried."""
    text = resources.files(__package__).joinpath("support.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def table(found: dict[str, Any]) -> str:
    """A record as a Markdown table: a line for each model, "-" for what was not tried."""
    heads = ["model", "family", *FEATURES.values()]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, model in sorted(found["models"].items(), key=lambda item: (item[1]["family"], item[0])):
        said = [model["features"].get(feature, "") for feature in FEATURES]
        cells = [each if each in (YES, REFUSED) else "-" for each in said]
        lines.append(f"| {' | '.join([name, model['family'], *cells])} |")
    return "\n".join(lines)
