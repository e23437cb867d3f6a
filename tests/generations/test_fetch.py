# SPDX-License-Identifier: GPL-2.0-or-later
"""The fetcher of a second QEMU, with programs in place of apt and dpkg that note how they were called."""

from __future__ import annotations

import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.generations import fetch

MIRROR = "http://mirror.invalid/debian"
APT_CONFIG = """
cat <<'END'
Acquire::http::Proxy "http://proxy.invalid:3128";
Acquire::AllowInsecureRepositories "true";
APT::Update::Post-Invoke-Success:: "touch /nowhere";
END
"""
APT_GET = """
echo "$*" >>"$LOG/apt-get"
case "$*" in
    indextargets*) cat "$LOG/targets"; exit ;;
    *" update") cp "$APT_CONFIG" "${APT_CONFIG%/*}/sources.list" "$LOG/" ;;
    *" install "*) touch "${APT_CONFIG%/*}/cache/archives/qemu-system-x86_10_amd64.deb" ;;
esac
"""
DPKG_DEB = r"""
mkdir -p "$3/usr/bin"
printf '#!/bin/sh\necho "$QEMU_MODULE_DIR" "$*"\n' >"$3/usr/bin/qemu-system-x86_64"
chmod 755 "$3/usr/bin/qemu-system-x86_64"
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is not there yet, on a Debian whose apt is made of scripts."""
    release = {"ID": "debian", "VERSION_CODENAME": "bookworm", "PRETTY_NAME": "Debian 12"}
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    log = tmp_path / "log"
    log.mkdir()
    (log / "targets").write_text(
        f"http://other.invalid bookworm stable\nhttp://other.invalid trixie main\n{MIRROR} bookworm main\n"
    )
    for name, text in {"apt-get": APT_GET, "apt-config": APT_CONFIG, "dpkg-deb": DPKG_DEB}.items():
        program(tmp_path / "bin" / name, text)
    monkeypatch.setenv("LOG", str(log))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "cache of mine"


def program(path: Path, text: str) -> None:
    """A shell script."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


def refused(cache: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it ends with status 3 and prints no path."""
    assert fetch.main(["--cache", str(cache)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fetch: no second QEMU: ")
    return err


def test_another_distribution(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system without Debian's backports is named."""
    release = {"ID": "ubuntu", "VERSION_CODENAME": "noble", "PRETTY_NAME": "Ubuntu 24.04"}
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    assert "this system is Ubuntu 24.04; wanted a release of Debian" in refused(cache, capsys)


def test_another_architecture(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that is no x86_64 is named."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "this machine is aarch64" in refused(cache, capsys)


def test_no_apt(cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is missing is named."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "apt-get is not on this machine" in refused(cache, capsys)


def test_no_mirror(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An apt without a mirror of the release is said to be so."""
    (tmp_path / "log/targets").write_text("http://other.invalid bookworm stable\n")
    assert "apt has no mirror configured for bookworm main" in refused(cache, capsys)


@pytest.mark.parametrize("step", ["update", "install"])
def test_apt_refuses(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], step: str) -> None:
    """What apt says, of a bad signature or of no network, is shown; no half tree is left."""
    failing = f'case "$*" in *" {step}"*) echo "E: The repository is not signed." >&2; exit 100 ;; esac'
    program(tmp_path / "bin/apt-get", failing + APT_GET)
    assert "exit status 100:\nE: The repository is not signed." in refused(cache, capsys)
    assert [path.name for path in cache.iterdir()] == ["bookworm-backports.lock"]


def test_binary_that_does_not_run(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A QEMU whose libraries the system lacks is not kept."""
    broken = DPKG_DEB.replace("echo", "echo libfdt.so.1: missing >&2; exit 127;#")
    program(tmp_path / "bin/dpkg-deb", broken)
    assert "exit status 127:\nlibfdt.so.1: missing" in refused(cache, capsys)
    assert [path.name for path in cache.iterdir()] == ["bookworm-backports.lock"]


def test_cache_that_is_a_file(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cache directory that cannot be made is named, with the way out."""
    cache.write_text("")
    assert "Set XDG_CACHE_HOME to a place of your own" in refused(cache, capsys)


def test_signatures_stay_on(cache: Path, tmp_path: Path) -> None:
    """The machine's mirror and proxy count; its hooks and its leave to skip signatures do not."""
    fetch.fetch(cache)
    config = (tmp_path / "log/apt.conf").read_text().splitlines()
    assert 'Acquire::http::Proxy "http://proxy.invalid:3128";' in config
    assert [line for line in config if "AllowInsecure" in line][-1].endswith('"false";')
    assert not any("Post-Invoke" in line for line in config)
    sources = (tmp_path / "log/sources.list").read_text().splitlines()
    named = [line.partition(MIRROR)[2] for line in sources]
    assert named == [" bookworm main", " bookworm-updates main", " bookworm-backports main"]
    assert not any("trusted" in line for line in sources)


def test_wrapper_names_the_data_of_the_tree(cache: Path) -> None:
    """QEMU is started with its own data and modules, and the arguments as they were, blanks and all."""
    wrapper = fetch.fetch(cache)
    done = subprocess.run([wrapper, "-name", "a  b"], capture_output=True, text=True, check=True)
    tree = cache / "bookworm-backports"
    modules, data = f"{tree}/usr/lib/x86_64-linux-gnu/qemu", f"-L {tree}/usr/share/qemu"
    assert done.stdout == f"{modules} {data} -L {tree}/usr/share/seabios -name a  b\n"


def test_a_moved_cache_is_mended(cache: Path, tmp_path: Path) -> None:
    """A tree that has been moved is started from where it is now, without another download."""
    fetch.fetch(cache)
    moved = cache.rename(tmp_path / "moved")
    (tmp_path / "log/apt-get").unlink()
    done = subprocess.run([fetch.fetch(moved)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(moved))
    assert not (tmp_path / "log/apt-get").exists()


def test_what_a_killed_run_left_is_removed(cache: Path) -> None:
    """A half tree does not fill the cache, nor is it taken for a whole one."""
    for half in (cache / ".bookworm-backports-abcdefgh/tree", cache / "bookworm-backports/usr/bin"):
        half.mkdir(parents=True)
    assert fetch.fetch(cache).is_file()
    assert {path.name for path in cache.iterdir()} == {"bookworm-backports", "bookworm-backports.lock"}


def test_two_at_once_download_once(cache: Path, tmp_path: Path) -> None:
    """The second waits for the first and takes its tree."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(fetch.fetch, [cache, cache])
    assert first == second
    assert (tmp_path / "log/apt-get").read_text().count("--download-only") == 1


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("/var/x", "/var/x/pytest-seves-generations"),
        ("relative", "/home/me/.cache/pytest-seves-generations"),
        ("", "/home/me/.cache/pytest-seves-generations"),
    ],
)
def test_cache_directory(monkeypatch: pytest.MonkeyPatch, setting: str, wanted: str) -> None:
    """XDG_CACHE_HOME counts when it is absolute."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", setting)
    assert fetch.cache_directory() == Path(wanted)
