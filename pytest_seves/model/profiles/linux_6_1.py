# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian 12's kernel on an EPYC 7763 (Milan): KVM answers of Linux 6.1, legacy init path.

Sources: Linux 6.1 arch/x86/kvm/{x86,cpuid}.c and svm/ for capabilities, CPUID masks and MSRs; AMD's Processor
Programming Reference for family 19h model 01h for the host's CPUID.
"""

from __future__ import annotations

from . import CpuidEntry, Profile

_SIGNATURE = 0x00A00F11
_VENDOR = (0x68747541, 0x444D4163, 0x69746E65)  # "Auth" "cAMD" "enti" in EBX, ECX, EDX
_BRAND = b"AMD EPYC 7763 64-Core Processor".ljust(48, b"\0")


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


# What KVM gives guests: the host's features that its mask knows, and those it emulates.
_1_ECX = _bits(0, 1, 9, 12, 13, 17, 19, 20, 21, 22, 23, 25, 26, 28, 29, 30, 31)
_1_EDX = 0x078BFBFF
_7_EBX = _bits(0, 1, 3, 5, 7, 8, 9, 10, 18, 19, 20, 23, 24, 29)
_7_ECX = _bits(2, 3, 9, 10, 22)
_7_EDX = _bits(4, 26, 27, 29, 31)
_81_ECX = _bits(0, 2, 4, 5, 6, 7, 8, 9, 11, 22, 23)
_81_EDX = 0x2FD3FBFF
_88_EBX = _bits(0, 1, 2, 9, 12, 14, 15, 24, 25, 26, 28)
_SVM_EDX = _bits(0, 1, 3, 5, 6, 7, 10, 12, 15, 16)


def _entry(function: int, eax: int, ebx: int, ecx: int, edx: int, index: int | None = None) -> CpuidEntry:
    return CpuidEntry(function, index or 0, 0 if index is None else 1, eax, ebx, ecx, edx)


def _brand(part: int) -> tuple[int, int, int, int]:
    words = [int.from_bytes(_BRAND[16 * part + 4 * i :][:4], "little") for i in range(4)]
    return words[0], words[1], words[2], words[3]


_SUPPORTED = (
    _entry(0x0, 0x10, _VENDOR[0], _VENDOR[1], _VENDOR[2]),
    _entry(0x1, _SIGNATURE, 0x00800800, _1_ECX, _1_EDX),
    _entry(0x5, 0x40, 0x40, 0x3, 0x11),
    _entry(0x6, 0x4, 0x0, 0x0, 0x0),
    _entry(0x7, 0x0, _7_EBX, _7_ECX, _7_EDX, index=0),
    _entry(0xB, 0x1, 0x2, 0x100, 0x0, index=0),
    _entry(0xB, 0x7, 0x80, 0x201, 0x0, index=1),
    _entry(0xD, 0x207, 0x988, 0x988, 0x0, index=0),
    _entry(0xD, 0xF, 0x348, 0x1800, 0x0, index=1),
    _entry(0xD, 0x100, 0x240, 0x0, 0x0, index=2),
    _entry(0xD, 0x8, 0x980, 0x0, 0x0, index=9),
    _entry(0xD, 0x10, 0x0, 0x1, 0x0, index=11),
    _entry(0xD, 0x18, 0x0, 0x1, 0x0, index=12),
    _entry(0x40000000, 0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D),
    _entry(0x40000001, 0x01007EFB, 0x0, 0x0, 0x0),
    _entry(0x80000000, 0x80000021, _VENDOR[0], _VENDOR[1], _VENDOR[2]),
    _entry(0x80000001, _SIGNATURE, 0x40000000, _81_ECX, _81_EDX),
    *(_entry(0x80000002 + part, *_brand(part)) for part in range(3)),
    _entry(0x80000005, 0xFF40FF40, 0xFF40FF40, 0x20080140, 0x20080140),
    _entry(0x80000006, 0x48002200, 0x68004200, 0x02006140, 0x08009140),
    _entry(0x80000007, 0x0, 0x0, 0x0, 0x100),
    _entry(0x80000008, 0x3030, _88_EBX, 0x0, 0x0),
    _entry(0x8000000A, 0x1, 0x8, 0x0, _SVM_EDX),
    _entry(0x80000019, 0xF040F040, 0xF0400000, 0x0, 0x0),
    _entry(0x8000001A, 0x6, 0x0, 0x0, 0x0),
    _entry(0x8000001E, 0x0, 0x0, 0x0, 0x0),
    _entry(0x8000001F, _bits(1, 3, 10), 0x0, 0x0, 0x0),  # EBX is filled in from Profile.encryption_ebx
    _entry(0x80000021, 0x41, 0x0, 0x0, 0x0),
)

_HOST_CPUID = {
    (0x0, 0): (0x10, _VENDOR[0], _VENDOR[1], _VENDOR[2]),
    (0x1, 0): (_SIGNATURE, 0x00800800, 0x7EFA320B, 0x178BFBFF),
    (0x7, 0): (0x0, 0x219C97A9, 0x0040069C, 0x00000010),
    (0x80000000, 0): (0x80000023, _VENDOR[0], _VENDOR[1], _VENDOR[2]),
    (0x80000001, 0): (_SIGNATURE, 0x40000000, 0x75C237FF, 0x2FD3FBFF),
    **{(0x80000002 + part, 0): _brand(part) for part in range(3)},
    (0x80000008, 0): (0x00003030, 0x111EF657, 0x0000707F, 0x00010000),
    (0x8000000A, 0): (0x1, 0x8000, 0x0, 0x119B9CFF),
}

# KVM_CHECK_EXTENSION. Left out, so answered 0, are what the model does not do though a real 6.1 does:
# Hyper-V and Xen enlightenments, statistics descriptors (203), dirty rings (192).
_ONE = (
    *(
        0,
        1,
        2,
        3,
        4,
        6,
        7,
        8,
        11,
        12,
        14,
        16,
        21,
        22,
        23,
        24,
        26,
        29,
        30,
        32,
        33,
        34,
        35,
        36,
        37,
        40,
        41,
        47,
        49,
        50,
    ),
    *(
        51,
        55,
        56,
        59,
        60,
        61,
        67,
        69,
        71,
        72,
        76,
        77,
        78,
        79,
        81,
        82,
        95,
        97,
        98,
        100,
        105,
        116,
        117,
        119,
        120,
        121,
    ),
    *(
        122,
        127,
        136,
        153,
        159,
        162,
        164,
        169,
        173,
        182,
        183,
        184,
        187,
        188,
        189,
        190,
        197,
        198,
        200,
        204,
        206,
        209,
    ),
    *(214, 215, 218, 220),
)
_VALUES = {
    9: 128,  # NR_VCPUS: the host's CPUs
    10: 32764,  # NR_MEMSLOTS
    15: 2,  # COALESCED_MMIO: page offset
    25: 4096,  # IRQ_ROUTING
    31: 32,  # MCE banks
    39: 0xE,  # ADJUST_CLOCK
    66: 1024,  # MAX_VCPUS
    74: 7,  # SYNC_REGS
    118: 2,  # MULTI_ADDRESS_SPACE
    128: 4096,  # MAX_VCPU_ID
    129: 3,  # X2APIC_API
    143: 0xE,  # X86_DISABLE_EXITS
    157: 4224,  # NESTED_STATE
    168: 3,  # MANUAL_DIRTY_LOG_PROTECT2
    195: 0x1F0003,  # SET_GUEST_DEBUG2
    201: 1 << 12,  # EXIT_HYPERCALL
    208: 4096,  # XSAVE2
    212: 1,  # PMU_CAPABILITY
    213: 0x7F,  # DISABLE_QUIRKS2
}

_MSR_INDEX_LIST = (
    *(
        0x174,
        0x175,
        0x176,
        0xC0000081,
        0x277,
        0xC0000083,
        0xC0000102,
        0xC0000084,
        0xC0000082,
        0x10,
        0xC0010117,
    ),
    *(0xC0000103, 0x48, 0x11, 0x12, 0x4B564D00, 0x4B564D01, 0x4B564D02, 0x4B564D03, 0x4B564D04, 0x4B564D05),
    *(0x4B564D06, 0x4B564D07, 0x3B, 0x6E0, 0x10A, 0x1A0, 0x17A, 0x17B, 0x9E, 0xCE, 0x140, 0xC001011F),
    *range(0xC0010000, 0xC0010008),
    *range(0xC0010200, 0xC001020C),
    *(0xC0000104, 0xDA0),
)

# Registers that KVM_GET_MSRS and KVM_SET_MSRS know without listing them.
_MSR_RANGES = (
    (0x0, 0x1),
    (0x17, 0x17),
    (0x1B, 0x1B),
    (0x8B, 0x8B),
    (0xC1, 0xC2),
    (0xFE, 0xFE),
    (0x179, 0x17B),
    (0x1D9, 0x1DE),
    (0x200, 0x20F),
    (0x250, 0x250),
    (0x258, 0x259),
    (0x268, 0x26F),
    (0x2FF, 0x2FF),
    (0x400, 0x47F),
    (0x800, 0x8FF),
    (0xC0000080, 0xC0000080),
    (0xC0000100, 0xC0000101),
    (0xC0010010, 0xC0010010),
    (0xC0010015, 0xC0010015),
    (0xC001001F, 0xC001001F),
    (0xC0010055, 0xC0010055),
    (0xC0010058, 0xC0010058),
    (0xC0010112, 0xC0010115),
    (0xC0010131, 0xC0010131),
    (0xC0011029, 0xC0011029),
    (0xC0011022, 0xC0011023),
)

PROFILE = Profile(
    name="linux-6.1",
    release="6.1.0-50-amd64",
    version="#1 SMP PREEMPT_DYNAMIC Debian 6.1.170-1 (2026-04-30)",
    microcode="0xa0011d7",
    kvm_amd={
        "avic": "N",
        "dump_invalid_vmcb": "N",
        "force_avic": "N",
        "intercept_smi": "Y",
        "lbrv": "1",
        "nested": "1",
        "npt": "Y",
        "nrips": "1",
        "pause_filter_count": "3000",
        "pause_filter_thresh": "128",
        "sev": "",
        "sev_es": "",
        "tsc_scaling": "1",
        "vgif": "1",
        "vls": "1",
    },
    kvm={
        "enable_pmu": "Y",
        "halt_poll_ns": "200000",
        "ignore_msrs": "N",
        "mmio_caching": "Y",
        "nx_huge_pages": "N",
        "tdp_mmu": "Y",
    },
    ccp={
        "init_ex_path": "(null)",
        "psp_cmd_timeout": "100",
        "psp_init_on_probe": "Y",
        "psp_probe_timeout": "5",
    },
    capabilities={**dict.fromkeys(_ONE, 1), **_VALUES},
    host_cpuid=_HOST_CPUID,
    encryption_eax=0x0101FD3F,
    supported_cpuid=_SUPPORTED,
    msr_index_list=_MSR_INDEX_LIST,
    msr_features={0x8B: 0x0A0011D7, 0x10A: 0x4C, 0xC0011029: 0x2},
    msr_ranges=_MSR_RANGES,
)
