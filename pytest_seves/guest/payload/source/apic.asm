; SPDX-License-Identifier: GPL-2.0-or-later
;
; IPIs to all CPUs but this one: by x2APIC MSRs where CPUID offers them, else through the APIC's page.
; APM chapter 16. Destination shorthand "all excluding self": no APIC id is needed.

bits 64

ICR_INIT        equ 0x000C4500          ; shorthand 11, assert, INIT
ICR_SIPI        equ 0x000C4600          ; or the vector
SVR_ENABLED     equ 0x1FF
APIC_SVR        equ LAPIC + 0xF0
APIC_ICR_LOW    equ LAPIC + 0x300

apic_begin:
        test    dword [rel cmd_flags], FLAG_XAPIC
        jnz     .page
        mov     eax, 1
        xor     ecx, ecx
        push    rbx
        cpuid
        pop     rbx
        bt      ecx, 21
        jnc     .page
        mov     ecx, MSR_APIC_BASE
        rdmsr
        or      eax, 1 << 11 | 1 << 10  ; enable, x2APIC mode
        wrmsr
        mov     dword [g_x2apic], 1
        mov     eax, SVR_ENABLED
        xor     edx, edx
        mov     ecx, MSR_X2APIC_SVR
        wrmsr
        ret
.page:  mov     edi, APIC_SVR
        mov     eax, SVR_ENABLED
        mov     [rdi], eax              ; vc_mmio knows this instruction
        ret

; in: eax low half of the ICR. Changes ecx, edx, rdi.
send_ipi:
        cmp     dword [g_x2apic], 0
        je      .page
        xor     edx, edx
        mov     ecx, MSR_X2APIC_ICR
        wrmsr
        ret
.page:  mov     edi, APIC_ICR_LOW
        mov     [rdi], eax
        ret

send_init:
        mov     eax, ICR_INIT
        jmp     send_ipi

send_sipi:
        mov     eax, [rel cmd_sipi_vector]
        or      eax, ICR_SIPI
        jmp     send_ipi

; about a millisecond, by the time stamp counter
short_wait:
        call    deadline
        sub     r8, [rel cmd_timeout]
        add     r8, 2000000
.wait:  call    still_time
        jb      .wait
        ret
