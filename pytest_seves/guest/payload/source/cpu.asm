; SPDX-License-Identifier: GPL-2.0-or-later
;
; A CPU gets a stack, its data, and a GHCB of its own; and what it says of itself.

bits 64

; rcx slot, edx APIC id, r12d stub, r13d CS, r14 SEV_STATUS, r15d 1 for a new slot; out: rbx, and a stack
%macro enter_slot 0
        mov     eax, ecx
        shl     rax, 12
        lea     rsp, [STACKS + rax + STACK_SIZE - 16]
        imul    ebx, ecx, PERCPU_SIZE
        add     ebx, PERCPU
        mov     [STACKS + rax], rbx
        call    cpu_begin
%endmacro

cpu_begin:
        lidt    [rel idt64_pointer]
        test    r15d, r15d
        jz      .same
        push    rcx
        mov     rdi, rbx
        xor     eax, eax
        mov     ecx, PERCPU_SIZE / 8
        rep stosq
        pop     rcx
        mov     [rbx + p_index], ecx
        mov     [rbx + p_apic], edx
.same:  mov     [rbx + p_at], r12d
        mov     [rbx + p_cs], r13d
        mov     [rbx + p_sev_status], r14
        test    r14d, SEV_ES_ENABLED
        jz      .no_ghcb
        shl     rcx, 12
        add     rcx, GHCBS
        mov     [rbx + p_ghcb], rcx
        mov     rdi, rcx
        xor     eax, eax
        mov     ecx, 0x1000 / 8
        rep stosq
        mov     eax, GHCB_INFO_REQUEST
        xor     edx, edx
        call    ghcb_msr_call
        mov     ecx, eax
        and     ecx, GHCB_MSR_CODE
        cmp     ecx, GHCB_INFO
        jne     .refuse
        movzx   ecx, dx
        shr     edx, 16
        mov     [rbx + p_ghcb_min], ecx
        mov     [rbx + p_ghcb_max], edx
        cmp     ecx, OUR_MAX            ; the highest version that both sides know
        ja      .refuse
        cmp     edx, OUR_MIN
        jb      .refuse
        cmp     edx, OUR_MAX
        jb      .negotiated
        mov     edx, OUR_MAX
.negotiated:
        mov     [rbx + p_ghcb_version], edx
.no_ghcb:
        ret
.refuse:
        mov     eax, GHCB_TERMINATE | 1 << 16   ; set 0, code 1: no protocol version in common
        xor     edx, edx
        call    ghcb_msr_call
        jmp     stop

; A CPU reports into its data: that takes one #VC each for CPUID and IN under SEV-ES. The BSP writes the lines.
arrive: call    read_apic_id
        mov     [rbx + p_cpuid], edx
        mov     dx, COM1_LSR
        in      al, dx
        lea     rsi, [rbx + p_vc_cpuid]
        lea     rdi, [rbx + p_vc_arrived]
        mov     ecx, 5
        rep movsd
        mov     dword [rbx + p_arrived], 1
        ret

; out: edx
read_apic_id:
        push    rbx
        mov     eax, [g_apic_leaf]
        xor     ecx, ecx
        cpuid
        cmp     dword [g_apic_leaf], 1
        jne     .end
        mov     edx, ebx
        shr     edx, 24
.end:   pop     rbx
        ret

; for_each_slot FIRST, LABEL: call LABEL with r12 the slot and r13 its data
%macro for_each_slot 2
        mov     r12d, %1
%%next: cmp     r12d, [g_slots]
        jae     %%end
        imul    r13d, r12d, PERCPU_SIZE
        add     r13d, PERCPU
        call    %2
        inc     r12d
        jmp     %%next
%%end:
%endmacro

say_cpus:
        for_each_slot 0, say_cpu
        ret

say_cpu:
        call    line_begin
        number  " cpu=", r12d
        number  " apic=", [r13 + p_apic]
        number  " cpuid=", [r13 + p_cpuid]
        number  " arrived=", [r13 + p_arrived]
        mov     edx, [r13 + p_at]
        cmp     edx, [rel cmd_reset_address]
        je      .reset_block
        cmp     edx, 0xFFFFFFF0
        je      .reset_vector
        text    " entry=sipi-vector"
        jmp     .entry
.reset_block:
        text    " entry=reset-block"
        jmp     .entry
.reset_vector:
        text    " entry=reset-vector"
.entry: mov     edx, [r13 + p_at]
        hex     " at=", rdx
        mov     edx, [r13 + p_cs]
        hex     " cs=", rdx
        hex     " sev_status=", [r13 + p_sev_status]
        call    put_ghcb
        lea     r14, [r13 + p_vc_arrived]
        call    put_vc
        jmp     line_end

; in: r13 data of a CPU
put_ghcb:
        number  " ghcb=", [r13 + p_ghcb_min]
        number  "..", [r13 + p_ghcb_max]
        number  " version=", [r13 + p_ghcb_version]
        ret

; in: r14 five counters. Reasons as their exit codes in hexadecimal, counts in decimal.
put_vc: number  " vc=72:", [r14]
        number  ",7b:", [r14 + 4]
        number  ",7c:", [r14 + 8]
        number  ",400:", [r14 + 12]
        number  ",6e:", [r14 + 16]
        ret
