# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM API: ioctl numbers, capabilities and register structures of x86.

Source: Linux uapi ``include/uapi/linux/kvm.h`` and ``arch/x86/include/uapi/asm/kvm.h``, release 7.2;
every number here is the same since 5.11, where SEV-ES hosts begin. Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

from typing import Any

from .layout import Field, Layout

KVM_API_VERSION = 12

# System descriptor (/dev/kvm)
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_MSR_INDEX_LIST = 0xC004AE02
KVM_CHECK_EXTENSION = 0xAE03
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_GET_SUPPORTED_CPUID = 0xC008AE05
KVM_GET_EMULATED_CPUID = 0xC008AE09
KVM_GET_MSR_FEATURE_INDEX_LIST = 0xC004AE0A

# VM descriptor
KVM_CREATE_VCPU = 0xAE41
KVM_GET_DIRTY_LOG = 0x4010AE42
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_TSS_ADDR = 0xAE47
KVM_SET_IDENTITY_MAP_ADDR = 0x4008AE48
KVM_SET_USER_MEMORY_REGION2 = 0x40A0AE49
KVM_CREATE_IRQCHIP = 0xAE60
KVM_IRQ_LINE = 0x4008AE61
KVM_GET_IRQCHIP = 0xC208AE62
KVM_SET_IRQCHIP = 0x8208AE63
KVM_REGISTER_COALESCED_MMIO = 0x4010AE67
KVM_IRQ_LINE_STATUS = 0xC008AE67
KVM_UNREGISTER_COALESCED_MMIO = 0x4010AE68
KVM_SET_GSI_ROUTING = 0x4008AE6A
KVM_IRQFD = 0x4020AE76
KVM_CREATE_PIT2 = 0x4040AE77
KVM_SET_BOOT_CPU_ID = 0xAE78
KVM_IOEVENTFD = 0x4040AE79
KVM_SET_CLOCK = 0x4030AE7B
KVM_GET_CLOCK = 0x8030AE7C
KVM_GET_PIT2 = 0x8070AE9F
KVM_SET_PIT2 = 0x4070AEA0
KVM_SIGNAL_MSI = 0x4020AEA5
KVM_SET_PMU_EVENT_FILTER = 0x4020AEB2
KVM_MEMORY_ENCRYPT_OP = 0xC008AEBA
KVM_MEMORY_ENCRYPT_REG_REGION = 0x8010AEBB  # _IOR in the header, but the structure is an input
KVM_MEMORY_ENCRYPT_UNREG_REGION = 0x8010AEBC
KVM_CLEAR_DIRTY_LOG = 0xC018AEC0
KVM_X86_SET_MSR_FILTER = 0x4188AEC6
KVM_RESET_DIRTY_RINGS = 0xAEC7
KVM_CREATE_DEVICE = 0xC00CAEE0

# vCPU descriptor
KVM_RUN = 0xAE80
KVM_GET_REGS = 0x8090AE81
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_TRANSLATE = 0xC018AE85
KVM_INTERRUPT = 0x4004AE86
KVM_GET_MSRS = 0xC008AE88
KVM_SET_MSRS = 0x4008AE89
KVM_SET_SIGNAL_MASK = 0x4004AE8B
KVM_GET_FPU = 0x81A0AE8C
KVM_SET_FPU = 0x41A0AE8D
KVM_GET_LAPIC = 0x8400AE8E
KVM_SET_LAPIC = 0x4400AE8F
KVM_SET_CPUID2 = 0x4008AE90
KVM_GET_CPUID2 = 0xC008AE91
KVM_TPR_ACCESS_REPORTING = 0xC028AE92
KVM_SET_VAPIC_ADDR = 0x4008AE93
KVM_GET_MP_STATE = 0x8004AE98
KVM_SET_MP_STATE = 0x4004AE99
KVM_NMI = 0xAE9A
KVM_SET_GUEST_DEBUG = 0x4048AE9B
KVM_X86_SETUP_MCE = 0x4008AE9C
KVM_X86_GET_MCE_CAP_SUPPORTED = 0x8008AE9D
KVM_X86_SET_MCE = 0x4040AE9E
KVM_GET_VCPU_EVENTS = 0x8040AE9F
KVM_SET_VCPU_EVENTS = 0x4040AEA0
KVM_GET_DEBUGREGS = 0x8080AEA1
KVM_SET_DEBUGREGS = 0x4080AEA2
KVM_SET_TSC_KHZ = 0xAEA2
KVM_GET_TSC_KHZ = 0xAEA3
KVM_GET_XSAVE = 0x9000AEA4
KVM_SET_XSAVE = 0x5000AEA5
KVM_GET_XCRS = 0x8188AEA6
KVM_SET_XCRS = 0x4188AEA7
KVM_KVMCLOCK_CTRL = 0xAEAD
KVM_SMI = 0xAEB7
KVM_GET_NESTED_STATE = 0xC080AEBE
KVM_SET_NESTED_STATE = 0x4080AEBF
KVM_GET_SREGS2 = 0x8140AECC
KVM_SET_SREGS2 = 0x4140AECD
KVM_GET_STATS_FD = 0xAECE
KVM_GET_XSAVE2 = 0x9000AECF

