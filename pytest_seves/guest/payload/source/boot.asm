; SPDX-License-Identifier: GPL-2.0-or-later
;
; From the reset vector to long mode, and the page tables.
; While paging is off all memory of an encrypted guest is private (APM 15.34, "Page Table Support"), so that the
; only way to talk to the hypervisor here is the GHCB MSR protocol.

bits 16
; What an AP meets first, wherever it starts: it takes down the address at which this copy lies, and enters the
; image in protected mode. place_stub (smp.asm) copies it elsewhere and patches the two marked operands.
ap_stub:
        cli
        mov     ebx, IMAGE_BASE + ap_stub
.at     equ     $ - 4 - ap_stub
        mov     di, cs
        o32 lgdt [cs:.gdtr]
.gdtr_at equ    $ - 2 - ap_stub
        mov     eax, cr0
        and     eax, 0x9FFFFFFF         ; CD and NW off
        or      al, 1
        mov     cr0, eax
        jmp     dword CODE32:IMAGE_BASE + ap32
.gdtr:  dw      gdt_end - gdt - 1
        dd      IMAGE_BASE + gdt
AP_STUB_SIZE    equ $ - ap_stub
AP_STUB_GDTR    equ ap_stub.gdtr - ap_stub

start16:
        cli
        mov     di, cs
        o32 lgdt [cs:gdt_pointer]
        mov     eax, cr0
        and     eax, 0x9FFFFFFF
        or      al, 1
        mov     cr0, eax
        jmp     dword CODE32:IMAGE_BASE + start32

align 8
gdt:    dq      0
        dq      0x00CF9B000000FFFF      ; CODE32; accessed already: the image may be read-only
        dq      0x00CF93000000FFFF      ; DATA
        dq      0x00AF9B000000FFFF      ; CODE64
gdt_end:
gdt_pointer:
        dw      gdt_end - gdt - 1
        dd      IMAGE_BASE + gdt

align 8
idt32:  times 29 dq 0
        dw      vc32, CODE32, 0x8E00, IMAGE_BASE >> 16
idt32_pointer:
        dw      $ - idt32 - 1
        dd      IMAGE_BASE + idt32

bits 32
start32:
        mov     ax, DATA
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     esp, BOOT_STACK
        lidt    [IMAGE_BASE + idt32_pointer]
        xor     ebp, ebp                ; vc32 sets it: a #VC is proof of SEV-ES
        xor     eax, eax
        xor     ecx, ecx
        cpuid
        mov     esi, 1                  ; the leaf with the APIC id
        cmp     eax, 0xB
        jb      .leaf_is_known
        mov     eax, 0xB
        xor     ecx, ecx
        cpuid
        test    ebx, ebx                ; 0: the leaf is not there (APM volume 3, appendix E)
        jz      .leaf_is_known
        mov     esi, 0xB
.leaf_is_known:
        mov     eax, esi
        xor     ecx, ecx
        cpuid
        cmp     esi, 0xB
        je      .id_is_known
        mov     edx, ebx
        shr     edx, 24
.id_is_known:
        test    edx, edx
        jz      bsp32
        mov     ebx, 0xFFFFFFF0         ; no BSP: an AP that was started at the reset vector
        jmp     ap32

bsp32:
        cld
        push    edi
        push    esi
        mov     edi, GLOBALS
        xor     eax, eax
        mov     ecx, 0x1000 / 4
        rep stosd
        mov     edi, APIC_IDS
        mov     ecx, MAX_CPUS
        dec     eax
        rep stosd
        mov     edi, RUNNING
        mov     ecx, MAX_CPUS / 4
        inc     eax
        rep stosd
        pop     dword [g_apic_leaf]
        mov     eax, 0x80000000
        xor     ecx, ecx
        cpuid
        cmp     eax, 0x8000001F
        mov     eax, 0
        jb      .no_leaf
        mov     eax, 0x8000001F
        xor     ecx, ecx
        cpuid
.no_leaf:
        test    al, 2                   ; SEV; CPUID is the hypervisor's word, a #VC is the CPU's
        jnz     .sev
        test    ebp, ebp
        jz      paging
