; SPDX-License-Identifier: GPL-2.0-or-later
;
; #VC in long mode: the exit is told to the hypervisor through this CPU's GHCB page, the answer goes into the
; interrupted registers. APM 15.35, "#VC Exception"; what each exit needs: GHCB, "Non-Automatic Exits".

bits 64

F_R15           equ 0
F_RDI           equ 64
F_RSI           equ 72
F_RBP           equ 80
F_RBX           equ 88
F_RDX           equ 96
F_RCX           equ 104
F_RAX           equ 112
F_ERROR         equ 120
F_RIP           equ 128

; valid OFFSET: the field at that offset of the GHCB page (rbp) counts
%macro valid 1
        or      byte [rbp + GHCB_BITMAP + %1 / 64], 1 << (%1 / 8 % 8)
%endmacro

; need_valid OFFSET: the hypervisor must have answered with that field
%macro need_valid 1
        test    byte [rbp + GHCB_BITMAP + %1 / 64], 1 << (%1 / 8 % 8)
        jz      vmgexit_failed
%endmacro

%macro push_all 0
        push    rax
        push    rcx
        push    rdx
        push    rbx
        push    rbp
        push    rsi
        push    rdi
        push    r8
        push    r9
        push    r10
        push    r11
        push    r12
        push    r13
        push    r14
        push    r15
%endmacro

%macro pop_all 0
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     r11
        pop     r10
        pop     r9
        pop     r8
        pop     rdi
        pop     rsi
        pop     rbp
        pop     rbx
        pop     rdx
        pop     rcx
        pop     rax
%endmacro

vc64:
        push_all
        cld
        this_cpu rbx
        mov     rbp, [rbx + p_ghcb]
        mov     rsi, [rsp + F_RIP]
        mov     rax, [rsp + F_ERROR]
        call    ghcb_clear
        cmp     rax, EXIT_IOIO
        je      vc_ioio
        cmp     rax, EXIT_CPUID
        je      vc_cpuid
        cmp     rax, EXIT_MSR
        je      vc_msr
        cmp     rax, EXIT_NPF
        je      vc_mmio
        cmp     rax, EXIT_RDTSC
        je      vc_rdtsc
; an exit, or an instruction, that nothing here brings about
vc_unknown:
        pop_all
        jmp     fault_vc

vc_done:
        pop_all
        add     rsp, 8
        iretq

vc_cpuid:
        inc     dword [rbx + p_vc_cpuid]
        mov     eax, [rsp + F_RAX]
        mov     [rbp + GHCB_RAX], rax
        valid   GHCB_RAX
        cmp     eax, 0xD
        jne     .no_xcr0
        mov     qword [rbp + GHCB_XCR0], 1      ; its value at reset; CR4.OSXSAVE stays 0
        valid   GHCB_XCR0
.no_xcr0:
        mov     eax, [rsp + F_RCX]
        mov     [rbp + GHCB_RCX], rax
        valid   GHCB_RCX
        mov     eax, EXIT_CPUID
        xor     r8d, r8d
        xor     r9d, r9d
        call    ghcb_exit
        need_valid GHCB_RAX
        need_valid GHCB_RBX
        need_valid GHCB_RCX
        need_valid GHCB_RDX
        mov     eax, [rbp + GHCB_RAX]
        mov     [rsp + F_RAX], rax
        mov     eax, [rbp + GHCB_RBX]
        mov     [rsp + F_RBX], rax
        mov     eax, [rbp + GHCB_RCX]
        mov     [rsp + F_RCX], rax
        mov     eax, [rbp + GHCB_RDX]
        mov     [rsp + F_RDX], rax
        add     qword [rsp + F_RIP], 2
        jmp     vc_done

