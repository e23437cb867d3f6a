; SPDX-License-Identifier: GPL-2.0-or-later
; The hooks of native.py: what unicorn calls for each block, exit and port access, without entering Python.
; nasm -f bin native.asm; a function begins at each multiple of 0x200, in the order block, interrupt, invalid, in, out, walk, syscall.
bits 64

%define BUDGET      0x00        ; struct Control
%define STOP        0x08
%define ADDRESS     0x10
%define NUMBER      0x18
%define REQUEST     0x20
%define CR_WRITES   0x30        ; address of CPUX86State.intercept_cr_write
%define ERROR       0x38        ; address of CPUX86State.error_code
%define DEBUG       0x40        ; address of CPUX86State.dr
%define STATE       0x48        ; address of CPUX86State
%define GHCB        0x50
%define ENCRYPTED   0x58        ; the GHCB MSR exists
%define STEPPING    0x60        ; a move to CR0 or CR4 executes
%define KEPT_BUDGET 0x68
%define KEPT_CR0    0x70
%define KEPT_CR4    0x78
%define KEPT_EIP    0x80
%define PORT        0x88        ; u32 port, size, value, kind (1 in, 2 out)
%define IO_KEPT     0x98        ; eip, rax, rsi, rdi, rcx, dr0, dr7

%define STATUS      0xd0        ; SEV_STATUS

%define RAX_AT  0x00            ; struct State
%define RCX_AT  0x08
%define RDX_AT  0x10
%define RSI_AT  0x30
%define RDI_AT  0x38
%define EIP_AT  0x80
%define HFLAGS  0xb0
%define CS_BASE 0xd8
%define CR0_AT  0x1a8
%define CR4_AT  0x1c8

%define PG_AND_PE 0x80000001
%define PAE 0x20
%define HF_INHIBIT_IRQ 8
%define HF_CS64 0x8000
%define CR0_AND_CR4 0x11
%define TRAP 0x190              ; exit code 0x90: a move that 64-bit code must not make
%define GHCB_MSR 0xc0010130
%define SYSCALL 0x200           ; for no exit code
%define IO_BREAKPOINT 0x20402   ; DR7

%define BACK       0xe00        ; struct Walk, in the page of walk
%define NESTED_CR3 0xe08        ; offset of nested_cr3 in CPUState
%define NO_PROT    0xe10        ; address of four bytes, not in this page: a CPU takes writes here for changes of code
%define PRIVATE_WALKS 1         ; bit of nested_cr3
%define C_BIT 39
%define FETCH 2                 ; MMU_INST_FETCH
%define PAGE_EXEC 4

; void block(uc, uint64_t address, uint32_t size, Control *)
block:
    dec qword [rcx + BUDGET]
    js .used_up
    ret
.used_up:
    cmp qword [rcx + STEPPING], 0
    je .stop
    mov qword [rcx + STEPPING], 0           ; the move has executed: intercept the next one again
    mov rax, [rcx + CR_WRITES]
    or word [rax], CR0_AND_CR4
    mov rax, [rcx + KEPT_BUDGET]
    dec rax
    mov [rcx + BUDGET], rax
    mov r8, [rcx + STATE]
    mov edx, [r8 + CR0_AT]
    and edx, PG_AND_PE
    cmp edx, PG_AND_PE
    jne .changed
    test dword [r8 + CR4_AT], PAE
    jz .changed
    test rax, rax
    js .stop
    ret
.changed:
    mov qword [rcx + NUMBER], TRAP
.stop:
    mov [rcx + ADDRESS], rsi
    jmp [rcx + STOP]

; void interrupt(uc, uint32_t number, Control *)
times 0x200 - ($ - $$) db 0xcc
interrupt:
    cmp esi, 0x110                          ; writes of CR0, CR4
    je .control
    cmp esi, 0x114
    je .control
    cmp esi, 0x17c                          ; RDMSR, WRMSR
    je .msr
.stop:
    cmp qword [rdx + STEPPING], 0           ; something else came instead of the move
    je .tell
    mov qword [rdx + STEPPING], 0
    mov rax, [rdx + CR_WRITES]
    or word [rax], CR0_AND_CR4
    mov rax, [rdx + KEPT_BUDGET]
    mov [rdx + BUDGET], rax
    mov r8, [rdx + STATE]
    mov eax, [r8 + CR0_AT]
    and eax, PG_AND_PE
    cmp eax, PG_AND_PE
    jne .changed
    test dword [r8 + CR4_AT], PAE
    jz .changed
.tell:
    mov eax, esi
    mov [rdx + NUMBER], rax
    mov rax, [rdx + REQUEST]
    and dword [rax], 0xfffffeff             ; CPU_INTERRUPT_VIRQ
    jmp [rdx + STOP]
.changed:                                   ; the trap comes first; what came, comes again
    mov rax, [r8 + EIP_AT]
    add rax, [r8 + CS_BASE]
    mov [rdx + ADDRESS], rax
    mov qword [rdx + NUMBER], TRAP
    jmp [rdx + STOP]
