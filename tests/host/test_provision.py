# SPDX-License-Identifier: GPL-2.0-or-later
"""A host is brought to what its lab file declares, and exactly back."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.agent.changes import PARTIAL
from pytest_seves.errors import AgentDied, AgentRemoteError, HostError
from pytest_seves.host import provision_steps
from pytest_seves.host.inventory_provision import FileToPut, VmmBuild
from pytest_seves.host.provision_steps import LIMITS, MODPROBE, UDEV
from tests.host.throwaway import RULE, Throwaway, provision, throwaway

__all__ = ["throwaway"]  # a fixture

MODULES = (("kvm_amd", (("sev", "1"), ("sev_es", "1"))),)


def image(tmp_path: Path, path: str, size: int = 5 << 20) -> FileToPut:
    """A file of more than one piece that belongs at `path`."""
    source = tmp_path / "image.fd"
    source.write_bytes(os.urandom(size))
    return FileToPut(source, path, hashlib.sha256(source.read_bytes()).hexdigest())


def build(tmp_path: Path) -> VmmBuild:
    """A tarball with a program, for /opt/vmm/9."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/qemu").write_text("#!/bin/sh\n")
    (tmp_path / "bin/qemu").chmod(0o755)
    tarball = tmp_path / "vmm.tar.gz"
    subprocess.run(["tar", "-czf", tarball, "-C", tmp_path, "bin"], check=True)
    return VmmBuild(tarball, hashlib.sha256(tarball.read_bytes()).hexdigest(), "/opt/vmm/9")


def everything(tmp_path: Path) -> dict[str, Any]:
    """All that needs no package archive and no udev."""
    return {
        "packages": (("any", ("bash",)),),
        "groups": ("kvm",),
        "memlock": "unlimited",
        "file": (image(tmp_path, "/opt/images/deep/image.fd"),),
        "vmm": build(tmp_path),
        "module_parameters": MODULES,
    }


@pytest.mark.parametrize("user", ["root", "seves"])
def test_there_and_back(throwaway: Throwaway, tmp_path: Path, user: str) -> None:
    """check changes nothing; a second apply has nothing to do; revert after it gives the original back."""
    (throwaway.root / MODPROBE.lstrip("/")).write_text("options kvm_amd avic=1\n")
    before = throwaway.state()
    entry = throwaway.entry(user, RULE if user == "seves" else (), **everything(tmp_path))
    done, plan = provision(entry, "check")
    assert not done
    assert throwaway.state() == before
    assert "packages: is all installed; wanted bash: nothing to do" in plan
    assert f"memlock (from the next login) {LIMITS}: is absent" in plan
    done, lines = provision(entry, "apply")
    assert done
    assert lines.startswith(plan)
    assert "lab1: uploading image.fd (5.0 MiB) to /opt/images/deep/image.fd ..." in lines
    assert (throwaway.root / "opt/images/deep/image.fd").read_bytes() == (tmp_path / "image.fd").read_bytes()
    assert os.access(throwaway.root / "opt/vmm/9/bin/qemu", os.X_OK)
    assert f"{user} - memlock unlimited" in (throwaway.root / LIMITS.lstrip("/")).read_text()
    assert "options kvm_amd sev=1 sev_es=1" in (throwaway.root / MODPROBE.lstrip("/")).read_text()
    members = subprocess.check_output(["chroot", throwaway.root, "id", "-nG", user], text=True).split()
    assert "kvm" in members
    after = throwaway.state()
    done, lines = provision(entry, "apply")
    assert done
    assert lines.endswith("lab1: nothing to do")
    assert throwaway.state() == after != before
    assert provision(entry, "revert")[0]
    assert throwaway.state() == before
    assert provision(entry, "revert") == (True, "lab1: nothing to take back")


def test_what_the_user_may_do_alone(throwaway: Throwaway, tmp_path: Path) -> None:
    """A file in the user's own directory needs no root, and no sudo rule."""
    before = throwaway.state()
    entry = throwaway.entry("seves", file=(image(tmp_path, "/home/seves/images/image.fd"),))
    assert provision(entry, "apply")[0]
    assert (throwaway.root / "home/seves/images/image.fd").stat().st_uid != 0
    assert provision(entry, "apply")[1].endswith("nothing to do")
    assert provision(entry, "revert")[0]
    assert throwaway.state().keys() - before.keys() <= {str(throwaway.root / "home/seves/.local")} | {
        str(throwaway.root / f"home/seves/.local/{name}") for name in ("state", "state/pytest-seves")
    }


