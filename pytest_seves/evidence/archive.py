# SPDX-License-Identifier: GPL-2.0-or-later
"""The evidence of one launch as one file: a ZIP archive."""

from __future__ import annotations

import io
import zipfile

from .folder import json_file
from .launch import Launch
from .launch_folder import derived_files, fields, raw_files

#: Of every member: the same evidence gives the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def members(launch: Launch) -> dict[str, bytes]:
    """Files by name, as in the launch's folder of a bundle: as recorded, and for people, escaped."""
    return {"launch.json": json_file(fields(launch)), **raw_files(launch), **derived_files(launch)}


def archive(launch: Launch) -> bytes:
    """The ZIP archive; no member leaves the directory that it is unpacked in."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members(launch).items():
            zipped.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()
