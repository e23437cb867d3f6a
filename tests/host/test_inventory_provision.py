# SPDX-License-Identifier: GPL-2.0-or-later
"""[provision] of a lab file: what is refused, with which words, and what a good one becomes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_seves.errors import InventoryError
from pytest_seves.host.inventory import load_host
from pytest_seves.host.inventory_provision import FileToPut, Provision, VmmBuild

HEAD = '[host]\naddress = "192.0.2.10"\nuser = "seves"\n[firmware]\npath = "/x.fd"\n'
HASH = "0" * 64
FILE = f'[[provision.file]]\nsource = "a"\npath = "/a"\nsha256 = "{HASH}"\n'


def refusal(directory: Path, text: str) -> str:
    """The message with which a file is refused, whose section begins in line 6."""
    (directory / "lab1.toml").write_text(HEAD + text)
    with pytest.raises(InventoryError) as caught:
        load_host("lab1", directory)
    return str(caught.value).replace(f"{directory}/", "")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('package = ["x"]', "provision.package: unknown key; did you mean 'packages'?"),
        ("reboot = true", "provision.reboot: unknown key; known are packages, "),
        ('packages = "x"', "provision.packages: wanted a list of package names"),
        ('packages = ["bash-"]', "provision.packages: wanted a list of package names"),
        ('packages = ["-oX=y"]', "provision.packages: wanted a list of package names"),
        ('packages = ["a b"]', "provision.packages: wanted a list of package names"),
        ('packages = {pacman = ["x"]}', "provision.packages: wanted a list, or lists under apt, dnf, zypper"),
        ('groups = ["a,b"]', 'provision.groups: wanted a list of groups, such as ["kvm"]'),
        ("udev = 1", "provision.udev: wanted true or false; got 1"),
        ("memlock = true", 'provision.memlock: wanted "unlimited", or a number of KiB; got True'),
        ('module_parameters = {kvm = {x = "1"}}', "provision.module_parameters: wanted kvm_amd and ccp"),
        ('module_parameters = {ccp = {x = "1 y"}}', '{sev_es = "1"}; x is not'),
        ("module_parameters = {ccp = {x = 1}}", '{sev_es = "1"}; x is not'),
        ("file = 1", "provision.file: wanted [[provision.file]] sections; got 1"),
        ("vmm = {}", "provision.vmm: wanted tarball, sha256 and into, or path alone"),
        ('vmm = {path = "/x", into = "/y"}', "provision.vmm: wanted tarball, sha256 and into, or path alone"),
        ('vmm = {path = "x"}', "provision.vmm.path: wanted an absolute path on the host; got 'x'"),
    ],
)
def test_a_line_that_is_refused(tmp_path: Path, line: str, wanted: str) -> None:
    """Each mistake is named with its line and key."""
    message = refusal(tmp_path, f"[provision]\n{line}\n")
    assert message.startswith("lab1.toml:7: provision.")
    assert wanted in message


def test_mistakes_in_one_of_several_files(tmp_path: Path) -> None:
    """The line is that of the file that is wrong; all mistakes are told."""
    text = FILE + FILE.replace('path = "/a"', 'path = "b"').replace("sha256", "sha")
    assert refusal(tmp_path, text).splitlines() == [
        "lab1.toml:10: provision.file.2: missing key: sha256",
        "lab1.toml:12: provision.file.2.path: wanted an absolute path on the host; got 'b'",
        "lab1.toml:13: provision.file.2.sha: unknown key; did you mean 'sha256'?",
    ]
    assert "two have the same" in refusal(tmp_path, FILE + FILE)


def test_the_model_is_not_provisioned(tmp_path: Path) -> None:
    """The model runs on this machine, which is not to be changed."""
    (tmp_path / "model.toml").write_text('[host]\nmodel = "linux-6.1"\n[provision]\nudev = true\n')
    with pytest.raises(InventoryError, match=r"model\.toml:3: provision: goes with a real host only"):
        load_host("model", tmp_path)


def test_a_good_section(tmp_path: Path) -> None:
    """What each key becomes; a source need not be there until it is uploaded."""
    text = f"""
        [provision]
        packages = {{apt = ["ovmf", "g++"], dnf = ["edk2-ovmf"]}}
        groups = ["kvm"]
        udev = true
        memlock = 4096
        [provision.module_parameters]
        kvm_amd = {{sev = "1", sev_es = "1"}}
        [provision.vmm]
        tarball = "qemu.tar"
        sha256 = "{HASH}"
        into = "/opt/qemu"
    """
    (tmp_path / "lab1.toml").write_text(HEAD + text + FILE)
    assert load_host("lab1", tmp_path).provision == Provision(
        packages=(("apt", ("ovmf", "g++")), ("dnf", ("edk2-ovmf",))),
        module_parameters=(("kvm_amd", (("sev", "1"), ("sev_es", "1"))),),
        groups=("kvm",),
        udev=True,
        memlock="4096",
        file=(FileToPut(tmp_path / "a", "/a", HASH),),
        vmm=VmmBuild(tmp_path / "qemu.tar", HASH, "/opt/qemu"),
    )
    (tmp_path / "lab1.toml").write_text(HEAD)
    assert load_host("lab1", tmp_path).provision is None


def test_the_example_in_the_lab(tmp_path: Path, project: Path) -> None:
    """The commented section of lab1.toml is right once it is uncommented and its hashes are filled in."""
    text = (project / "lab/lab1.toml").read_text()
    head, section = text[: text.index("# [provision]")], text[text.index("# [provision]") :]
    live = "\n".join(line.removeprefix("# ") for line in section.splitlines())
    live = live.replace('sha256 = "..."', f'sha256 = "{HASH}"').replace(", zypper = [...]", "")
    (tmp_path / "lab1.toml").write_text(head + live)
    provision = load_host("lab1", tmp_path).provision
    assert provision is not None
    assert provision.vmm is not None
    assert provision.file