vc_msr:
        inc     dword [rbx + p_vc_msr]
        mov     eax, [rsp + F_RCX]
        mov     [rbp + GHCB_RCX], rax
        valid   GHCB_RCX
        xor     r8d, r8d
        cmp     byte [rsi + 1], 0x30            ; 0F 30 WRMSR, 0F 32 RDMSR
        jne     .exit
        inc     r8d
        mov     eax, [rsp + F_RAX]
        mov     [rbp + GHCB_RAX], rax
        valid   GHCB_RAX
        mov     eax, [rsp + F_RDX]
        mov     [rbp + GHCB_RDX], rax
        valid   GHCB_RDX
.exit:  mov     eax, EXIT_MSR
        xor     r9d, r9d
        call    ghcb_exit
        test    r8d, r8d
        jnz     .done
        jmp     vc_take_rax_rdx
.done:  add     qword [rsp + F_RIP], 2
        jmp     vc_done

vc_rdtsc:
        inc     dword [rbx + p_vc_rdtsc]
        mov     eax, EXIT_RDTSC
        xor     r8d, r8d
        xor     r9d, r9d
        call    ghcb_exit
vc_take_rax_rdx:
        need_valid GHCB_RAX
        need_valid GHCB_RDX
        mov     eax, [rbp + GHCB_RAX]
        mov     [rsp + F_RAX], rax
        mov     eax, [rbp + GHCB_RDX]
        mov     [rsp + F_RDX], rax
        add     qword [rsp + F_RIP], 2
        jmp     vc_done

; MOV EAX,[RDI] and MOV [RDI],EAX: all accesses to the APIC are one of the two (apic.asm), at physical addresses.
vc_mmio:
        inc     dword [rbx + p_vc_mmio]
        mov     r8, [rsp + F_RDI]
        mov     r9d, 4
        lea     rax, [rbp + GHCB_BUFFER]
        mov     [rbp + GHCB_SCRATCH], rax
        valid   GHCB_SCRATCH
        cmp     word [rsi], 0x078B
        je      .read
        cmp     word [rsi], 0x0789
        jne     vc_unknown
        mov     eax, [rsp + F_RAX]
        mov     [rbp + GHCB_BUFFER], eax
        mov     eax, EXIT_MMIO_WRITE
        call    ghcb_exit
        jmp     .done
.read:  mov     eax, EXIT_MMIO_READ
        call    ghcb_exit
        mov     eax, [rbp + GHCB_BUFFER]
        mov     [rsp + F_RAX], rax
.done:  add     qword [rsp + F_RIP], 2
        jmp     vc_done

; in: rbp GHCB; rax is kept. No field of the page counts until its bit in the bitmap is set.
ghcb_clear:
        mov     qword [rbp + GHCB_BITMAP], 0
        mov     qword [rbp + GHCB_BITMAP + 8], 0
        mov     dword [rbp + GHCB_USAGE], 0
        mov     ecx, [rbx + p_ghcb_version]
        mov     [rbp + GHCB_VERSION], cx
        ret

; in: rbx data of this CPU, rbp GHCB, eax exit code, r8 and r9 EXITINFO1 and 2. Changes eax, ecx, edx.
ghcb_exit:
        mov     eax, eax
        mov     [rbp + GHCB_EXITCODE], rax
        mov     [rbp + GHCB_EXITINFO1], r8
        mov     [rbp + GHCB_EXITINFO2], r9
        valid   GHCB_EXITCODE
        valid   GHCB_EXITINFO1
        valid   GHCB_EXITINFO2
        cmp     dword [rbx + p_msr_is_page], 0
        jne     .exit
        mov     eax, ebp
        xor     edx, edx
        mov     ecx, MSR_GHCB
        wrmsr
        mov     dword [rbx + p_msr_is_page], 1
.exit:  vmgexit
        cmp     dword [rbp + GHCB_EXITINFO1], 0 ; anything else: an exception to raise, or a refusal
        jne     vmgexit_failed
        ret

; in: eax, edx what goes into the GHCB MSR; out: what the hypervisor answers. GHCB, "GHCB MSR Protocol".
ghcb_msr_call:
        mov     dword [rbx + p_msr_is_page], 0
        mov     ecx, MSR_GHCB
        wrmsr
        vmgexit
        rdmsr
        ret
