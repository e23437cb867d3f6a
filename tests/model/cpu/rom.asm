; SPDX-License-Identifier: GPL-2.0-or-later
;
; Source of rom.py: nasm -f bin rom.asm

bits 16
org 0
BASE equ 0xFFFF0000
GHCB equ 0x200000
FLAG equ 0x9000
start:
    cli
    o32 lgdt [cs:gdtr]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    jmp dword 8:(BASE+prot)
ap:                             ; a SEV-ES AP: CS base 0xffff0000, paging off, so its memory is private
    mov byte [FLAG], 1
    mov eax, 6                  ; AP reset hold by the MSR protocol
    xor edx, edx
    mov ecx, 0xc0010130
    wrmsr
    db 0xf3, 0x0f, 0x01, 0xd9
    hlt
align 8
gdt: dq 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
gdtr: dw 31
    dd BASE+gdt
bits 32
prot:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, 0x7000
    mov ecx, 0xc0010131         ; SEV_STATUS
    rdmsr
    mov esi, eax
    xor ebp, ebp
    test al, 1
    jz .plain
    mov ebp, 1 << 7             ; C-bit 39
.plain:
    mov edi, 0x10000            ; PML4, PDPT, 4 PDs
    xor eax, eax
    mov ecx, 0x6000/4
    rep stosd
    mov dword [0x10000], 0x11003
    mov [0x10004], ebp
    mov edi, 0x11000
    mov eax, 0x12003
    mov ecx, 4
.l1: mov [edi], eax
    mov [edi+4], ebp
    add edi, 8
    add eax, 0x1000
    loop .l1
    mov edi, 0x12000
    mov eax, 0x83
    mov ecx, 2048
.l2: mov [edi], eax
    mov [edi+4], ebp
    add edi, 8
    add eax, 0x200000
    loop .l2
    mov dword [0x1200c], 0      ; the second 2 MiB are shared
    mov eax, cr4
    or al, 0x20
    mov cr4, eax
    mov eax, 0x10000
    mov cr3, eax
    mov ecx, 0xc0000080
    mov eax, 0x100
    xor edx, edx
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    jmp 0x18:(BASE+lmode)
bits 64
lmode:
    mov byte [FLAG], 0
    mov rax, 0x8badf00dcafed00d
    mov [0x9008], rax           ; a canary in private memory
    mov edi, GHCB
    xor eax, eax
    mov ecx, 512
    rep stosq
    mov al, 'B'
    call putc
    mov rax, 0xf401900006c6    ; bits 16: mov byte [0x9000], 1; hlt
    mov [0x8000], rax
    mov ecx, 0x1b               ; x2APIC on
    mov eax, 0xfee00d00
    call wrmsr_
    mov ecx, 0x830
    mov eax, 0xc4500
    call wrmsr_
    mov eax, 0xc4608
    call wrmsr_
.w: pause
    cmp byte [FLAG], 1
    jne .w
    mov al, 'A'
    call putc
    mov al, 10
    call putc
.h: hlt
    jmp .h
putc:                           ; al
    test esi, 2
    jnz .es
    mov dx, 0x3f8
    out dx, al
    ret
.es:
    movzx eax, al
    mov [GHCB+0x1f8], rax
    mov qword [GHCB+0x390], 0x7b
    mov qword [GHCB+0x398], 0x03f80010
    jmp ask
wrmsr_:                         ; ecx, eax; edx is 0
    xor edx, edx
    test esi, 2
    jnz .es
    wrmsr
    ret
.es:
    mov [GHCB+0x1f8], rax
    mov [GHCB+0x308], rcx
    mov [GHCB+0x310], rdx
    mov qword [GHCB+0x390], 0x7c
    mov qword [GHCB+0x398], 1
ask:
    mov qword [GHCB+0x3a0], 0
    or byte [GHCB+0x3f7], 0x80  ; rax
    or word [GHCB+0x3fc], 0x06  ; rcx, rdx
    or word [GHCB+0x3fe], 0x1c  ; exit code, info
    push rcx
    mov eax, GHCB
    xor edx, edx
    mov ecx, 0xc0010130
    wrmsr
    db 0xf3, 0x0f, 0x01, 0xd9
    pop rcx
    ret
end:
times 0xffe0-22-($-$$) db 0x90
    dd BASE+ap
    dw 22
    dd 0x00f771de
    dw 0x1a7e, 0x4fcb
    db 0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e
times 0xfff0-($-$$) db 0x90
bits 16
    jmp start
times 0x10000-($-$$) db 0x90
