# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab inventory: what is refused, with which words, and what a good file becomes."""

from __future__ import annotations

import base64
import struct
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_seves.errors import InventoryError
from pytest_seves.host import inventory
from pytest_seves.host.inventory import GuestKernel, list_hosts, load_host
from pytest_seves.host.toml_lines import toml_lines


def ssh_key(kind: str = "ssh-ed25519", *fields: bytes) -> str:
    """A public key line; the blob repeats the type."""
    parts = [kind.encode(), *(fields or (bytes(32),))]
    blob = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return f"{kind} {base64.b64encode(blob).decode()}"


GOOD = f"""\
[host]
address = "192.0.2.10"
user = "seves"
host_key = "{ssh_key()}"

[firmware]
path = "/usr/share/OVMF/OVMF_CODE.fd"
"""


def write(directory: Path, text: str | bytes, name: str = "lab1") -> Path:
    """A lab file; returns its directory."""
    raw = text if isinstance(text, bytes) else text.encode()
    (directory / f"{name}.toml").write_bytes(raw)
    return directory


def refusal(directory: Path, text: str | bytes, name: str = "lab1") -> str:
    """The message with which the file is refused, without its directory."""
    write(directory, text, name)
    with pytest.raises(InventoryError) as caught:
        load_host(name, directory)
    return str(caught.value).replace(f"{directory}/", "")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('adress = "x"', "lab1.toml:5: host.adress: unknown key; did you mean 'address'?"),
        ('binary = "x"', "lab1.toml:5: host.binary: unknown key; it belongs to [vmm]"),
        ("port = 0", "lab1.toml:5: host.port: wanted a whole number from 1 to 65535; got 0"),
        ("port = true", "lab1.toml:5: host.port: wanted a whole number from 1 to 65535; got true"),
        ('port = "22"', "lab1.toml:5: host.port: wanted a whole number from 1 to 65535; got '22'"),
        ('sudo = "sudo -n"', 'lab1.toml:5: host.sudo: wanted an array of words, such as ["sudo", "-n"]'),
        (
            "connect_timeout_s = nan",
            "lab1.toml:5: host.connect_timeout_s: wanted a number of seconds above 0",
        ),
        ('python = "a b"', "lab1.toml:5: host.python: wanted one word"),
        ('identity = "absent/key"', "lab1.toml:5: host.identity: wanted a file of this machine"),
        ('identity = "~nosuchuser/key"', "lab1.toml:5: host.identity: wanted a path"),
        ("jump = 3", "lab1.toml:5: host.jump: wanted a section [host.jump], got 3"),
        ("jump = {port = 1}", 'lab1.toml:5: host.jump: missing key: write address = "..."'),
        ('jump.address = "a@b"', "lab1.toml:5: host.jump.address: wanted a host name or IP address alone"),
        ("shared = 1", "lab1.toml:5: host.shared: wanted true or false; got 1"),
        ("lease_wait_s = -1", "lab1.toml:5: host.lease_wait_s: wanted a number of seconds from 0 to 86400"),
        ('labgrid.coordinator = "x"', "lab1.toml:5: host.labgrid: unknown key"),
        ('[guest]\nkernel = "vmlinuz"', "lab1.toml:6: guest.kernel: wanted an absolute path on the host"),
        ('[guest]\nkernel = "/x"\nsha256 = "12"', "lab1.toml:7: guest.sha256: wanted the 64 hex digits"),
        ('[guest]\nkernl = "/x"', "lab1.toml:6: guest.kernl: unknown key; did you mean 'kernel'?"),
        ('[guest]\nmsr_module = "/x"', 'lab1.toml:6: guest.msr_module: missing key: write kernel = "..."'),
        ("guest = 1", "lab1.toml:5: host.guest: unknown key"),
        ("[labgrid]", 'lab1.toml:5: labgrid: goes with address = "labgrid:PLACE" only'),
        ('model = "linux-6.1"', "lab1.toml:2: host.address: goes with a real host only"),
        ('"\\u001b[31m" = 1', r"lab1.toml:5: host.'\x1b[31m': unknown key"),
    ],
)
def test_a_bad_line_is_named_with_file_key_and_line(tmp_path: Path, line: str, wanted: str) -> None:
    """Each problem says where it is, what was wanted and what is there."""
    assert wanted in refusal(tmp_path, GOOD.replace("\n\n[firmware]", f"\n{line}\n[firmware]"))


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("AAAA", 'wanted "TYPE BASE64"'),
        ("192.0.2.10 " + ssh_key(), "take the host name in front away"),
        ("SHA256:uNiVztksCsDhcc0u9e8BrvD2Ixz", "a fingerprint is not enough"),
        ("ssh-ed25519", "cut short or damaged"),
        ("ssh-ed25519 AAAA%", "cut short or damaged"),
        (ssh_key()[:-8], "cut short or damaged"),
        (ssh_key("ssh-ed25519", bytes(31)), "cut short or damaged"),
        (ssh_key("ssh-rsa", b"\3", b"\5").replace("ssh-rsa", "ssh-ed25519"), "the blob says 'ssh-rsa'"),
    ],
)
def test_a_damaged_host_key_is_refused(tmp_path: Path, key: str, wanted: str) -> None:
    """A pinned key that could never match is found before connecting, and the usual mistakes are named."""
    message = refusal(tmp_path, GOOD.replace(ssh_key(), key))
    assert "lab1.toml:4: host.host_key: " in message
    assert wanted in message


