; SPDX-License-Identifier: GPL-2.0-or-later
;
; What the BSP does once the APs have reported. README.md says what each scenario is for.

bits 64

SCENARIO_BOOT   equ 0
SCENARIO_SPIN   equ 1
SCENARIO_PARK   equ 2
SCENARIO_TERMINATE equ 3
SCENARIO_TRIPLE equ 4
SCENARIO_RESET  equ 5
SCENARIO_STORM  equ 6
SCENARIOS       equ 7

bsp64:  cld
        mov     r13d, edi
        mov     r12d, 0xFFFFFFF0
        mov     r14, [g_sev_status]
        mov     dword [g_slots], 1
        mov     byte [RUNNING], 1
        xor     ecx, ecx
        xor     edx, edx                        ; its APIC id is 0: boot.asm would not have come here otherwise
        mov     [APIC_IDS], edx
        mov     r15d, 1
        enter_slot
        call    serial_begin
        call    cmos_begin
        call    count_cpus
        call    apic_begin
        call    say_begin
        cmp     dword [rel cmd_scenario], SCENARIO_SPIN
        jne     .boot
        call    fill_canary_page
        call    copy_page_table
.boot:  call    boot_aps
        call    arrive
        call    say_cpus
        mov     eax, [rel cmd_scenario]
        cmp     eax, SCENARIOS
        jae     .unknown
        cmp     dword [g_again], 0              ; after the reset that was asked for: report and stay
        jne     .end
        lea     rdx, [rel .scenarios]
        movzx   eax, word [rdx + rax * 2]
        mov     ecx, IMAGE_BASE
        add     rax, rcx
        call    rax
        jmp     .end
.unknown:
        mov     dword [g_result], RESULT_UNSUPPORTED
.end:   call    say_end
        jmp     stop
.scenarios:
        dw      nothing, bsp_spin, bsp_park, terminate, triple_fault, reset, bsp_storm

nothing:
        ret

; --- spin: canaries in all registers ------------------------------------------------------------------------
spin:   call    canary_beat
        cmp     dword [g_stop], 0
        je      spin
        ret

bsp_spin:
        mov     esi, g_placed
        call    wait_for_aps
        jnc     .placed
        mov     dword [g_result], RESULT_TIMEOUT
.placed:
        xor     r12d, r12d
.beat:  push    r12
        call    canary_beat
        pop     r12
        inc     r12d
        call    line_begin
        number  " beat=", r12d
        number  " holding=", [g_placed]
        mov     r13, rbx
        call    put_canaries
        call    line_end
        cmp     r12d, [rel cmd_rounds]
        jne     .beat                           ; 0 rounds: for ever
        mov     dword [g_stop], 1
        call    wait_until_done
        for_each_slot 0, say_canaries
        ret

wait_until_done:
        mov     esi, g_done
        call    wait_for_aps
        jnc     .done
        mov     dword [g_result], RESULT_TIMEOUT
.done:  ret

say_canaries:
        call    line_begin
        number  " canaries=", r12d
        number  " checks=", [r13 + p_checks]
        call    put_canaries
        jmp     line_end

; in: r13 data of a CPU
put_canaries:
        mov     r10d, [r13 + p_changed]
%macro canary 2
        text    %1
        mov     eax, %2
        call    put_state
%endmacro
        canary  " gpr=", CHANGED_GPR
        canary  " xmm=", CHANGED_XMM
        canary  " cr3=", CHANGED_CR3
        canary  " dr=", CHANGED_DR
        canary  " memory=", CHANGED_MEMORY
        ret

put_state:
        test    r10d, eax
        jnz     .changed
        text    "kept"
        ret
.changed:
        text    "changed"
        ret

; --- park: wake all APs from where they are held, rounds times ----------------------------------------------
bsp_park:
        cmp     dword [g_cpus], 2
        jb      .say
        mov     r12d, [rel cmd_rounds]
.round: test    r12d, r12d
        jz      .say
        dec     r12d
        mov     r13d, 3
.again: call    short_wait                      ; an AP that has reported still has to reach its hold
        mov     dword [g_woken], 0              ; a SIPI sent again wakes those that did wake, too
        call    send_init
        call    short_wait
        call    send_sipi
        mov     esi, g_woken
        call    wait_for_aps
        jnc     .round
        inc     dword [g_retries]
        dec     r13d
        jnz     .again
        mov     dword [g_result], RESULT_TIMEOUT
.say:   for_each_slot 1, say_parked
        ret

say_parked:
        call    line_begin
        number  " parked=", r12d
        number  " wakes=", [r13 + p_wakes]
        number  " spurious=", [r13 + p_spurious]
        jmp     line_end

; --- the end of the guest: the report ends first ------------------------------------------------------------
terminate:
        test    byte [rbx + p_sev_status], SEV_ES_ENABLED
        jnz     .es
        mov     dword [g_result], RESULT_UNSUPPORTED
        ret
.es:    call    say_end
        mov     eax, [rel cmd_reason]
        and     eax, 0xFFF
        shl     eax, 12
        or      eax, GHCB_TERMINATE             ; set in 15:12, code in 23:16
        xor     edx, edx
        call    ghcb_msr_call
        jmp     came_back

triple_fault:
        mov     al, CMOS_MARK                   ; a guest that is not encrypted starts again
        call    cmos_write
        call    say_end
        lidt    [rel no_idt]
        ud2
        jmp     came_back

reset:  mov     al, CMOS_MARK
        call    cmos_write
        call    say_end
        test    dword [rel cmd_flags], FLAG_RESET_KEYBOARD
        jnz     .keyboard
        mov     dx, 0xCF9
        mov     al, 2
        out     dx, al
        mov     al, 6
        out     dx, al
        jmp     .wait
.keyboard:
        mov     dx, 0x64
        mov     al, 0xFE
        out     dx, al
.wait:  call    deadline
.still: call    still_time
        jb      .still

came_back:
        call    line_begin
        text    " returned=1"
        call    line_end
        jmp     stop

; --- storm: the same CPUID and IN, over and over, on every CPU ----------------------------------------------
storm:  mov     r12d, [rel cmd_rounds]
        push    rbx
        xor     eax, eax
        xor     ecx, ecx
        cpuid
        mov     r13d, ebx
        mov     r14d, edx
        pop     rbx
.next:  test    r12d, r12d
        jz      nothing
        dec     r12d
        push    rbx
        xor     eax, eax
        xor     ecx, ecx
        cpuid
        xor     ebx, r13d
        xor     edx, r14d
        mov     ecx, ebx
        or      ecx, edx
        pop     rbx
        jz      .same
        inc     dword [rbx + p_storm_bad]
.same:  mov     dx, COM1_LSR
        in      al, dx
        jmp     .next

bsp_storm:
        call    storm
        call    wait_until_done
        for_each_slot 0, say_storm
        ret

say_storm:
        call    line_begin
        number  " storm=", r12d
        number  " rounds=", [rel cmd_rounds]
        number  " bad=", [r13 + p_storm_bad]
        lea     r14, [r13 + p_vc_cpuid]
        call    put_vc
        jmp     line_end