.control:                                   ; let it execute, then look (block): but for 64-bit code it may
    mov rax, [rdx + STATE]                  ; change what addresses mean, and that needs Python first
    test dword [rax + HFLAGS], HF_CS64
    jz .stop
    mov rcx, [rax + CR0_AT]
    mov [rdx + KEPT_CR0], rcx
    mov rcx, [rax + CR4_AT]
    mov [rdx + KEPT_CR4], rcx
    mov rcx, [rax + EIP_AT]
    mov [rdx + KEPT_EIP], rcx
    mov rcx, [rdx + BUDGET]
    mov [rdx + KEPT_BUDGET], rcx
    mov qword [rdx + BUDGET], 1             ; its own block
    mov qword [rdx + STEPPING], 1
    mov rcx, [rdx + CR_WRITES]
    and word [rcx], ~CR0_AND_CR4
    ret
.msr:                                       ; hardware does not intercept these two either
    mov rax, [rdx + STATE]
    mov ecx, GHCB_MSR
    sub ecx, [rax + RCX_AT]
    jz .ghcb
    inc ecx                                 ; SEV_STATUS follows it, and has a low half only
    jnz .stop
    mov rcx, [rdx + ERROR]
    test dword [rcx], 1
    jnz .stop
    mov ecx, [rdx + STATUS]
    mov [rax + RAX_AT], rcx
    mov qword [rax + RDX_AT], 0
    jmp .done
.ghcb:
    cmp qword [rdx + ENCRYPTED], 0
    je .stop
    mov rcx, [rdx + ERROR]
    test dword [rcx], 1
    jnz .write
    mov ecx, [rdx + GHCB]
    mov [rax + RAX_AT], rcx
    mov ecx, [rdx + GHCB + 4]
    mov [rax + RDX_AT], rcx
    jmp .done
.write:
    mov ecx, [rax + RAX_AT]
    mov [rdx + GHCB], ecx
    mov ecx, [rax + RDX_AT]
    mov [rdx + GHCB + 4], ecx
.done:
    add qword [rax + EIP_AT], 2
    and dword [rax + HFLAGS], ~HF_INHIBIT_IRQ
    ret

; bool invalid(uc, Control *): exception 6 is intercepted like any other
times 0x400 - ($ - $$) db 0xcc
invalid:
    mov rdx, rsi
    mov esi, 0x146
    sub rsp, 8
    call interrupt
    add rsp, 8
    mov eax, 1
    ret

; uint32_t in(uc, uint32_t port, int size, Control *)
times 0x600 - ($ - $$) db 0xcc
in_:
    mov r8, rcx
    xor ecx, ecx
    mov eax, 1
    jmp access

; void out(uc, uint32_t port, int size, uint32_t value, Control *)
times 0x800 - ($ - $$) db 0xcc
out_:
    mov eax, 2
access:                                     ; keep what it changes, and break behind it
    mov [r8 + PORT], esi
    mov [r8 + PORT + 4], edx
    mov [r8 + PORT + 8], ecx
    mov [r8 + PORT + 12], eax
    mov rax, [r8 + STATE]
    mov rcx, [rax + EIP_AT]
    mov [r8 + IO_KEPT], rcx
    mov rcx, [rax + RAX_AT]
    mov [r8 + IO_KEPT + 8], rcx
    mov rcx, [rax + RSI_AT]
    mov [r8 + IO_KEPT + 16], rcx
    mov rcx, [rax + RDI_AT]
    mov [r8 + IO_KEPT + 24], rcx
    mov rcx, [rax + RCX_AT]
    mov [r8 + IO_KEPT + 32], rcx
    mov rax, [r8 + DEBUG]
    mov rcx, [rax]
    mov [r8 + IO_KEPT + 40], rcx
    mov rcx, [rax + 56]
    mov [r8 + IO_KEPT + 48], rcx
    mov esi, esi
    mov [rax], rsi
    mov qword [rax + 56], IO_BREAKPOINT
    xor eax, eax
    ret

; hwaddr get_hphys(CPUState *, hwaddr, MMUAccessType, int *prot): what comes before its first instruction
times 0xa00 - ($ - $$) db 0xcc
walk:
    mov rax, [rel $$ + NESTED_CR3]
    test rcx, rcx
    jz .table
    test byte [rdi + rax], PRIVATE_WALKS
    jz .entry
    cmp edx, FETCH
    jne .entry
    bts rsi, C_BIT
    jc .entry
    and dword [rcx], PAGE_EXEC              ; this translation is the code's alone: data is shared
.entry:
    times 17 nop                            ; its first instructions
    jmp [rel $$ + BACK]
.table:                                     ; it has no prot, and some pages would have it written to
    mov rcx, [rel $$ + NO_PROT]
    test byte [rdi + rax], PRIVATE_WALKS
    jz .entry
    bts rsi, C_BIT
    jmp .entry

; void syscall(uc, Control *): the engine has left the instruction out, and goes on behind it
times 0xc00 - ($ - $$) db 0xcc
syscall_:
    mov rdx, rsi
    mov esi, SYSCALL
    jmp interrupt.stop
