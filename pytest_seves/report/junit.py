# SPDX-License-Identifier: GPL-2.0-or-later
"""JUnit results that obey their schema: ``--junitxml FILE`` with pytest's default, ``junit_family = xunit2``.

pytest writes the properties of a test into its ``testcase``, where the schema that xunit2 follows has no
place for them, and readers that validate (Jenkins' xUnit plugin) refuse the whole file. They are moved to the
test's ``system-out``, a line each as ``[[PROPERTY|name=value]]``, which is how tools write and read them
there. With ``junit_family = xunit1``, which follows no schema, they stay where pytest puts them.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path


def obey_schema(file: Path) -> None:
    """Move the properties of each test in `file`."""
    tree = ET.parse(file)
    for case in tree.iter("testcase"):
        properties = case.find("properties")
        if properties is None:
            continue
        case.remove(properties)
        lines = [f"[[PROPERTY|{found.get('name')}={found.get('value')}]]\n" for found in properties]
        out = case.find("system-out")
        if out is None:
            out = ET.SubElement(case, "system-out")
        out.text = "".join(lines) + (out.text or "")
    partial = file.with_name(f"{file.name}.partial")
    tree.write(partial, encoding="utf-8", xml_declaration=True)
    partial.replace(file)
