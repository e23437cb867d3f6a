; SPDX-License-Identifier: GPL-2.0-or-later
;
; Exceptions that nobody expected, and VMGEXITs that the hypervisor refused: a line, then this CPU stops.

bits 64

align 16
idt64:
%assign vector 0
%rep 32
  %if vector == 29
        dw      vc64
  %else
        dw      fault_ %+ vector
  %endif
        dw      CODE64, 0x8E00, IMAGE_BASE >> 16, 0, 0, 0, 0
  %assign vector vector + 1
%endrep
idt64_pointer:
        dw      $ - idt64 - 1
        dq      IMAGE_BASE + idt64
no_idt: dw      0
        dq      0

%assign vector 0
%rep 32
  %if vector != 29
fault_ %+ vector:
    %if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21 && vector != 30
        push    0                       ; no error code from the CPU
    %endif
        push    vector
        jmp     fault
  %endif
  %assign vector vector + 1
%endrep

fault_vc:
        push    29

; on the stack: vector, error code, RIP
fault:  mov     r12, [rsp]
        mov     r13, [rsp + 8]
        mov     r14, [rsp + 16]
        call    fault_begin
        hex     " vector=", r12
        hex     " error=", r13
        hex     " rip=", r14
        hex     " cr2=", cr2
        jmp     fault_end

; a GHCB exit that did not go well; rbp is the GHCB
vmgexit_failed:
        mov     r12d, [rbp + GHCB_EXITCODE]
        mov     r13, [rbp + GHCB_EXITINFO1]
        mov     r14, [rbp + GHCB_EXITINFO2]
        call    fault_begin
        hex     " vmgexit=", r12
        hex     " info1=", r13
        hex     " info2=", r14
fault_end:
        call    line_end
        cmp     dword [rbx + p_index], 0
        jne     stop
        mov     dword [g_result], RESULT_FAULT
        call    say_end

stop:   cli
        hlt
        jmp     stop

; A second fault means that not even the line can be written: an AP stops, and the BSP reports that it did not
; arrive. The BSP of a SEV-ES guest asks for termination, by the one way that needs nothing: set 0, code 0.
no_line:
        cmp     dword [rbx + p_index], 0
        jne     stop
        test    byte [rbx + p_sev_status], SEV_ES_ENABLED
        jz      stop
        mov     eax, GHCB_TERMINATE
        xor     edx, edx
        call    ghcb_msr_call
        jmp     stop

fault_begin:
        cld
        this_cpu rbx
        xor     eax, eax
        inc     eax
        xchg    eax, [rbx + p_faulted]
        test    eax, eax
        jnz     no_line
        call    line_begin
        text    " fault"
        number  " cpu=", [rbx + p_index]
        ret
