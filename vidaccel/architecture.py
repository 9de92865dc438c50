"""What a denoiser is, as a profile remembers it: its class, its shape and its configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from vidaccel import strict

MAX_EXPERTS, MAX_LAYERS, MAX_HEADS = 8, 1024, 1024
MAX_NAME = 256
STORAGE = ("quantization_config",)
"""Of a configuration, what says how weights are stored, not what the model is."""
FIELDS = ("class", "layers", "heads", "config", "fingerprint")


class Facts(Protocol):
    """What is asked of a denoiser; `vidaccel.methods.ModelFacts` are such."""

    @property
    def name(self) -> str:
        """Of its class."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its configuration."""

    @property
    def layers(self) -> int:
        """Of its self-attention."""

    @property
    def heads(self) -> int:
        """Of its self-attention."""


def fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, in hexadecimal, without what says where and with which version it was saved."""
    text = json.dumps(_plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def describe(models: Mapping[str, Facts]) -> dict[str, dict[str, Any]]:
    """Denoisers as a profile's `model` has them, JSON-ready: each by its expert's name.

    ``config`` is there beside its ``fingerprint`` so that a refusal can say what differs.
    """
    return {
        expert: {"class": each.name, "layers": each.layers, "heads": each.heads, "config": _plain(each.config),
                 "fingerprint": fingerprint(each.config)}
        for expert, each in models.items()
    }  # fmt: skip


def difference(known: Mapping[str, Any], facts: Facts) -> str | None:
    """How a denoiser differs from one that `describe` gave; None where it does not.

    Names that only one of two configurations has do not count: versions of diffusers add and drop some.
    """
    if known["class"] != facts.name:
        return f"it was made for a {known['class']}, not a {facts.name}"
    for what, count in (("layers", facts.layers), ("heads", facts.heads)):
        if known[what] != count:
            return f"it was made for {known[what]} {what}, the model has {count}"
    if known["fingerprint"] == fingerprint(facts.config):
        return None
    made, here = known["config"], _plain(facts.config)
    differ = [name for name in made if name in here and here[name] != made[name]]
    told = (f"{name} is {strict.shown(here[name])}, there {strict.shown(made[name])}" for name in differ)
    return f"its configuration differs from the one it was made for: {'; '.join(told)}" if differ else None


def checked(where: str, value: Any) -> dict[str, dict[str, Any]]:
    """What `describe` gave, read from a file.

    Raises:
        ValueError: it is not that.
    """
    if not isinstance(value, dict) or not 1 <= len(value) <= MAX_EXPERTS:
        raise ValueError(f"{where} is {strict.shown(value)}, not an object of 1 to {MAX_EXPERTS} experts")
    for expert, each in value.items():
        here = f"{where}, expert {strict.shown(expert)}"
        strict.names(here, each, FIELDS, FIELDS)
        strict.string(f"{here}: class", each["class"], MAX_NAME)
        strict.whole(f"{here}: layers", each["layers"], 1, MAX_LAYERS)
        strict.whole(f"{here}: heads", each["heads"], 1, MAX_HEADS)
        if not isinstance(each["config"], dict) or each["fingerprint"] != fingerprint(each["config"]):
            raise ValueError(f"{here}: fingerprint is not that of its config")
    return value


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back, so that tuples and lists are the same."""
    kept = {name: item for name, item in config.items() if not name.startswith("_") and name not in STORAGE}
    plain: dict[str, Any] = json.loads(json.dumps(kept, sort_keys=True, default=str))
    return plain
