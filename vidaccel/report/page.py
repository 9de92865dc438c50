"""From a record and its video files to one self-contained HTML page."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidaccel.files import write_text
from vidaccel.report import view
from vidaccel.report.html import data_uri, render_page

REPORT_NAME = "report.html"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_report(record: Mapping[str, Any], folder: Path | str) -> Path:
    """Write ``report.html`` into `folder`, whole or not at all.

    The page holds its videos, pictures, style and script itself and makes no request; its Content-Security-Policy
    forbids any, and runs no script but its own.

    Args:
        record: the figures, as in ``record.json``. Only ``files`` with ``dense``, and with ``fast`` where there is a
            ``method``, is required; what else is missing or null shows as not measured, with the record's reason
            where it gives one.
        folder: where the record's files lie and the page goes.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: `folder`, or a file that the record names, is not there.
        ValueError: the record names no dense or fast video, a file outside `folder`, or one that is not what it
            should be.
        OSError: `folder` cannot be written to.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"the report's folder {str(folder)!r} does not exist")
    needed = ("dense",) if view.is_dense(record) else ("dense", "fast")
    files = {name: _file(record, folder, name) for name in needed}
    named = record["files"]
    for name in sorted(set(named) - set(files)):
        _file(record, folder, name)
    videos = {name: _video_uri(path) for name, path in files.items()}
    page = render(record, videos)
    return write_text(folder / REPORT_NAME, page)


def render(record: Mapping[str, Any], videos: Mapping[str, str]) -> str:
    """The page's HTML, from a record and the ``data:`` URIs of its ``dense`` video and of its ``fast`` one, if any."""
    return render_page("template.html.j2", styles=["report.css"], scripts=["player.js"] * ("fast" in videos),
                       videos=videos, mask=_mask(record), **view.page_values(record))  # fmt: skip


def _file(record: Mapping[str, Any], folder: Path, name: str) -> Path:
    """The path of a file that the record names, which must exist inside `folder`."""
    files = record.get("files")
    value = files.get(name) if isinstance(files, Mapping) else None
    if not isinstance(value, str) or not value:
        raise ValueError(f"the record names no {name!r} file: files[{name!r}] is {value!r}, not a path in the folder")
    path = folder / value
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"files[{name!r}] of the record is {value!r}, which lies outside the report's folder")
    if not path.is_file():
        raise FileNotFoundError(f"files[{name!r}] of the record is {value!r}, which is not in {str(folder)!r}")
    return path


def _video_uri(path: Path) -> str:
    data = path.read_bytes()
    if data[4:8] != b"ftyp":
        raise ValueError(f"{path.name!r} is not an MP4 video")
    return data_uri("video/mp4", data)


def _mask(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """URI and size in pixels of the record's mask picture."""
    encoded = record.get("mask_png")
    if encoded is None:
        return None
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, TypeError, ValueError):
        data = b""
    if not data.startswith(_PNG_SIGNATURE) or len(data) < 24:
        raise ValueError("mask_png of the record is not a base64 PNG picture")
    width, height = struct.unpack(">II", data[16:24])
    return {"uri": data_uri("image/png", data), "width": width, "height": height}
