; SPDX-License-Identifier: GPL-2.0-or-later
;
; APs: where they start, who they are, how they park. GHCB, "SMP Booting" and "AP Reset Hold".

bits 64

; in: rdi an address below 4 GiB; the stub that is put there reports that address
place_stub:
        mov     rdx, rdi
        lea     rsi, [rel ap_stub]
        mov     ecx, AP_STUB_SIZE
        rep movsb
        mov     [rdx + ap_stub.at], edx
        lea     eax, [rdx + AP_STUB_GDTR]       ; CS base is a multiple of 64 KiB or the page itself:
        mov     [rdx + ap_stub.gdtr_at], ax     ; either way the offset in it are the low bits
        ret

; In low memory CS base is the SIPI vector's page, and the offset starts at 0 there.
place_sipi_stub:
        mov     edi, [rel cmd_sipi_vector]
        shl     edi, 12
        call    place_stub
        mov     word [rdx + ap_stub.gdtr_at], AP_STUB_GDTR
        ret

; INIT, SIPI, and a second SIPI only if some AP did not come: one that has parked again would wake from it.
boot_aps:
        cmp     dword [g_cpus], 2
        jb      .none
        mov     edi, PERCPU + PERCPU_SIZE       ; an AP that is lost on its way leaves zeros, not noise
        mov     ecx, [g_cpus]
        dec     ecx
        imul    ecx, ecx, PERCPU_SIZE / 8
        xor     eax, eax
        rep stosq
        call    place_sipi_stub
        mov     edi, [rel cmd_reset_address]
        cmp     edi, IMAGE_BASE
        jae     .in_image
        call    place_stub
.in_image:
        call    send_init
        call    short_wait
        call    send_sipi
        mov     esi, g_started
        call    wait_for_aps
        jnc     .all_started
        inc     dword [g_retries]
        call    send_sipi
.all_started:
        mov     esi, g_arrived
        call    wait_for_aps
        jnc     .none
        mov     dword [g_result], RESULT_TIMEOUT
.none:  ret

; in: esi a counter of APs; out: CF set when it stood still for too long before all were counted
wait_for_aps:
        mov     r9d, [rsi]
        call    deadline
.wait:  mov     ecx, [rsi]
        inc     ecx
        cmp     ecx, [g_cpus]
        jae     .all
        dec     ecx
        cmp     ecx, r9d
        jne     wait_for_aps
        call    still_time
        jb      .wait
        stc
        ret
.all:   clc
        ret

; An AP in long mode, without a stack: ebx address of its stub, edi selector of CS.
ap64:   cld
        mov     r12d, ebx
        mov     r13d, edi
        xor     r14d, r14d
        cmp     dword [g_sev], 0
        je      .plain
        mov     ecx, MSR_SEV_STATUS
        rdmsr
        shl     rdx, 32
        or      rax, rdx
        mov     r14, rax
.plain: test    r14d, SEV_ES_ENABLED
        jz      .native
        mov     edx, [g_apic_leaf]
        mov     eax, 1 << 30 | GHCB_CPUID_REQUEST       ; EBX
        cmp     edx, 1
        je      .ask
        mov     eax, 3 << 30 | GHCB_CPUID_REQUEST       ; EDX
.ask:   mov     ecx, MSR_GHCB
        wrmsr
        vmgexit
        rdmsr
        and     eax, GHCB_MSR_CODE
        cmp     eax, GHCB_CPUID
        jne     stop
        mov     ebx, edx
        jmp     .answered
.native:
        mov     eax, [g_apic_leaf]
        xor     ecx, ecx
        cpuid
.answered:
        cmp     dword [g_apic_leaf], 1
        jne     .id_is_known
        mov     edx, ebx
        shr     edx, 24
.id_is_known:
        xor     r15d, r15d              ; 1: a new slot
        xor     ecx, ecx
.find:  inc     ecx
        cmp     ecx, [g_slots]
        jae     .new
        cmp     [APIC_IDS + rcx * 4], edx
        jne     .find
        jmp     .take
.new:   mov     ecx, 1
        lock xadd [g_slots], ecx
        cmp     ecx, MAX_CPUS
        jae     stop
        mov     [APIC_IDS + rcx * 4], edx
        inc     r15d
.take:  mov     al, 1
        xchg    al, [RUNNING + rcx]
        test    al, al
        jnz     .new                    ; another CPU has this id too: it shall be seen, not overwritten
        enter_slot
        test    r15d, r15d
        jz      ap_woken
        lock inc dword [g_started]
        call    arrive
        lock inc dword [g_arrived]
        cmp     dword [rel cmd_scenario], SCENARIO_STORM
        je      .storm
        cmp     dword [rel cmd_scenario], SCENARIO_SPIN
        jne     ap_park
        call    spin
        jmp     .done
.storm: call    storm
.done:  lock inc dword [g_done]
        jmp     ap_park

ap_woken:
        inc     dword [rbx + p_wakes]
        lock inc dword [g_woken]

ap_park:
        test    byte [rbx + p_sev_status], SEV_ES_ENABLED
        jnz     .hold
        mov     ecx, [rbx + p_index]
        mov     byte [RUNNING + rcx], 0
        jmp     stop                    ; INIT and SIPI bring it back by way of its stub
.hold:  test    dword [rel cmd_flags], FLAG_HOLD_MSR
        jz      .hold_page
        cmp     dword [rbx + p_ghcb_version], 2
        jb      .hold_page
        mov     eax, GHCB_HOLD_REQUEST
        xor     edx, edx
        call    ghcb_msr_call
        mov     ecx, eax
        and     ecx, GHCB_MSR_CODE
        xor     eax, ecx
        cmp     ecx, GHCB_HOLD
        jne     .spurious
        or      eax, edx
        jnz     ap_woken
        jmp     .spurious
.hold_page:
        mov     rbp, [rbx + p_ghcb]
        call    ghcb_clear
        mov     eax, EXIT_HOLD
        xor     r8d, r8d
        xor     r9d, r9d
        call    ghcb_exit
        cmp     qword [rbp + GHCB_EXITINFO2], 0
        jne     ap_woken
.spurious:
        inc     dword [rbx + p_spurious]
        pause
        jmp     ap_park