def test_a_kernel_for_guests(tmp_path: Path) -> None:
    """A real host and the model may name one; a section that is no section is refused."""
    text = f'[guest]\nkernel = "/boot/x"\nsha256 = "{"AB" * 32}"\nmsr_module = "/m"\n'
    named = GuestKernel("/boot/x", "ab" * 32, "/m")
    assert load_host("lab1", write(tmp_path, GOOD + text)).guest == named
    assert load_host("model", write(tmp_path, f'[host]\nmodel = "linux-6.1"\n{text}', "model")).guest == named
    assert load_host("lab2", write(tmp_path, GOOD, "lab2")).guest == GuestKernel()
    assert "lab1.toml:1: guest: wanted a section [guest], got 1" in refusal(tmp_path, "guest = 1\n" + GOOD)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """A file with five mistakes needs one round, not five; they come in the order of the file."""
    message = refusal(
        tmp_path,
        '[host]\nport = -1\n[vmm]\nname = "qemo"\n[firmware]\nsha256 = "12"\n[expct]\n[expect]\nsev_es = 1\n',
    )
    assert [line.split(": ")[:2] for line in message.splitlines()] == [
        ["lab1.toml:1", "host"],
        ["lab1.toml:1", "host"],
        ["lab1.toml:2", "host.port"],
        ["lab1.toml:4", "vmm.name"],
        ["lab1.toml:5", "firmware"],
        ["lab1.toml:6", "firmware.sha256"],
        ["lab1.toml:7", "expct"],
        ["lab1.toml:9", "expect.sev_es"],
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"[host]\nport = \n", 2),
        (b"[host]\n\xff\n", 2),
        (b"[host]\na=1\na=2\n", 3),
        (b"x = " + b"[" * 5000, 1),
    ],
)
def test_what_is_not_toml_is_refused_with_its_line(tmp_path: Path, text: bytes, line: int) -> None:
    """A syntax error names the line that tomllib names; so do bad UTF-8 and absurd nesting."""
    assert refusal(tmp_path, text).startswith(f"lab1.toml:{line}: ")


@pytest.mark.parametrize("name", ["../lab1", "a/b", "", ".", "..", "a..b", "-x", "lab1\0", "/etc/passwd"])
def test_a_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    """A host is chosen by name; nothing outside the lab directory is ever read."""
    with pytest.raises(InventoryError, match="wanted the plain name of a file"):
        load_host(name, write(tmp_path, GOOD))


