# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest-hypervisor communication block: page layout, exit codes and MSR protocol.

Source: AMD "SEV-ES Guest-Hypervisor Communication Block Standardization" (56421) revision 2.03: section 2.3.1
(MSR protocol), 2.6 (GHCB layout), 4.1 (exit codes), 4.1.1 (invalid GHCB).
"""

from __future__ import annotations

GHCB_MSR = 0xC0010130
SEV_STATUS_MSR = 0xC0010131
SEV_STATUS_SEV = 1 << 0
SEV_STATUS_SEV_ES = 1 << 1

# The page: offsets of the fields that are exchanged. Names as in the save area where it has them.
CPL = 0x0CB
DR7 = 0x160
RAX = 0x1F8
RCX = 0x308
RDX = 0x310
RBX = 0x318
RSI = 0x330
SW_EXITCODE = 0x390
SW_EXITINFO1 = 0x398
SW_EXITINFO2 = 0x3A0
SW_SCRATCH = 0x3A8
XCR0 = 0x3E8
VALID_BITMAP = 0x3F0
SHARED_BUFFER = 0x800
RESERVED_FF0 = 0xFF0
PROTOCOL_VERSION = 0xFFA
GHCB_USAGE = 0xFFC

# Exit codes beside those of the VMCB
MMIO_READ = 0x80000001
MMIO_WRITE = 0x80000002
NMI_COMPLETE = 0x80000003
AP_RESET_HOLD = 0x80000004
AP_JUMP_TABLE = 0x80000005
PSC = 0x80000010
AP_CREATION = 0x80000013
HV_FEATURES = 0x8000FFFD
TERMINATE = 0x8000FFFE
UNSUPPORTED_EVENT = 0x8000FFFF

# SW_EXITINFO1 on return: an exception to inject, or what was wrong with the input
RESPONSE_EXCEPTION = 1
RESPONSE_MALFORMED = 2

# SW_EXITINFO2 for malformed input
ERROR_INVALID_USAGE = 2
ERROR_INVALID_SCRATCH = 3
ERROR_MISSING_INPUT = 4
ERROR_INVALID_INPUT = 5
ERROR_INVALID_EVENT = 6

# MSR protocol: GHCBInfo, bits 11:0
INFO_MASK = 0xFFF
SEV_INFO_RESPONSE = 0x001
SEV_INFO_REQUEST = 0x002
CPUID_REQUEST = 0x004
CPUID_RESPONSE = 0x005
AP_RESET_HOLD_REQUEST = 0x006
AP_RESET_HOLD_RESPONSE = 0x007
PREFERRED_GPA_REQUEST = 0x010
REGISTER_GPA_REQUEST = 0x012
PSC_REQUEST = 0x014
HV_FEATURES_REQUEST = 0x080
HV_FEATURES_RESPONSE = 0x081
TERMINATE_REQUEST = 0x100


def sev_info(maximum: int, minimum: int, c_bit: int) -> int:
    """The GHCB MSR after reset: protocol versions and C-bit."""
    return maximum << 48 | minimum << 32 | c_bit << 24 | SEV_INFO_RESPONSE
