; SPDX-License-Identifier: GPL-2.0-or-later
;
; #VC for IN and OUT by DX, and for REP OUTSB: the image has no others. EXITINFO1 is that of the IOIO intercept
; (APM 15.10, "IN and OUT Behavior").

bits 64

IO_IN           equ 1 << 0
IO_STRING       equ 1 << 2
IO_REP          equ 1 << 3
IO_SIZE         equ 4                   ; shift: 1, 2 or 4 bytes
IO_ADDRESS_64   equ 1 << 9
IO_SEGMENT_DS   equ 3 << 10
IO_PORT         equ 16                  ; shift

vc_ioio:
        inc     dword [rbx + p_vc_ioio]
        xor     r9d, r9d
        mov     r10d, 1                 ; length of the instruction
        mov     r11d, 4                 ; bytes moved
        movzx   r8d, word [rsp + F_RDX]
        shl     r8d, IO_PORT
        or      r8d, IO_ADDRESS_64
        lodsb
        cmp     al, 0xF3
        je      .rep
        cmp     al, 0x66
        jne     .opcode
        mov     r11d, 2
        inc     r10d
        lodsb
.opcode:
        test    al, 1
        jnz     .wide
        mov     r11d, 1
.wide:  mov     ecx, r11d
        shl     ecx, IO_SIZE
        or      r8d, ecx
        and     al, ~1
        cmp     al, 0xEE
        je      .out
        cmp     al, 0xEC
        jne     vc_unknown
        or      r8d, IO_IN
        xor     eax, eax
        call    .move
        need_valid GHCB_RAX
        mov     rdx, [rbp + GHCB_RAX]
        cmp     r11d, 2
        je      .in_word
        ja      .in_dword
        mov     [rsp + F_RAX], dl
        jmp     .done
.in_word:
        mov     [rsp + F_RAX], dx
        jmp     .done
.in_dword:
        mov     edx, edx
        mov     [rsp + F_RAX], rdx
        jmp     .done
.out:   mov     ecx, 32
        shl     r11d, 3
        sub     ecx, r11d
        mov     eax, [rsp + F_RAX]
        shl     eax, cl                 ; only the bytes that the instruction sends leave the guest
        shr     eax, cl
        call    .move
.done:  add     [rsp + F_RIP], r10
        jmp     vc_done

.move:  mov     [rbp + GHCB_RAX], rax
        valid   GHCB_RAX
        mov     eax, EXIT_IOIO
        jmp     ghcb_exit

; REP OUTSB by way of the shared buffer. What does not fit in comes again: the instruction is run once more.
.rep:   cmp     byte [rsi], 0x6E
        jne     vc_unknown
        or      r8d, IO_STRING | IO_REP | 1 << IO_SIZE | IO_SEGMENT_DS
        mov     ecx, GHCB_BUFFER_SIZE
        cmp     [rsp + F_RCX], rcx
        jae     .fits
        mov     ecx, [rsp + F_RCX]
.fits:  mov     r9d, ecx
        mov     rsi, [rsp + F_RSI]
        lea     rdi, [rbp + GHCB_BUFFER]
        mov     [rbp + GHCB_SCRATCH], rdi
        valid   GHCB_SCRATCH
        rep movsb
        mov     [rsp + F_RSI], rsi
        sub     [rsp + F_RCX], r9
        test    r9d, r9d
        jz      .none
        mov     eax, EXIT_IOIO
        call    ghcb_exit
.none:  cmp     qword [rsp + F_RCX], 0
        jne     vc_done
        mov     r10d, 2
        jmp     .done