# Any descriptor
KVM_ENABLE_CAP = 0x4068AEA3
KVM_SET_DEVICE_ATTR = 0x4018AEE1
KVM_GET_DEVICE_ATTR = 0x4018AEE2
KVM_HAS_DEVICE_ATTR = 0x4018AEE3

_NOT_IOCTLS = {"KVM_API_VERSION"}

#: The header's name of every request above.
IOCTL_NAMES = {
    number: name for name, number in globals().items() if name.startswith("KVM_") and name not in _NOT_IOCTLS
}

#: Requests that set a part of the register state which the VMSA holds.
REGISTER_READS = frozenset(
    {
        KVM_GET_REGS,
        KVM_GET_SREGS,
        KVM_GET_SREGS2,
        KVM_GET_FPU,
        KVM_GET_XSAVE,
        KVM_GET_XSAVE2,
        KVM_GET_XCRS,
        KVM_GET_DEBUGREGS,
        KVM_GET_MSRS,
    }
)
REGISTER_WRITES = frozenset(
    {
        KVM_SET_REGS,
        KVM_SET_SREGS,
        KVM_SET_SREGS2,
        KVM_SET_FPU,
        KVM_SET_XSAVE,
        KVM_SET_XCRS,
        KVM_SET_DEBUGREGS,
        KVM_SET_MSRS,
    }
)

# Capabilities (KVM_CHECK_EXTENSION)
KVM_CAP_IRQCHIP = 0
KVM_CAP_NR_VCPUS = 9
KVM_CAP_NR_MEMSLOTS = 10
KVM_CAP_SET_GUEST_DEBUG = 23
KVM_CAP_IRQFD = 32
KVM_CAP_IOEVENTFD = 36
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_SYNC_REGS = 74
KVM_CAP_READONLY_MEM = 81
KVM_CAP_IRQFD_RESAMPLE = 82
KVM_CAP_IOEVENTFD_NO_LENGTH = 100
KVM_CAP_X86_SMM = 117
KVM_CAP_SPLIT_IRQCHIP = 121
KVM_CAP_IOEVENTFD_ANY_LENGTH = 122
KVM_CAP_MAX_VCPU_ID = 128
KVM_CAP_VM_COPY_ENC_CONTEXT_FROM = 197
KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM = 206
KVM_CAP_XSAVE2 = 208
KVM_CAP_VM_TYPES = 235

# Address spaces of memory slots (bits 31:16 of kvm_userspace_memory_region.slot, x86)
ADDRESS_SPACE_NORMAL = 0
ADDRESS_SPACE_SMM = 1

# Flags of a memory slot
KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1

# Flags of kvm_ioeventfd and kvm_irqfd
KVM_IOEVENTFD_FLAG_DATAMATCH = 1 << 0
KVM_IOEVENTFD_FLAG_PIO = 1 << 1
KVM_IOEVENTFD_FLAG_DEASSIGN = 1 << 2
KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY = 1 << 3
KVM_IOEVENTFD_VALID_FLAG_MASK = (1 << 5) - 1
KVM_IRQFD_FLAG_DEASSIGN = 1 << 0
KVM_IRQFD_FLAG_RESAMPLE = 1 << 1

# Types of virtual machine (argument of KVM_CREATE_VM)
KVM_X86_DEFAULT_VM = 0
KVM_X86_SW_PROTECTED_VM = 1
KVM_X86_SEV_VM = 2
KVM_X86_SEV_ES_VM = 3
KVM_X86_SNP_VM = 4
KVM_X86_TDX_VM = 5

# Device attributes of /dev/kvm
KVM_X86_GRP_SEV = 1
KVM_X86_SEV_VMSA_FEATURES = 0

# Exit reasons in kvm_run.exit_reason
KVM_EXIT_UNKNOWN = 0
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_SYSTEM_EVENT = 24

SEGMENT = Layout(
    "kvm_segment",
    24,
    Field("base", 0, "Q"),
    Field("limit", 8, "I"),
    Field("selector", 12, "H"),
    Field("type", 14, "B"),
    Field("present", 15, "B"),
    Field("dpl", 16, "B"),
    Field("db", 17, "B"),
    Field("s", 18, "B"),
    Field("l", 19, "B"),
    Field("g", 20, "B"),
    Field("avl", 21, "B"),
    Field("unusable", 22, "B"),
    Field("_padding", 23, "1s"),
)

DTABLE = Layout("kvm_dtable", 16, Field("base", 0, "Q"), Field("limit", 8, "H"), Field("_padding", 10, "6s"))

