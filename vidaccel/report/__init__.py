"""The HTML page and pictures of a record. Reads records and video files, never models."""

from __future__ import annotations

from vidaccel.report.page import write_report
from vidaccel.report.pictures import mask_picture

__all__ = ["mask_picture", "write_report"]