def test_an_unknown_host_lists_those_that_exist(tmp_path: Path) -> None:
    """A typing error is answered with the names and the directory."""
    with pytest.raises(InventoryError) as caught:
        load_host("lab2", write(tmp_path, GOOD))
    assert "did you mean 'lab1'?" in str(caught.value)
    assert f"Known hosts in {tmp_path}: lab1, model" in str(caught.value)


def test_a_host_named_model_must_be_the_model(tmp_path: Path) -> None:
    """No report can ever call a real machine "model"."""
    assert "model.toml:1: host: missing key: the host named model is the model" in refusal(
        tmp_path, GOOD, "model"
    )


def test_the_model_needs_no_file(tmp_path: Path) -> None:
    """--sev-host model works in any directory, also in one that is not there."""
    host = load_host("model", tmp_path / "absent")
    assert (host.model, host.file, host.vmm.name) == (inventory.DEFAULT_MODEL, None, "qemu")
    assert list_hosts(tmp_path / "absent") == ["model"]


def test_a_model_file_changes_profile_vmm_and_firmware(tmp_path: Path) -> None:
    """lab/model.toml overrides what the model would choose."""
    text = '[host]\nmodel = "linux-6.12"\n[vmm]\nbinary = "/opt/qemu"\n[firmware]\npath = "/x.fd"\n'
    host = load_host("model", write(tmp_path, text, "model"))
    assert (host.model, host.vmm.binary, host.firmware.path) == ("linux-6.12", "/opt/qemu", "/x.fd")
    assert host.known_hosts is None


def test_a_good_file_becomes_a_host(tmp_path: Path) -> None:
    """Paths of this machine start at the file; paths of the host stay; a jump host inherits the user."""
    (tmp_path / "id").touch()
    text = GOOD.replace("\n\n", '\nidentity = "id"\nsudo = ["sudo", "-n"]\n[host.jump]\naddress = "::1"\n')
    text += f'sha256 = "{"AB" * 32}"\n[expect]\nmin_api = "1.51"\nmin_vmm = "9.1"\n'
    host = load_host("lab1", write(tmp_path, text))
    assert (host.name, host.address, host.user, host.port) == ("lab1", "192.0.2.10", "seves", 22)
    assert host.identity == tmp_path / "id"
    assert host.sudo == ("sudo", "-n")
    assert host.jump is not None
    assert (host.jump.address, host.jump.user) == ("::1", "seves")
    assert (host.firmware.path, host.firmware.sha256) == ("/usr/share/OVMF/OVMF_CODE.fd", "ab" * 32)
    assert (host.expect.min_api, host.expect.min_vmm) == ((1, 51), (9, 1))
    assert host.known_hosts is None
    assert host.host_key == ssh_key()


def test_a_host_of_labgrid(tmp_path: Path) -> None:
    """The place says where the host is and who the user is; a jump host's user must still be named."""
    text = GOOD.replace("192.0.2.10", "labgrid:epyc-1").replace('user = "seves"\n', "")
    host = load_host("lab1", write(tmp_path, text + '[labgrid]\ncoordinator = "lab:20408"\n'))
    assert (host.address, host.user, host.labgrid.coordinator) == ("labgrid:epyc-1", "", "lab:20408")
    assert load_host("lab1", write(tmp_path, text)).labgrid.coordinator is None
    assert "plain name of a place" in refusal(tmp_path, text.replace("epyc-1", "a/b"))
    jump = text.replace("\n\n", '\n[host.jump]\naddress = "::1"\n')
    assert "missing key: write user" in refusal(tmp_path, jump)


