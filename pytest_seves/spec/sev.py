# SPDX-License-Identifier: GPL-2.0-or-later
"""SEV and SEV-ES: KVM's sub-commands, /dev/sev, and what the firmware answers.

Sources: SEV API specification (AMD 55766) for policy, guest states, commands and status codes;
Documentation/virt/kvm/x86/amd-memory-encryption.rst and Linux 7.2 uapi (asm/kvm.h, linux/psp-sev.h)
for the structures.
"""

from __future__ import annotations

import enum

from .layout import Field, Layout


class Policy(enum.IntFlag):
    """Guest policy, low 16 bits; bits 23:16 and 31:24 hold the least API major and minor version."""

    NODBG = 1 << 0
    NOKS = 1 << 1
    ES = 1 << 2
    NOSEND = 1 << 3
    DOMAIN = 1 << 4
    SEV = 1 << 5


def policy_with_api(policy: int, major: int, minor: int) -> int:
    """A policy that wants at least this firmware API version (bits 23:16 major, 31:24 minor)."""
    return policy | major << 16 | minor << 24


class SevCmd(enum.IntEnum):
    """kvm_sev_cmd.id of KVM_MEMORY_ENCRYPT_OP."""

    KVM_SEV_INIT = 0
    KVM_SEV_ES_INIT = 1
    KVM_SEV_LAUNCH_START = 2
    KVM_SEV_LAUNCH_UPDATE_DATA = 3
    KVM_SEV_LAUNCH_UPDATE_VMSA = 4
    KVM_SEV_LAUNCH_SECRET = 5
    KVM_SEV_LAUNCH_MEASURE = 6
    KVM_SEV_LAUNCH_FINISH = 7
    KVM_SEV_SEND_START = 8
    KVM_SEV_SEND_UPDATE_DATA = 9
    KVM_SEV_SEND_UPDATE_VMSA = 10
    KVM_SEV_SEND_FINISH = 11
    KVM_SEV_RECEIVE_START = 12
    KVM_SEV_RECEIVE_UPDATE_DATA = 13
    KVM_SEV_RECEIVE_UPDATE_VMSA = 14
    KVM_SEV_RECEIVE_FINISH = 15
    KVM_SEV_GUEST_STATUS = 16
    KVM_SEV_DBG_DECRYPT = 17
    KVM_SEV_DBG_ENCRYPT = 18
    KVM_SEV_CERT_EXPORT = 19
    KVM_SEV_GET_ATTESTATION_REPORT = 20
    KVM_SEV_SEND_CANCEL = 21
    KVM_SEV_INIT2 = 22


KVM_SEV_CMD = Layout(
    "kvm_sev_cmd",
    24,
    Field("id", 0, "I"),
    Field("_pad", 4, "I"),
    Field("data", 8, "Q"),
    Field("error", 16, "I"),
    Field("sev_fd", 20, "I"),
)

KVM_SEV_INIT2_DATA = Layout(
    "kvm_sev_init",
    48,
    Field("vmsa_features", 0, "Q"),
    Field("flags", 8, "I"),
    Field("ghcb_version", 12, "H"),
    Field("_pad1", 14, "H"),
    Field("_pad2", 16, "32s"),
)

KVM_SEV_LAUNCH_START_DATA = Layout(
    "kvm_sev_launch_start",
    40,
    Field("handle", 0, "I"),
    Field("policy", 4, "I"),
    Field("dh_uaddr", 8, "Q"),
    Field("dh_len", 16, "I"),
    Field("_pad0", 20, "I"),
    Field("session_uaddr", 24, "Q"),
    Field("session_len", 32, "I"),
    Field("_pad1", 36, "I"),
)

KVM_SEV_LAUNCH_UPDATE_DATA_DATA = Layout(
    "kvm_sev_launch_update_data", 16, Field("uaddr", 0, "Q"), Field("len", 8, "I"), Field("_pad", 12, "I")
)

KVM_SEV_LAUNCH_MEASURE_DATA = Layout(
    "kvm_sev_launch_measure", 16, Field("uaddr", 0, "Q"), Field("len", 8, "I"), Field("_pad", 12, "I")
)

