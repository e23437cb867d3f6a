# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual machine control block: the offsets, intercepts and exit codes in use.

Source: AMD64 Architecture Programmer's Manual volume 2 (24593), appendix B (VMCB layout) and C (exit codes).
"""

from __future__ import annotations

# Control area
INTERCEPT_CR = 0x000  # reads in the low half, writes in the high half
INTERCEPT_DR = 0x004
INTERCEPT_EXCEPTIONS = 0x008
INTERCEPT_INSTRUCTIONS = 0x00C  # 64 bits here: bit n is exit code 0x60 + n
IOPM_BASE = 0x040
MSRPM_BASE = 0x048
GUEST_ASID = 0x058
INT_CTL = 0x060
EXIT_INFO_2 = 0x080
NESTED_CTL = 0x090
NESTED_CR3 = 0x0B0

# Save area: segments are 16 bytes each (selector, attributes, limit, base)
SEGMENTS = {
    name: 0x400 + 16 * index
    for index, name in enumerate(("es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr"))
}
CPL = 0x4CB
SAVED = {
    "efer": 0x4D0,
    "cr4": 0x548,
    "cr3": 0x550,
    "cr0": 0x558,
    "dr7": 0x560,
    "dr6": 0x568,
    "rflags": 0x570,
    "rip": 0x578,
    "rsp": 0x5D8,
    "rax": 0x5F8,
    "star": 0x600,
    "lstar": 0x608,
    "cstar": 0x610,
    "sfmask": 0x618,
    "kernel_gs_base": 0x620,
    "sysenter_cs": 0x628,
    "sysenter_esp": 0x630,
    "sysenter_eip": 0x638,
    "cr2": 0x640,
    "g_pat": 0x668,
}

# Exit codes
WRITE_CR0 = 0x10
WRITE_CR4 = 0x14
WRITE_CR8 = 0x18
READ_DR7 = 0x27
WRITE_DR7 = 0x37
EXCEPTION = 0x40
INTR = 0x60
VINTR = 0x64
RDTSC = 0x6E
RDPMC = 0x6F
CPUID = 0x72
IRET = 0x74
INVD = 0x76
PAUSE = 0x77
HLT = 0x78
INVLPGA = 0x7A
IOIO = 0x7B
MSR = 0x7C
SHUTDOWN = 0x7F
VMRUN = 0x80
VMMCALL = 0x81
VMLOAD = 0x82
VMSAVE = 0x83
STGI = 0x84
CLGI = 0x85
SKINIT = 0x86
RDTSCP = 0x87
WBINVD = 0x89
MONITOR = 0x8A
MWAIT = 0x8B
CR0_WRITE_TRAP = 0x90
NPF = 0x400
VMGEXIT = 0x403

#: Intercepted instructions. RDTSC, RDTSCP and PAUSE because guest time is virtual.
INSTRUCTIONS = (
    *(VINTR, RDTSC, RDPMC, CPUID, INVD, PAUSE, HLT, INVLPGA, MSR, SHUTDOWN, VMRUN, VMMCALL),
    *(VMLOAD, VMSAVE, STGI, CLGI, SKINIT, RDTSCP, WBINVD, MONITOR, MWAIT),
)

# INT_CTL
V_IRQ = 1 << 8
V_IGNORE_TPR = 1 << 20
V_INTR_MASKING = 1 << 24
