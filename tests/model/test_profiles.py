# SPDX-License-Identifier: GPL-2.0-or-later
"""Host profiles and their settings."""

from __future__ import annotations

import pytest

from pytest_seves.model.host import ModelHost
from pytest_seves.model.profiles import UnknownProfile, resolve


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linux-2.4", "no model profile 'linux-2.4'; there is: linux-6.1"),
        ("linux-6.1:sev_se=N", "has no setting 'sev_se'"),
        ("linux-6.1:sev_es", "wanted setting=number"),
    ],
)
def test_unknown_profile_or_setting_is_refused(text: str, message: str) -> None:
    """A misspelt profile names what there is, before any process starts."""
    with pytest.raises(UnknownProfile, match=message):
        ModelHost.start(text)


@pytest.mark.parametrize("setting", ["sev=N", "sev_es=N", "es_asids=0"])
def test_host_without_es(setting: str) -> None:
    """Each of these takes SEV-ES away."""
    assert not resolve(f"linux-6.1:{setting}").es_usable


def test_cpuid_follows_the_asid_counts() -> None:
    """Leaf 0x8000001F: ECX is the highest ASID, EDX the lowest for SEV."""
    leaf = resolve("linux-6.1:es_asids=4,sev_asids=6").host_leaf(0x8000001F, 0)
    assert leaf[2:] == (10, 5)
