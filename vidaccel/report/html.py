"""From a template to one self-contained page: its style and scripts inside, and a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def render_page(template: str, *, styles: Sequence[str], scripts: Sequence[str], **values: Any) -> str:
    """A page's HTML; everything in `values` that is no `Markup` is escaped.

    Args:
        template: name of the file, which gets `values`, ``style``, ``scripts`` and ``policy``.
        styles, scripts: names of files. The page's Content-Security-Policy forbids every request and runs these
            scripts alone.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                              loader=FunctionLoader(asset))  # fmt: skip
    environment.filters["breakable"] = breakable
    code = [asset(name) for name in scripts]
    return environment.get_template(template).render(
        style=Markup("\n".join(map(asset, styles))), scripts=[Markup(each) for each in code],
        policy=Markup(_policy(code)), **values,
    )  # fmt: skip


def asset(name: str) -> str:
    """The text of a file beside this one."""
    return resources.files("vidaccel.report").joinpath(name).read_text(encoding="utf-8")


def breakable(text: str) -> Markup:
    """A label of settings, which may be broken where one of them begins."""
    return Markup("<wbr>").join(re.split(r"(?<=[+(=_-])", text))


def data_uri(kind: str, data: bytes) -> str:
    """Bytes as the address of themselves; `kind` is a media type."""
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def _policy(code: Sequence[str]) -> str:
    digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in code]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return ("default-src 'none'; img-src data:; media-src data: blob:; style-src 'unsafe-inline'; "
            f"script-src {sources}; base-uri 'none'; form-action 'none'")  # fmt: skip
