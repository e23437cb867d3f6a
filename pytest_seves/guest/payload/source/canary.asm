; SPDX-License-Identifier: GPL-2.0-or-later
;
; Known values in registers, held while this CPU spins, and compared afterwards. A canary is
;     seed << 32 | kind << 24 | number << 16 | cpu           kind 1 general, 2 XMM (both halves), 4 memory
;     seed << 16 | 3 << 12 | number << 8 | cpu & 0xFF        DR0 to DR3: canonical addresses
; and CR3 holds CANARY_PML4. The image has only the complement of the seed, so that it does not give them away.
; RSP is no canary: the loop counts on the stack. RAX and RDX leave for one RDTSC in PAUSES rounds.

bits 64

PAUSES          equ 256
KIND_GPR        equ 1 << 24
KIND_XMM        equ 2 << 24
KIND_MEMORY     equ 4 << 24
NUMBER          equ 1 << 16
CHANGED_GPR     equ 1
CHANGED_XMM     equ 2
CHANGED_CR3     equ 4
CHANGED_DR      equ 8
CHANGED_MEMORY  equ 16

; out: rax the canary of kind 0 and number 0; in: rbx; changes rdx
canary_base:
        mov     eax, [rel cmd_seed_complement]
        not     eax
        shl     rax, 32
        mov     edx, [rbx + p_index]
        or      rax, rdx                        ; not eax: that would clear the upper half
        ret

; out: rax what DR0 holds
canary_debug:
        mov     eax, [rel cmd_seed_complement]
        not     eax
        shl     rax, 16
        movzx   edx, byte [rbx + p_index]
        lea     rax, [rax + rdx + 0x3000]
        ret

; The BSP's page: the memory canaries 0 to 255, twice.
fill_canary_page:
        call    canary_base
        lea     rax, [rax + KIND_MEMORY]
        mov     edi, CANARY_PAGE
        xor     ecx, ecx
.next:  movzx   edx, cl
        shl     edx, 16
        add     rdx, rax
        mov     [rdi + rcx * 8], rdx
        inc     ecx
        cmp     ecx, 512
        jb      .next
        ret

copy_page_table:
        mov     esi, PML4
        mov     edi, CANARY_PML4
        mov     ecx, 512
        rep movsq
        ret

; Place them, spin until a beat has gone by, compare. In: rbx. Changes all registers but rbx.
canary_beat:
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        add     rax, [rel cmd_beat]
        push    rax                             ; [rsp + 16]: until when
        push    qword [rbx + p_checks]          ; [rsp + 8]: 0 the first time, in its low half
        push    0                               ; [rsp]: PAUSEs left
        test    dword [rel cmd_flags], FLAG_NO_DR
        jnz     .no_debug
        call    canary_debug
        mov     dr0, rax
        add     rax, 0x100
        mov     dr1, rax
        add     rax, 0x100
        mov     dr2, rax
        add     rax, 0x100
        mov     dr3, rax
.no_debug:
        mov     eax, CANARY_PML4
        mov     cr3, rax
        call    canary_base
        sub     rsp, 16
%assign i 0
%rep 16
        lea     rcx, [rax + KIND_XMM + i * NUMBER]
        mov     [rsp], rcx
        mov     [rsp + 8], rcx
        movdqu  xmm %+ i, [rsp]                 ; a KVM that emulates the guest knows this one
  %assign i i + 1
%endrep
        add     rsp, 16
        lea     rcx, [rax + KIND_GPR + 1 * NUMBER]
        lea     rdx, [rax + KIND_GPR + 2 * NUMBER]
        lea     rbx, [rax + KIND_GPR + 3 * NUMBER]
        lea     rbp, [rax + KIND_GPR + 5 * NUMBER]
        lea     rsi, [rax + KIND_GPR + 6 * NUMBER]
        lea     rdi, [rax + KIND_GPR + 7 * NUMBER]
%assign i 8
%rep 8
        lea     r %+ i, [rax + KIND_GPR + i * NUMBER]
  %assign i i + 1
%endrep
        lea     rax, [rax + KIND_GPR]
        cmp     dword [rsp + 8], 0
        jne     .spin
        lock inc dword [g_placed]
.spin:  mov     dword [rsp], PAUSES
.pause: pause
        dec     dword [rsp]
        jnz     .pause
        push    rax
        push    rdx
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        cmp     rax, [rsp + 32]
        pop     rdx
        pop     rax
        jb      .spin
        push_all

; --- compare ------------------------------------------------------------------------------------------------
        this_cpu rbx
        xor     ebp, ebp                        ; CHANGED_*
        call    canary_base
        lea     rdx, [rax + KIND_GPR]
%macro compare_gpr 2                            ; number, where push_all put it
        lea     rcx, [rdx + %1 * NUMBER]
        cmp     rcx, [rsp + %2]
        jne     .gpr
%endmacro
        compare_gpr 0, F_RAX
        compare_gpr 1, F_RCX
        compare_gpr 2, F_RDX
        compare_gpr 3, F_RBX
        compare_gpr 5, F_RBP
        compare_gpr 6, F_RSI
        compare_gpr 7, F_RDI
%assign i 8
%rep 8
        compare_gpr i, F_R15 + (15 - i) * 8
  %assign i i + 1
%endrep
        jmp     .xmm
.gpr:   or      ebp, CHANGED_GPR
.xmm:   sub     rsp, 16
%assign i 0
%rep 16
        lea     rcx, [rax + KIND_XMM + i * NUMBER]
        movdqu  [rsp], xmm %+ i
        cmp     rcx, [rsp]
        jne     .xmm_changed
        cmp     rcx, [rsp + 8]
        jne     .xmm_changed
  %assign i i + 1
%endrep
        jmp     .cr3
.xmm_changed:
        or      ebp, CHANGED_XMM
.cr3:   mov     rcx, cr3
        cmp     rcx, CANARY_PML4
        je      .debug
        or      ebp, CHANGED_CR3
.debug: test    dword [rel cmd_flags], FLAG_NO_DR
        jnz     .memory
        call    canary_debug
        xor     edx, edx
        mov     rcx, dr0
%assign i 0
%rep 4
        mov     rcx, dr %+ i
        cmp     rcx, rax
        setne   dl
        or      dh, dl
        add     rax, 0x100
  %assign i i + 1
%endrep
        test    dh, dh
        jz      .clear
        or      ebp, CHANGED_DR
.clear: xor     eax, eax
        mov     dr0, rax
        mov     dr1, rax
        mov     dr2, rax
        mov     dr3, rax
.memory:
        cmp     dword [rbx + p_index], 0
        jne     .end
        call    canary_base
        lea     rax, [rax + KIND_MEMORY]
        mov     esi, CANARY_PAGE
        xor     ecx, ecx
.word:  movzx   edx, cl
        shl     edx, 16
        add     rdx, rax
        cmp     [rsi + rcx * 8], rdx
        jne     .memory_changed
        inc     ecx
        cmp     ecx, 512
        jb      .word
        jmp     .end
.memory_changed:
        or      ebp, CHANGED_MEMORY
.end:   mov     eax, PML4
        mov     cr3, rax
        or      [rbx + p_changed], ebp
        inc     dword [rbx + p_checks]
        add     rsp, 16 + 15 * 8 + 3 * 8
        ret
