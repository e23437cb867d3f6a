; SPDX-License-Identifier: GPL-2.0-or-later
;
; The first and the last line of a report, and what they need to know.

bits 64

; A mark in the CMOS says that this start is the reset that the guest brought about.
cmos_begin:
        call    cmos_select
        in      al, dx
        cmp     al, CMOS_MARK
        jne     .first
        inc     dword [g_again]
        xor     eax, eax
        jmp     cmos_write
.first: ret

; in: al the byte
cmos_write:
        push    rax
        call    cmos_select
        pop     rax
        out     dx, al
        ret

; out: dx the port of the byte
cmos_select:
        mov     dx, CMOS_INDEX
        mov     al, CMOS_BYTE
        out     dx, al
        mov     dx, CMOS_DATA
        ret

; Number of CPUs: from the command, else from fw_cfg (QEMU docs/specs/fw_cfg.rst), else 1.
count_cpus:
        mov     eax, [rel cmd_cpus]
        test    eax, eax
        jnz     .known
        mov     eax, FW_CFG_SIGNATURE
        call    fw_cfg_read
        cmp     eax, 'QEMU'
        mov     eax, 1
        jne     .known
        mov     eax, FW_CFG_NB_CPUS
        call    fw_cfg_read
        movzx   eax, ax
.known: mov     [g_cpus], eax
        ret

; in: eax key; out: eax the first four bytes
fw_cfg_read:
        mov     dx, FW_CFG_SELECT
        out     dx, ax
        mov     dx, FW_CFG_DATA
        mov     ecx, 4
.next:  in      al, dx
        ror     eax, 8
        loop    .next
        ret

say_begin:
        call    line_begin
        text    " begin"
        call    put_scenario
        number  " cpus=", [g_cpus]
        hex     " tag=", [rel cmd_tag]
        number  " again=", [g_again]
        hex     " sev_status=", [rbx + p_sev_status]
        mov     edx, [g_cbit_number]
        number  " cbit=", edx
        mov     r13, rbx
        call    put_ghcb
        number  " x2apic=", [g_x2apic]
        jmp     line_end

say_end:
        call    line_begin
        text    " end"
        call    put_scenario
        number  " lines=", [g_lines]
        number  " cpus=", [g_slots]
        number  " retries=", [g_retries]
        number  " forced=", [g_forced]
        text    " result="
        mov     eax, [g_result]
        cmp     eax, RESULT_TIMEOUT
        je      .timeout
        ja      .other
        text    "ok"
        jmp     line_end
.timeout:
        text    "timeout"
        jmp     line_end
.other: cmp     eax, RESULT_FAULT
        je      .fault
        text    "unsupported"
        jmp     line_end
.fault: text    "fault"
        jmp     line_end

put_scenario:
        text    " scenario="
        mov     ecx, [rel cmd_scenario]
        cmp     ecx, SCENARIOS
        jae     .unknown
        lea     rsi, [rel .names]
.next:  lodsb
        test    al, al
        jz      .skip
        test    ecx, ecx
        jnz     .next
        stosb
        jmp     .next
.skip:  dec     ecx
        jns     .next
        ret
.unknown:
        mov     eax, ecx
        jmp     put_decimal
.names: db      "boot", 0, "spin", 0, "park", 0, "terminate", 0, "triple-fault", 0, "reset", 0, "storm", 0