def test_no_sudo_rule(throwaway: Throwaway, tmp_path: Path) -> None:
    """Without a rule the steps that need root are named, and nothing is done."""
    before = throwaway.state()
    entry = throwaway.entry("seves", **everything(tmp_path))
    with pytest.raises(HostError, match="no sudo rule") as raised:
        provision(entry, "apply")
    for step in ("group kvm", LIMITS, MODPROBE, "/opt/images/deep/image.fd", "/opt/vmm/9"):
        assert step in str(raised.value)
    assert "packages" not in str(raised.value)
    assert throwaway.state() == before


def test_roots_changes_without_a_sudo_rule(throwaway: Throwaway) -> None:
    """A lab file that lost its sudo rule cannot take back what root changed: that is said."""
    assert provision(throwaway.entry("seves", RULE, memlock="4096"), "apply")[0]
    with pytest.raises(HostError, match="taking back what root changed"):
        provision(throwaway.entry("seves"), "revert")


def test_changed_by_somebody_else(throwaway: Throwaway, tmp_path: Path) -> None:
    """What somebody changed after us is left as it is, and said; the rest goes back; it can be settled."""
    before = throwaway.state()
    entry = throwaway.entry(**everything(tmp_path))
    assert provision(entry, "apply")[0]
    limits, program = throwaway.root / LIMITS.lstrip("/"), throwaway.root / "opt/vmm/9/bin/qemu"
    ours = limits.read_text()
    limits.write_text("* - memlock 1\n")
    program.write_text("#!/bin/sh\nexit 1\n")
    done, lines = provision(entry, "revert")
    assert not done
    assert f"{LIMITS}: left as it is: somebody else changed it" in lines
    assert "/opt/vmm/9: left as it is: somebody else changed it" in lines
    assert limits.read_text() == "* - memlock 1\n"
    assert not (throwaway.root / MODPROBE.lstrip("/")).exists()
    assert provision(entry, "check")[0] is False
    limits.write_text(ours)
    program.write_text("#!/bin/sh\n")
    assert provision(entry, "revert")[0]
    assert throwaway.state() == before


def test_applied_over_what_somebody_changed(throwaway: Throwaway) -> None:
    """apply puts the declared content over it and keeps it; revert goes back as far as it is sure of."""
    entry, limits = throwaway.entry(memlock="4096"), throwaway.root / LIMITS.lstrip("/")
    assert provision(entry, "apply")[0]
    limits.write_text("* - memlock 1\n")
    assert provision(entry, "apply")[0]
    assert "memlock 4096" in limits.read_text()
    assert provision(entry, "revert")[0] is False
    assert limits.read_text() == "* - memlock 1\n"


def test_a_lab_file_that_changed_between_two_applies(throwaway: Throwaway) -> None:
    """Two versions, one after the other: revert gives back what was before the first."""
    before = throwaway.state()
    assert provision(throwaway.entry(memlock="4096"), "apply")[0]
    assert provision(throwaway.entry(memlock="8192"), "apply")[0]
    assert provision(throwaway.entry(), "revert")[0]
    assert throwaway.state() == before


@pytest.mark.parametrize("at", ["group kvm", LIMITS, "image.fd", "vmm.tar.gz", MODPROBE])
def test_killed_half_way(throwaway: Throwaway, tmp_path: Path, at: str) -> None:
    """When the agent is killed in the middle, revert gives the original back."""
    before = throwaway.state()
    entry = throwaway.entry(**everything(tmp_path))

    def kill(line: str) -> None:
        if line.endswith("...") and at in line:
            (agent,) = throwaway.agents()
            os.kill(agent, signal.SIGKILL)

    with pytest.raises(AgentDied):
        provision(entry, "apply", kill)
    assert provision(entry, "revert")[0]
    assert throwaway.state() == before