.sev:   mov     dword [g_sev], 1
        and     ebx, 0x3F
        mov     [g_cbit_number], ebx
        mov     ecx, MSR_SEV_STATUS
        rdmsr
        mov     [g_sev_status], eax
        mov     [g_sev_status + 4], edx
        test    al, SEV_SNP_ENABLED     ; its memory would have to be validated first
        jnz     terminate32
        test    al, SEV_ENABLED
        jz      paging
        test    al, SEV_ES_ENABLED
        jz      .position_is_known
        mov     eax, GHCB_INFO_REQUEST
        xor     edx, edx
        mov     ecx, MSR_GHCB
        wrmsr
        vmgexit
        rdmsr
        mov     edx, eax
        and     edx, GHCB_MSR_CODE
        cmp     edx, GHCB_INFO
        jne     terminate32
        shr     eax, 24
        mov     [g_cbit_number], eax
.position_is_known:
        mov     ecx, [g_cbit_number]
        sub     ecx, 32                 ; the low half of an entry has no room for it
        jb      terminate32
        mov     eax, 1
        shl     eax, cl
        mov     [g_cbit + 4], eax

paging:
        mov     ebp, [g_cbit + 4]
        mov     edi, PML4
        xor     eax, eax
        mov     ecx, 0x6000 / 4
        rep stosd
        mov     dword [PML4], PDPT | 3
        mov     [PML4 + 4], ebp
        mov     edi, PDPT
        mov     eax, PD | 3
        mov     ecx, 4
.directory:
        mov     [edi], eax
        mov     [edi + 4], ebp
        add     edi, 8
        add     eax, 0x1000
        loop    .directory
        mov     edi, PD
        mov     eax, 0x83
        mov     ecx, 4 * 512
.page:  mov     [edi], eax
        mov     [edi + 4], ebp
        add     edi, 8
        add     eax, BIG_PAGE
        loop    .page
        xor     eax, eax                ; shared: the GHCBs, and the APIC, which is no memory
        mov     edi, PD + (GHCBS / BIG_PAGE) * 8 + 4
        mov     ecx, MAX_CPUS * 0x1000 / BIG_PAGE
.shared:
        mov     [edi], eax
        add     edi, 8
        loop    .shared
        mov     [PD + (LAPIC / BIG_PAGE) * 8 + 4], eax
        pop     edi
        mov     esi, IMAGE_BASE + bsp64
        jmp     long_mode

ap32:
        mov     ax, DATA
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     esi, IMAGE_BASE + ap64

; in: esi where to go on; ebx and edi are kept
long_mode:
        mov     eax, cr4
        or      eax, 0x620              ; PAE, OSFXSR, OSXMMEXCPT
        mov     cr4, eax
        mov     eax, PML4
        mov     cr3, eax
        mov     ecx, MSR_EFER
        rdmsr
        or      eax, 0x100              ; LME
        wrmsr
        mov     eax, cr0
        and     eax, 0x9FFFFFF3         ; CD, NW, TS and EM off
        or      eax, 0x80000022         ; PG, NE, MP
        mov     cr0, eax
        jmp     CODE64:IMAGE_BASE + .long
bits 64
.long:  mov     eax, esi
        jmp     rax

bits 32
; #VC before long mode: CPUID alone, leaf by leaf and register by register (GHCB, "GHCB MSR Protocol").
vc32:
        cmp     dword [esp], EXIT_CPUID
        jne     terminate32
        mov     [VC32_LEAF], eax
        push    esi
        mov     esi, 3 << 30
.next:  mov     edx, [VC32_LEAF]
        mov     eax, esi
        or      eax, GHCB_CPUID_REQUEST
        mov     ecx, MSR_GHCB
        wrmsr
        vmgexit
        rdmsr
        and     eax, GHCB_MSR_CODE
        cmp     eax, GHCB_CPUID
        jne     terminate32
        push    edx
        sub     esi, 1 << 30
        jnc     .next
        pop     eax
        pop     ebx
        pop     ecx
        pop     edx
        pop     esi
        add     esp, 4
        add     dword [esp], 2
        or      ebp, 1
        iretd
VC32_LEAF       equ BOOT_STACK

; There is no console yet: reason set 0, code 0, the general termination request.
terminate32:
        mov     eax, GHCB_TERMINATE
        xor     edx, edx
        mov     ecx, MSR_GHCB
        wrmsr
        vmgexit
.stop:  hlt
        jmp     .stop
