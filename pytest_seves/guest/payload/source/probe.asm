; SPDX-License-Identifier: GPL-2.0-or-later
;
; The probe guest: a firmware image that brings up all vCPUs and says on COM1 what each of them met.
; README.md beside this directory describes the report, the scenarios and the documents that each step follows.
; Built by `tox run -e payload` into probe.bin; NASM, flat binary.

%include "layout.inc"

org 0
FILL            equ 0xF4                        ; HLT

        times 0xD000 db FILL

; --- the command: what the host wants. probe_image() in payload/image.py writes it. -------------------------
align 16, db FILL
command:
        db      "SEVESCMD"
        dw      1                               ; version
        dw      command_end - command
cmd_scenario:           dd 0
cmd_cpus:               dd 0                    ; CPUs that should be there; 0: ask fw_cfg
cmd_sipi_vector:        dd 0x08
cmd_reset_address:      dd IMAGE_BASE + ap_stub
cmd_rounds:             dd 0
cmd_flags:              dd 0
cmd_reason:             dd 0                    ; termination: set in 3:0, code in 11:4
cmd_seed_complement:    dd 0
cmd_tag:                dq 0
cmd_timeout:            dq 20000000000          ; ticks of the TSC without progress before a wait is given up
cmd_beat:               dq 100000000            ; ticks between two comparisons of canaries
command_end:

FLAG_XAPIC              equ 1 << 0              ; no x2APIC even where CPUID offers it
FLAG_HOLD_MSR           equ 1 << 1              ; AP reset hold by the MSR protocol where version 2 is in use
FLAG_NO_DR              equ 1 << 2              ; leave the debug registers alone
FLAG_RESET_KEYBOARD     equ 1 << 3              ; reset by port 0x64, not by 0xCF9

%include "boot.asm"
%include "console.asm"
%include "cpu.asm"
%include "vc.asm"
%include "vc_ioio.asm"
%include "fault.asm"
%include "apic.asm"
%include "smp.asm"
%include "canary.asm"
%include "scenario.asm"
%include "report.asm"

; --- what OVMF images publish (OvmfPkg/ResetVector): no section of SEV metadata is needed -------------------
align 16, db FILL
sev_metadata:
        db      "ASEV"
        dd      16                              ; length
        dd      1                               ; version
        dd      0                               ; sections

%macro guid 6
        dd      %1
        dw      %2, %3
        db      %4 >> 8, %4 & 0xFF, %5 >> 8, %5 & 0xFF
        db      %6 >> 24, %6 >> 16 & 0xFF, %6 >> 8 & 0xFF, %6 & 0xFF
%endmacro

code_end:
        times IMAGE_SIZE - 0x20 - (table_end - table) - ($ - $$) db FILL
table:
        dd      IMAGE_SIZE - command            ; from the end of the image
        dw      4 + 18
        guid    0x5E7E5C0D, 0x8F3A, 0x4D6B, 0x9A21, 0x50B7, 0xE1C4F2A6
        dd      IMAGE_SIZE - sev_metadata
        dw      4 + 18
        guid    0xDC886566, 0x984A, 0x4798, 0xA75E, 0x5585, 0xA7BF67CC
        dd      IMAGE_BASE + ap_stub            ; SEV-ES reset block
        dw      4 + 18
        guid    0x00F771DE, 0x1A7E, 0x4FCB, 0x890E, 0x68C7, 0x7E2FB44E
        dw      table_end - table
        guid    0x96B582DE, 0x1FB2, 0x45F7, 0xBAEA, 0xA366, 0xC55A082D
table_end:
        times IMAGE_SIZE - 16 - ($ - $$) db FILL
bits 16
        jmp     start16
        times IMAGE_SIZE - ($ - $$) db FILL