KVM_SEV_LAUNCH_SECRET_DATA = Layout(
    "kvm_sev_launch_secret",
    48,
    Field("hdr_uaddr", 0, "Q"),
    Field("hdr_len", 8, "I"),
    Field("_pad0", 12, "I"),
    Field("guest_uaddr", 16, "Q"),
    Field("guest_len", 24, "I"),
    Field("_pad1", 28, "I"),
    Field("trans_uaddr", 32, "Q"),
    Field("trans_len", 40, "I"),
    Field("_pad2", 44, "I"),
)

KVM_SEV_GUEST_STATUS_DATA = Layout(
    "kvm_sev_guest_status", 12, Field("handle", 0, "I"), Field("policy", 4, "I"), Field("state", 8, "I")
)

#: Structure behind kvm_sev_cmd.data, for the commands that a launch uses.
SUBCOMMAND_DATA = {
    SevCmd.KVM_SEV_LAUNCH_START: KVM_SEV_LAUNCH_START_DATA,
    SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA: KVM_SEV_LAUNCH_UPDATE_DATA_DATA,
    SevCmd.KVM_SEV_LAUNCH_SECRET: KVM_SEV_LAUNCH_SECRET_DATA,
    SevCmd.KVM_SEV_LAUNCH_MEASURE: KVM_SEV_LAUNCH_MEASURE_DATA,
    SevCmd.KVM_SEV_GUEST_STATUS: KVM_SEV_GUEST_STATUS_DATA,
    SevCmd.KVM_SEV_INIT2: KVM_SEV_INIT2_DATA,
}

#: (address field, length field) of user memory that a command hands in.
SUBCOMMAND_MEMORY = {
    SevCmd.KVM_SEV_LAUNCH_START: (("dh_uaddr", "dh_len"), ("session_uaddr", "session_len")),
    SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA: (("uaddr", "len"),),
    SevCmd.KVM_SEV_LAUNCH_SECRET: (("hdr_uaddr", "hdr_len"), ("trans_uaddr", "trans_len")),
}

#: The owner's session that LAUNCH_START takes (SEV API, LAUNCH_START).
LAUNCH_SESSION = Layout(
    "session",
    128,
    Field("nonce", 0, "16s"),
    Field("wrap_tk", 16, "32s"),
    Field("wrap_iv", 48, "16s"),
    Field("wrap_mac", 64, "32s"),
    Field("policy_mac", 96, "32s"),
)

#: The packet header that LAUNCH_SECRET takes (SEV API, LAUNCH_SECRET).
LAUNCH_SECRET_HEADER = Layout(
    "secret_header", 52, Field("flags", 0, "I"), Field("iv", 4, "16s"), Field("mac", 20, "32s")
)

# /dev/sev
SEV_ISSUE_CMD = 0xC0105300
SEV_ISSUE_CMD_DATA = Layout(
    "sev_issue_cmd", 16, Field("cmd", 0, "I"), Field("data", 4, "Q"), Field("error", 12, "I")
)


class SevIssue(enum.IntEnum):
    """sev_issue_cmd.cmd."""

    SEV_FACTORY_RESET = 0
    SEV_PLATFORM_STATUS = 1
    SEV_PEK_GEN = 2
    SEV_PEK_CSR = 3
    SEV_PDH_GEN = 4
    SEV_PDH_CERT_EXPORT = 5
    SEV_PEK_CERT_IMPORT = 6
    SEV_GET_ID = 7
    SEV_GET_ID2 = 8
    SNP_PLATFORM_STATUS = 9
    SNP_COMMIT = 10
    SNP_SET_CONFIG = 11
    SNP_VLEK_LOAD = 12


def issue_name(command: int) -> str:
    """``SEV_PLATFORM_STATUS`` for 1; an unknown number stays visible."""
    try:
        return SevIssue(command).name
    except ValueError:
        return f"SEV_ISSUE_CMD {command} (unknown)"


SEV_USER_DATA_STATUS = Layout(
    "sev_user_data_status",
    12,
    Field("api_major", 0, "B"),
    Field("api_minor", 1, "B"),
    Field("state", 2, "B"),
    Field("flags", 3, "I"),
    Field("build", 7, "B"),
    Field("guest_count", 8, "I"),
)
SEV_USER_DATA_SNP_STATUS = Layout(
    "sev_user_data_snp_status",
    32,
    Field("api_major", 0, "B"),
    Field("api_minor", 1, "B"),
    Field("state", 2, "B"),
    Field("is_rmp_initialized", 3, "B"),
    Field("build_id", 4, "I"),
    Field("flags", 8, "I"),
    Field("guest_count", 12, "I"),
    Field("current_tcb", 16, "8s"),
    Field("reported_tcb", 24, "8s"),
)
SEV_STATUS_FLAGS_OWNED = 1 << 0
SEV_STATUS_FLAGS_CONFIG_ES = 1 << 8


