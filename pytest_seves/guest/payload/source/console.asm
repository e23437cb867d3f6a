; SPDX-License-Identifier: GPL-2.0-or-later
;
; Lines on COM1, one at a time. A line is made in the data of its CPU while the lock is held, gets the number
; of lines before it and a CRC-32 of all that stands before " crc=", and goes out 16 bytes at a time.
; In a line rbx is the data of this CPU and rdi the end of the line so far.

bits 64

; text "...": put it at the end of the line
%macro text 1+
        call    put_text
        db      %1, 0
%endmacro

; number "name=", OPERAND: decimal, 32 bits
%macro number 2
        text    %1
        mov     eax, %2
        call    put_decimal
%endmacro

; hex "name=", OPERAND: hexadecimal, 64 bits, without leading zeros
%macro hex 2
        text    %1
        mov     rax, %2
        call    put_hex
%endmacro

; out: r8 the time at which a wait is over
deadline:
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        mov     r8, rax
        add     r8, [rel cmd_timeout]
        ret

; out: CF clear when the deadline r8 is past. Changes rax, rdx.
still_time:
        pause
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        cmp     rax, r8
        ret

line_begin:
        call    deadline
.try:   mov     eax, 1
        xchg    eax, [g_lock]
        test    eax, eax
        jz      .have
        call    still_time
        jb      .try
        lock inc dword [g_forced]       ; its holder is lost; better a torn line than none
.have:  lea     rdi, [rbx + p_line]
        number  "SEVES1 n=", [g_lines]
        ret

line_end:
        lea     rsi, [rbx + p_line]
        mov     rcx, rdi
        sub     rcx, rsi
        call    crc32
        mov     r9d, eax
        text    " crc="
        mov     eax, r9d
        mov     ecx, 8
        call    put_digits
        mov     al, 10
        stosb
        lea     rsi, [rbx + p_line]
        mov     rcx, rdi
        sub     rcx, rsi
        call    send
        inc     dword [g_lines]
        mov     dword [g_lock], 0
        ret

; in: rsi, rcx bytes to send. A UART that never gets ready is written to all the same.
send:   mov     r9, rcx
.burst: call    deadline
.wait:  mov     dx, COM1_LSR
        in      al, dx
        test    al, LSR_THRE
        jnz     .ready
        call    still_time
        jb      .wait
.ready: mov     ecx, FIFO
        cmp     r9, rcx
        jae     .full
        mov     ecx, r9d
.full:  sub     r9, rcx
        mov     dx, COM1
        rep outsb
        test    r9, r9
        jnz     .burst
        ret

; 115200 baud, 8N1, FIFO on; 16550, registers 0 to 4
serial_begin:
        lea     rsi, [rel .settings]
        mov     ecx, 7
.next:  movzx   edx, byte [rsi]
        add     edx, COM1
        mov     al, [rsi + 1]
        out     dx, al
        add     rsi, 2
        loop    .next
        ret
.settings:
        db      1, 0x00,  3, 0x83,  0, 0x01,  1, 0x00,  3, 0x03,  2, 0x07,  4, 0x03

; in: rsi, rcx bytes; out: eax their CRC-32 (IEEE 802.3, as zlib has it)
crc32:  or      eax, -1
.byte:  xor     al, [rsi]
        inc     rsi
        mov     edx, 8
.bit:   shr     eax, 1
        jnc     .zero
        xor     eax, 0xEDB88320
.zero:  dec     edx
        jnz     .bit
        loop    .byte
        not     eax
        ret

put_text:
        pop     rsi
.next:  lodsb
        test    al, al
        jz      .end
        stosb
        jmp     .next
.end:   jmp     rsi

put_hex:
        mov     ecx, 1
        mov     rdx, rax
.more:  shr     rdx, 4
        jz      put_digits
        inc     ecx
        jmp     .more

; in: rax, ecx how many digits of it
put_digits:
        mov     edx, ecx
        shl     ecx, 2
        ror     rax, cl
        mov     ecx, edx
.next:  rol     rax, 4
        mov     edx, eax
        and     edx, 15
        cmp     edx, 10
        jb      .decimal
        add     edx, 'a' - '0' - 10
.decimal:
        add     edx, '0'
        mov     [rdi], dl
        inc     rdi
        loop    .next
        ret

put_decimal:
        mov     esi, 10
        xor     ecx, ecx
.divide:
        xor     edx, edx
        div     esi
        push    rdx
        inc     ecx
        test    eax, eax
        jnz     .divide
.next:  pop     rax
        add     al, '0'
        stosb
        loop    .next
        ret