def test_the_lease(tmp_path: Path) -> None:
    """A host is for one run at a time, with a wait of ten minutes, unless its file says otherwise."""
    host = load_host("lab1", write(tmp_path, GOOD))
    assert (host.shared, host.lease_wait_s) == (False, 600)
    text = GOOD.replace("\n\n", "\nshared = true\nlease_wait_s = 0\n")
    host = load_host("lab1", write(tmp_path, text))
    assert (host.shared, host.lease_wait_s) == (True, 0)


def test_without_a_pinned_key_known_hosts_decides(tmp_path: Path) -> None:
    """There is no way to say "trust anyone"."""
    text = "\n".join(line for line in GOOD.splitlines() if "host_key" not in line)
    assert load_host("lab1", write(tmp_path, text)).known_hosts == Path.home() / ".ssh/known_hosts"


def test_the_files_of_the_project_are_good() -> None:
    """The example that people copy is accepted as it stands."""
    lab = Path(__file__).parents[2] / "lab"
    hosts = {name: load_host(name, lab) for name in list_hosts(lab)}
    assert hosts["lab1"].address == "192.0.2.10"
    assert hosts["model"].model == inventory.DEFAULT_MODEL


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    raw=st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_no_bytes_can_do_more_than_be_refused(tmp_path: Path, raw: bytes) -> None:
    """Whatever is in the file: a host, or an InventoryError."""
    with pytest.raises(InventoryError):
        load_host("lab1", write(tmp_path, raw))


_KEYS = st.sampled_from(
    ["host", "jump", "vmm", "firmware", "expect", "address", "identity", "port", "x.y", '"q"', "'e'"]
)
_VALUES = st.sampled_from(
    [
        "1",
        "true",
        '"a"',
        "'''x\ny'''",
        '"""\\"""x"""',
        "1979-05-27 07:32:00",
        "[1,\n#]\n2]",
        "{a = 1, b.c = [{d=2}]}",
        "inf",
    ]
)
_LINES = st.one_of(
    st.tuples(_KEYS, _VALUES).map(" = ".join),
    st.lists(_KEYS, min_size=1, max_size=3).map(lambda keys: f"[{'.'.join(keys)}]"),
    st.just("# [host] x = 1"),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(lines=st.lists(_LINES, max_size=8))
def test_no_toml_can_do_more_than_be_refused(tmp_path: Path, lines: list[str]) -> None:
    """Valid TOML with keys in wrong places is an InventoryError with a line of the file for each problem."""
    text = "\n".join(lines)
    with pytest.raises(InventoryError) as caught:
        load_host("lab1", write(tmp_path, text))
    assert all(1 <= line <= text.count("\n") + 1 for line, _, _ in caught.value.evidence["problems"])


def _paths(tree: dict[str, object], above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for key, value in tree.items():
        found.add((*above, key))
        if isinstance(value, dict):
            found |= _paths(value, (*above, key))
    return found


@settings(deadline=None)  # shared machines stall
@given(lines=st.lists(_LINES, max_size=8))
def test_the_line_scanner_sees_the_keys_that_tomllib_sees(lines: list[str]) -> None:
    """Lines are found by a scanner of our own; the oracle for its keys is tomllib."""
    text = "\n".join(lines)
    try:
        tree = tomllib.loads(text)
    except ValueError:
        return
    assert _paths(tree) <= set(toml_lines(text))


def test_the_line_scanner_is_right_in_awkward_places() -> None:
    """Brackets and equal signs in strings and comments are neither tables nor keys."""
    text = 'a = """\n[b]\nc = 1\n""" # [d]\ne = [ # {\n "]", # f = 1\n {g = 1},\n]\n'
    text += "[\"h\\u0069\".'j']\nk.l = 1\n"
    assert toml_lines(text) == {
        ("a",): 1,
        ("e",): 5,
        ("e", "g"): 7,
        ("hi",): 9,
        ("hi", "j"): 9,
        ("hi", "j", "k"): 10,
        ("hi", "j", "k", "l"): 10,
    }