class PlatformState(enum.IntEnum):
    """sev_user_data_status.state."""

    UNINIT = 0
    INIT = 1
    WORKING = 2


class GuestState(enum.IntEnum):
    """Firmware's state of a guest (SEV API, guest state machine)."""

    UNINIT = 0
    LUPDATE = 1
    LSECRET = 2
    RUNNING = 3
    SUPDATE = 4
    RUPDATE = 5
    SENT = 6


class FirmwareCmd(enum.IntEnum):
    """Command numbers between driver and firmware."""

    INIT = 0x01
    SHUTDOWN = 0x02
    FACTORY_RESET = 0x03
    PLATFORM_STATUS = 0x04
    PEK_GEN = 0x05
    PEK_CSR = 0x06
    PEK_CERT_IMPORT = 0x07
    PDH_CERT_EXPORT = 0x08
    PDH_GEN = 0x09
    DF_FLUSH = 0x0A
    DOWNLOAD_FIRMWARE = 0x0B
    GET_ID = 0x0C
    INIT_EX = 0x0D
    DECOMMISSION = 0x20
    ACTIVATE = 0x21
    DEACTIVATE = 0x22
    GUEST_STATUS = 0x23
    LAUNCH_START = 0x30
    LAUNCH_UPDATE_DATA = 0x31
    LAUNCH_UPDATE_VMSA = 0x32
    LAUNCH_MEASURE = 0x33
    LAUNCH_UPDATE_SECRET = 0x34
    LAUNCH_FINISH = 0x35
    ATTESTATION = 0x36


class FirmwareStatus(enum.IntEnum):
    """Status codes of the SEV firmware; kvm_sev_cmd.error and sev_issue_cmd.error."""

    SUCCESS = 0x00
    INVALID_PLATFORM_STATE = 0x01
    INVALID_GUEST_STATE = 0x02
    INVALID_CONFIG = 0x03
    INVALID_LEN = 0x04
    ALREADY_OWNED = 0x05
    INVALID_CERTIFICATE = 0x06
    POLICY_FAILURE = 0x07
    INACTIVE = 0x08
    INVALID_ADDRESS = 0x09
    BAD_SIGNATURE = 0x0A
    BAD_MEASUREMENT = 0x0B
    ASID_OWNED = 0x0C
    INVALID_ASID = 0x0D
    WBINVD_REQUIRED = 0x0E
    DFFLUSH_REQUIRED = 0x0F
    INVALID_GUEST = 0x10
    INVALID_COMMAND = 0x11
    ACTIVE = 0x12
    HWERROR_PLATFORM = 0x13
    HWERROR_UNSAFE = 0x14
    UNSUPPORTED = 0x15
    INVALID_PARAM = 0x16
    RESOURCE_LIMIT = 0x17
    SECURE_DATA_INVALID = 0x18
    RING_BUFFER = 0x1F
    RMP_INIT_REQUIRED = 0x20
    SHUTDOWN_REQUIRED = 0x23
    INVALID_KEY = 0x27


#: kvm_sev_cmd.error when the kernel never reached the firmware (SEV_RET_NO_FW_CALL).
NO_FIRMWARE_CALL = 0xFFFFFFFF

MEASUREMENT_SIZE = 48  # HMAC-SHA256 (32 bytes), then MNONCE (16)

#: CPUID leaf of memory encryption; EAX bits.
CPUID_ENCRYPTION = 0x8000001F
CPUID_SEV = 1 << 1
CPUID_SEV_ES = 1 << 3
CPUID_SEV_SNP = 1 << 4


def firmware_status_name(code: int) -> str:
    """A status code as people look it up: ``0x03 INVALID_CONFIG``."""
    if code == NO_FIRMWARE_CALL:
        return "firmware not called"
    try:
        return f"{code:#04x} {FirmwareStatus(code).name}"
    except ValueError:
        return f"{code:#04x} (unknown firmware status)"


def command_name(identifier: int) -> str:
    """``KVM_SEV_LAUNCH_START`` for 2; an unknown number stays visible."""
    try:
        return SevCmd(identifier).name
    except ValueError:
        return f"KVM_SEV_{identifier} (unknown)"