REGS = Layout(
    "kvm_regs",
    144,
    *(
        Field(name, 8 * index, "Q")
        for index, name in enumerate(
            [
                "rax",
                "rbx",
                "rcx",
                "rdx",
                "rsi",
                "rdi",
                "rsp",
                "rbp",
                "r8",
                "r9",
                "r10",
                "r11",
                "r12",
                "r13",
                "r14",
                "r15",
                "rip",
                "rflags",
            ]
        )
    ),
)

SEGMENT_NAMES = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")

_SREGS = (
    *(Field(name, 24 * index, SEGMENT) for index, name in enumerate(SEGMENT_NAMES)),
    Field("gdt", 192, DTABLE),
    Field("idt", 208, DTABLE),
    Field("cr0", 224, "Q"),
    Field("cr2", 232, "Q"),
    Field("cr3", 240, "Q"),
    Field("cr4", 248, "Q"),
    Field("cr8", 256, "Q"),
    Field("efer", 264, "Q"),
    Field("apic_base", 272, "Q"),
)

SREGS = Layout("kvm_sregs", 312, *_SREGS, Field("interrupt_bitmap", 280, "4Q"))
SREGS2 = Layout("kvm_sregs2", 320, *_SREGS, Field("flags", 280, "Q"), Field("pdptrs", 288, "4Q"))

DEBUGREGS = Layout(
    "kvm_debugregs",
    128,
    Field("db", 0, "4Q"),
    Field("dr6", 32, "Q"),
    Field("dr7", 40, "Q"),
    Field("flags", 48, "Q"),
    Field("_reserved", 56, "72s"),
)

XCR = Layout("kvm_xcr", 16, Field("xcr", 0, "I"), Field("_reserved", 4, "4s"), Field("value", 8, "Q"))

XCRS = Layout(
    "kvm_xcrs",
    392,
    Field("nr_xcrs", 0, "I"),
    Field("flags", 4, "I"),
    *(Field(f"xcr{index}", 8 + 16 * index, XCR) for index in range(16)),
    Field("_padding", 264, "128s"),
)

CPUID_ENTRY = Layout(
    "kvm_cpuid_entry2",
    40,
    Field("function", 0, "I"),
    Field("index", 4, "I"),
    Field("flags", 8, "I"),
    Field("eax", 12, "I"),
    Field("ebx", 16, "I"),
    Field("ecx", 20, "I"),
    Field("edx", 24, "I"),
    Field("_padding", 28, "12s"),
)

#: Header of kvm_cpuid2; `nent` entries of CPUID_ENTRY follow.
CPUID2 = Layout("kvm_cpuid2", 8, Field("nent", 0, "I"), Field("_padding", 4, "4s"))


def cpuid_entries(raw: bytes) -> list[dict[str, Any]]:
    """Leaves of a kvm_cpuid2, in its order.

    :raise ValueError: it is shorter than its own count says.
    """
    count = CPUID2.decode(raw[: CPUID2.size])["nent"]
    starts = range(CPUID2.size, CPUID2.size + count * CPUID_ENTRY.size, CPUID_ENTRY.size)
    return [CPUID_ENTRY.decode(raw[start : start + CPUID_ENTRY.size]) for start in starts]


MSR_ENTRY = Layout(
    "kvm_msr_entry", 16, Field("index", 0, "I"), Field("_reserved", 4, "4s"), Field("data", 8, "Q")
)

#: Header of kvm_msrs; `nmsrs` entries of MSR_ENTRY follow.
MSRS = Layout("kvm_msrs", 8, Field("nmsrs", 0, "I"), Field("_pad", 4, "4s"))


def msr_entries(raw: bytes) -> list[dict[str, Any]]:
    """Entries of a kvm_msrs, in its order.

    :raise ValueError: it is shorter than its own count says.
    """
    count = MSRS.decode(raw[: MSRS.size])["nmsrs"]
    starts = range(MSRS.size, MSRS.size + count * MSR_ENTRY.size, MSR_ENTRY.size)
    return [MSR_ENTRY.decode(raw[start : start + MSR_ENTRY.size]) for start in starts]


ENC_REGION = Layout("kvm_enc_region", 16, Field("addr", 0, "Q"), Field("size", 8, "Q"))

USERSPACE_MEMORY_REGION = Layout(
    "kvm_userspace_memory_region",
    32,
    Field("slot", 0, "I"),
    Field("flags", 4, "I"),
    Field("guest_phys_addr", 8, "Q"),
    Field("memory_size", 16, "Q"),
    Field("userspace_addr", 24, "Q"),
)

ENABLE_CAP = Layout(
    "kvm_enable_cap",
    104,
    Field("cap", 0, "I"),
    Field("flags", 4, "I"),
    Field("args", 8, "4Q"),
    Field("_pad", 40, "64s"),
)

DEVICE_ATTR = Layout(
    "kvm_device_attr",
    24,
    Field("flags", 0, "I"),
    Field("group", 4, "I"),
    Field("attr", 8, "Q"),
    Field("addr", 16, "Q"),
)

MP_STATE = Layout("kvm_mp_state", 4, Field("mp_state", 0, "I"))