@pytest.mark.parametrize("then", ["apply", "revert"])
def test_killed_in_an_upload(
    throwaway: Throwaway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Half a file on the host is neither in place nor in the way: apply goes on, and revert removes it."""
    before = throwaway.state()
    entry = throwaway.entry(file=(image(tmp_path, "/opt/images/image.fd"),))
    partial = throwaway.root / f"opt/images/image.fd{PARTIAL}"

    def half(source: Path) -> Iterator[bytes]:
        yield source.read_bytes()[:4096]
        yield source.read_bytes()[4096:]  # asked for before the one above is sent
        (agent,) = throwaway.agents()
        os.kill(agent, signal.SIGKILL)
        yield b""

    with monkeypatch.context() as patch:
        patch.setattr(provision_steps, "_pieces", half)
        with pytest.raises(AgentDied):
            provision(entry, "apply")
    assert partial.stat().st_size == 4096
    if then == "apply":
        assert provision(entry, "apply")[0]
        assert (throwaway.root / "opt/images/image.fd").exists()
    assert provision(entry, "revert")[0]
    assert throwaway.state() == before


def test_wrong_and_missing_sources(throwaway: Throwaway, tmp_path: Path) -> None:
    """A source that is not what was pinned, or not there, is refused before anything is changed."""
    before = throwaway.state()
    good = image(tmp_path, "/opt/image.fd")
    wrong = FileToPut(good.source, good.path, "0" * 64)
    for entry in (
        throwaway.entry(file=(wrong,)),
        throwaway.entry(vmm=VmmBuild(good.source, "0" * 64, "/opt/v")),
    ):
        with pytest.raises(HostError, match=rf"image\.fd: wanted sha256 {'0' * 64}, got {good.sha256}"):
            provision(entry, "apply")
    missing = FileToPut(tmp_path / "none.fd", good.path, good.sha256)
    with pytest.raises(HostError, match=r"none\.fd: wanted a file of this machine: No such file"):
        provision(throwaway.entry(memlock="4096", file=(missing,)), "apply")
    assert throwaway.state() == before


def test_a_source_that_changes_after_it_was_checked(throwaway: Throwaway, tmp_path: Path) -> None:
    """The hash is checked again on the host, and nothing is put in place."""
    before = throwaway.state()
    good = image(tmp_path, "/opt/image.fd")

    def change(line: str) -> None:
        if line.endswith("..."):
            good.source.write_bytes(b"something else")

    with pytest.raises(AgentRemoteError, match=f"wanted sha256 {good.sha256}, got .* after the upload"):
        provision(throwaway.entry(file=(good,)), "apply", change)
    assert not (throwaway.root / "opt/image.fd").exists()
    assert provision(throwaway.entry(file=(good,)), "revert")[0]
    assert throwaway.state() == before


def test_disk_full(throwaway: Throwaway, tmp_path: Path) -> None:
    """A full disk is called by its name, with the place and the free bytes; nothing partial stays."""
    before = throwaway.state()
    entry = throwaway.entry(file=(image(tmp_path, "/srv/image.fd"),))
    with pytest.raises(
        AgentRemoteError, match=r"/srv/image\.fd: No space left on device; \d+ bytes"
    ) as raised:
        provision(entry, "apply")
    assert raised.value.kind == "ENOSPC"
    assert list((throwaway.root / "srv").iterdir()) == []
    assert provision(entry, "revert")[0]
    assert throwaway.state() == before


def test_not_a_tarball(throwaway: Throwaway, tmp_path: Path) -> None:
    """tar's own words, and nothing half unpacked."""
    bad = image(tmp_path, "/opt/x")
    entry = throwaway.entry(vmm=VmmBuild(bad.source, bad.sha256, "/opt/vmm"))
    with pytest.raises(AgentRemoteError, match="tar: "):
        provision(entry, "apply")
    assert list((throwaway.root / "opt").glob("vmm*")) == []


def test_a_directory_that_is_not_ours(throwaway: Throwaway, tmp_path: Path) -> None:
    """A build is not unpacked over what is there; an image does not replace a directory."""
    (throwaway.root / "opt/vmm/9").mkdir(parents=True)
    done, lines = provision(throwaway.entry(vmm=build(tmp_path)), "apply")
    assert not done
    assert "left to do: VMM in /opt/vmm/9: is something else" in lines
    with pytest.raises(AgentRemoteError, match="got a tree"):
        provision(throwaway.entry(file=(image(tmp_path, "/opt/vmm/9"),)), "apply")


def test_a_link_comes_back(throwaway: Throwaway, tmp_path: Path) -> None:
    """A link is replaced, not followed, and put back."""
    link = throwaway.root / "opt/image.fd"
    link.symlink_to("/etc/hostname")
    entry = throwaway.entry(file=(image(tmp_path, "/opt/image.fd"),))
    assert provision(entry, "apply")[0]
    assert not link.is_symlink()
    assert provision(entry, "revert")[0]
    assert os.readlink(link) == "/etc/hostname"


def test_a_vmm_that_must_be_there(throwaway: Throwaway) -> None:
    """A path is only looked at."""
    assert provision(throwaway.entry(vmm=VmmBuild(path="/bin/sh")), "apply")[0]
    done, lines = provision(throwaway.entry(vmm=VmmBuild(path="/opt/none")), "apply")
    assert not done
    assert "left to do: VMM /opt/none: is no program there; wanted a program" in lines


@pytest.mark.parametrize(
    ("allowed", "users", "said"),
    [
        (False, 0, "reload it or reboot: reload_modules is not set"),
        (True, 2, "reboot, or end the 2 users of /dev/kvm"),
    ],
)
def test_modules_stay_loaded(throwaway: Throwaway, allowed: bool, users: int, said: str) -> None:
    """The file is written; what makes it take effect is said where it may not be done."""
    throwaway.module("kvm_amd", users, sev="Y", sev_es="N")
    entry = throwaway.entry(module_parameters=MODULES, reload_modules=allowed)
    done, lines = provision(entry, "apply")
    assert not done
    assert f"left to do: loaded kvm_amd: is sev=Y sev_es=N; wanted sev=1 sev_es=1: {said}" in lines
    throwaway.module("kvm_amd", users, sev="Y", sev_es="Y")
    assert provision(entry, "apply")[1].endswith("nothing to do")


def test_a_reload_that_fails(throwaway: Throwaway) -> None:
    """modprobe is run where nobody uses the module; its refusal is told in its words."""
    throwaway.module("kvm_amd", sev="Y", sev_es="N")
    with pytest.raises(AgentRemoteError, match="modprobe"):
        provision(throwaway.entry(module_parameters=MODULES, reload_modules=True), "apply")


def test_the_udev_rule(throwaway: Throwaway) -> None:
    """The rule is written, and udev is asked to take it up where a device is there and not yet open."""
    before = throwaway.state()
    entry = throwaway.entry(udev=True)
    assert provision(entry, "apply")[0]
    text = (throwaway.root / UDEV.lstrip("/")).read_text()
    assert 'KERNEL=="sev", GROUP="kvm", MODE="0660"' in text
    sev = throwaway.root / "dev/sev"
    os.mknod(sev, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    sev.chmod(0o600)
    assert "is /dev/sev: not for group kvm; wanted for group kvm: have udev" in provision(entry, "check")[1]
    with pytest.raises(AgentRemoteError, match="udevadm"):  # there is none in a container
        provision(entry, "apply")
    kvm = subprocess.check_output(["chroot", throwaway.root, "getent", "group", "kvm"], text=True).split(":")
    os.chown(sev, 0, int(kvm[2]))
    sev.chmod(0o660)
    assert provision(entry, "apply")[1].endswith("nothing to do")
    assert provision(entry, "revert")[0]
    assert throwaway.state() == before


def test_no_such_group(throwaway: Throwaway) -> None:
    """A group that the host does not have is named."""
    with pytest.raises(HostError, match="no group 'sevs' or no user 'root'"):
        provision(throwaway.entry(groups=("sevs",)), "check")


def test_a_record_of_another_version(throwaway: Throwaway) -> None:
    """A record that this release does not know is not touched."""
    record = throwaway.root / "var/lib/pytest-seves/provision/record.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"version": 2, "changes": []}')
    with pytest.raises(AgentRemoteError, match="wanted a record of version 1, got 2"):
        provision(throwaway.entry(memlock="4096"), "apply")
    record.write_text("{")
    with pytest.raises(AgentRemoteError, match=r"record\.json: the record of changes cannot be read"):
        provision(throwaway.entry(), "revert")


def test_an_unknown_package(throwaway: Throwaway) -> None:
    """The package manager's own words; nothing stays on record."""
    if not (throwaway.root / "usr/bin/apt-get").exists():
        pytest.skip("apt-get is for Debian and its like")
    before = throwaway.state()
    entry = throwaway.entry(packages=(("any", ("no-such-package-of-ours",)),))
    with pytest.raises(AgentRemoteError, match="Unable to locate package no-such-package-of-ours"):
        provision(entry, "apply")
    assert throwaway.state() == before
    with pytest.raises(HostError, match="wanted one of the package managers zypper; got apt"):
        provision(throwaway.entry(packages=(("zypper", ("hello",)),)), "check")


def _dpkg(host: Throwaway, *argv: str) -> str:
    return subprocess.run(
        ["chroot", host.root, "dpkg-query", *argv], check=False, capture_output=True, text=True
    ).stdout


@pytest.fixture
def archive(throwaway: Throwaway) -> Throwaway:
    """A host whose package archive can be reached, without the package `hello`."""
    if not (throwaway.root / "usr/bin/apt-get").exists():
        pytest.skip("apt-get is for Debian and its like")
    update = subprocess.run(
        ["chroot", throwaway.root, "apt-get", "-qq", "update"], check=False, capture_output=True
    )
    if update.returncode or b"Failed to fetch" in update.stderr:
        pytest.skip("the package archive cannot be reached")
    subprocess.run(["chroot", throwaway.root, "dpkg", "--purge", "hello"], check=False, capture_output=True)
    return throwaway


def test_a_package_there_and_back(archive: Throwaway) -> None:
    """A package is installed once, and purged with what came with it."""
    before = _dpkg(archive, "-W")
    entry = archive.entry(packages=(("apt", ("hello", "bash")), ("dnf", ("hello",))))
    done, lines = provision(entry, "apply")
    assert done
    assert "lab1: installing 1 package: hello ..." in lines
    assert (archive.root / "usr/bin/hello").exists()
    assert provision(entry, "apply")[1].endswith("nothing to do")
    record = archive.root / "var/lib/pytest-seves/provision/record.json"
    content = record.read_text()
    record.write_text(re.sub(r'"added": \[[^]]*\]', '"added": null', content))  # as after SIGKILL in apt-get
    assert record.read_text() != content
    assert provision(entry, "revert")[0]
    assert _dpkg(archive, "-W") == before


def test_a_package_that_somebody_else_needs_now(archive: Throwaway, tmp_path: Path) -> None:
    """dpkg's own words, and nothing else is removed with it."""
    entry = archive.entry(packages=(("any", ("hello",)),))
    assert provision(entry, "apply")[0]
    control = tmp_path / "needs/DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        "Package: needs-hello\nVersion: 1\nArchitecture: all\nMaintainer: m <m@example.org>\n"
        "Depends: hello\nDescription: x\n"
    )
    deb = archive.root / "root/needs.deb"
    subprocess.run(["dpkg-deb", "-b", tmp_path / "needs", tmp_path / "needs.deb"], check=True)
    deb.write_bytes((tmp_path / "needs.deb").read_bytes())
    subprocess.run(["chroot", archive.root, "dpkg", "-i", "/root/needs.deb"], check=True)
    done, lines = provision(entry, "revert")
    assert not done
    assert "needs-hello depends on hello" in lines
    assert (archive.root / "usr/bin/hello").exists()
    subprocess.run(["chroot", archive.root, "dpkg", "--purge", "needs-hello"], check=True)
    assert provision(entry, "revert")[0]
    assert not (archive.root / "usr/bin/hello").exists()


#: Two packages, one of which needs the other.
SPEC = """
Name: seves-hello
Version: 1
Release: 1
Summary: x
License: GPL
BuildArch: noarch
Requires: seves-base
%description
x
%package -n seves-base
Summary: x
%description -n seves-base
x
%files
%files -n seves-base
"""
REPOSITORIES = {"dnf": "etc/yum.repos.d", "zypper": "etc/zypp/repos.d"}


@pytest.fixture
def rpm_host(throwaway: Throwaway, tmp_path: Path, manager: str) -> Throwaway:
    """A host whose one package manager is `manager`, with a repository of its own."""
    others = {"apt-get", *REPOSITORIES} - {manager}
    for program in (manager, "rpmbuild", "createrepo_c"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} is installed")
    (tmp_path / "hello.spec").write_text(SPEC)
    repository = tmp_path / "repository"
    build = ["rpmbuild", "-bb", "--define", f"_topdir {tmp_path}/top", "--define", f"_rpmdir {repository}"]
    subprocess.run([*build, tmp_path / "hello.spec"], check=True, capture_output=True)
    subprocess.run(["createrepo_c", "-q", repository], check=True)
    shutil.copytree(repository, throwaway.root / "repository")
    sources = throwaway.root / REPOSITORIES[manager] / "own.repo"
    sources.parent.mkdir(parents=True, exist_ok=True)
    sources.write_text("[own]\nname=own\nbaseurl=file:///repository\nenabled=1\ngpgcheck=0\n")
    macros = throwaway.root / "etc/rpm/macros"  # Debian's rpm has its database in the home directory
    macros.parent.mkdir(exist_ok=True)
    macros.write_text("%_dbpath /var/lib/rpm\n")
    for program in others:
        (throwaway.root / "usr/bin" / program).unlink(missing_ok=True)
    return throwaway


@pytest.mark.parametrize("manager", REPOSITORIES)
def test_an_rpm_there_and_back(rpm_host: Throwaway, manager: str) -> None:
    """dnf and zypper install a package once, without a question; rpm removes it with what came along."""

    def installed() -> set[str]:
        listed = ["chroot", str(rpm_host.root), "rpm", "-qa", "--qf", "%{NAME} "]
        return set(subprocess.check_output(listed, text=True).split())

    before = installed()
    entry = rpm_host.entry(packages=((manager, ("seves-hello",)), ("apt", ("hello",))))
    done, lines = provision(entry, "apply")
    assert done, lines
    assert installed() - before == {"seves-hello", "seves-base"}
    assert provision(entry, "apply")[1].endswith("nothing to do")
    with pytest.raises(AgentRemoteError, match="no-such-package-of-ours"):
        provision(rpm_host.entry(packages=((manager, ("no-such-package-of-ours",)),)), "apply")
    assert provision(entry, "revert")[0]
    assert installed() == before


def test_the_real_sudo(archive: Throwaway) -> None:
    """The rule of the example, `sudo -n`; where sudo asks for a password, its words are told."""
    install = ["apt-get", "-qqy", "--no-install-recommends", "install", "sudo"]
    subprocess.run(["chroot", archive.root, *install], check=True, capture_output=True)
    before = archive.state()
    entry = archive.entry("seves", ("sudo", "-n"), memlock="4096")
    with pytest.raises(AgentDied, match="a password is required"):
        provision(entry, "apply")
    rule = archive.root / "etc/sudoers.d/seves"
    rule.write_text("seves ALL=(root) NOPASSWD: ALL\n")
    assert provision(entry, "apply")[0]
    assert (archive.root / LIMITS.lstrip("/")).stat().st_uid == 0
    assert provision(entry, "revert")[0]
    rule.unlink()
    assert archive.state() == before


def test_from_the_command_line(throwaway: Throwaway, pytester: pytest.Pytester) -> None:
    """`--sev-provision` prints the plan and stops; the exit status says whether all is as declared."""
    lab, host = pytester.mkdir("lab"), throwaway.entry()
    before = throwaway.state()
    lines = [
        f'address = "{host.address}"',
        f"port = {host.port}",
        'user = "root"',
        f'python = "{host.python}"',
    ]
    lines += [f'identity = "{host.identity}"', f'host_key = "{host.host_key}"', '[firmware]\npath = "/x.fd"']
    (lab / "lab1.toml").write_text("[host]\n" + "\n".join(lines) + "\n[provision]\nmemlock = 4096\n")
    pytester.makepyfile("def test_it(): raise AssertionError")
    run = ["--sev-host", "lab1", "--sev-provision"]
    for option, status, words in (
        ("", 1, "*is absent; wanted root - memlock 4096: write it"),
        ("=apply", 0, "lab1: writing */60-pytest-seves.conf ..."),
        ("", 0, "lab1: nothing to do"),
        ("=revert", 0, "lab1: taking back path */60-pytest-seves.conf ..."),
    ):
        result = pytester.runpytest_subprocess(*run[:-1], run[-1] + option)
        assert result.ret == status
        result.stdout.fnmatch_lines([words])
    assert throwaway.state() == before
    assert pytester.runpytest_subprocess("--sev-provision=aply").ret == pytest.ExitCode.USAGE_ERROR
    result = pytester.runpytest_subprocess("--sev-provision")
    result.stderr.fnmatch_lines(["*--sev-provision: which host? Give --sev-host NAME*"])
    result = pytester.runpytest_subprocess("--sev-host", "model", "--sev-provision")
    assert result.ret == 1
    result.stderr.fnmatch_lines(["--sev-provision: the model has no [[]provision]*"])
