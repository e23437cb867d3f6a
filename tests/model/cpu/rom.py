# SPDX-License-Identifier: GPL-2.0-or-later
"""A firmware image of 64 KiB that boots on every kind of guest, for tests of execution under a real VMM.

The BSP goes from real to long mode, with the C-bit in its page tables where SEV_STATUS says so; puts a canary
into private memory; writes "B" to the serial port, starts the APs by x2APIC INIT and SIPI, waits for their
flag, writes "A" and a newline, and halts. A SEV-ES guest asks by GHCB for ports and MSRs; its APs start at
the published reset block, set the flag, and rest in an AP reset hold. The source is rom.asm beside this file
(``nasm -f bin rom.asm``).
"""

from __future__ import annotations

_SIZE = 0x10000
_CODE = bytes.fromhex(
    "fa2e660f011658000f20c00c010f22c066ea5e00ffff0800c60600900166b8060000006631d266b9300101c00f30f30f"
    "01d9f490909090900000000000000000ffff0000009bcf00ffff00000093cf00ffff0000009baf001f003800ffff66b8"
    "10008ed88ec08ed0bc00700000b9310101c00f3289c631eda8017405bd80000000bf0000010031c0b900180000f3abc7"
    "050000010003100100892d04000100bf00100100b803200100b9040000008907896f0483c7080500100000e2f1bf0020"
    "0100b883000000b9000800008907896f0483c7080500002000e2f1c7050c200100000000000f20e00c200f22e0b80000"
    "01000f22d8b9800000c0b80001000031d20f300f20c00d000000800f22c0ea1501ffff1800c60425009000000048b80d"
    "d0feca0df0ad8b4889042508900000bf0000200031c0b900020000f348abb042e85700000048b8c606009001f4000048"
    "89042500800000b91b000000b8000de0fee869000000b930080000b800450c00e85a000000b808460c00e850000000f3"
    "90803c25009000000175f4b041e80a000000b00ae803000000f4ebfdf7c602000000750666baf803eec30fb6c0488904"
    "25f801200048c70425900320007b00000048c70425980320001000f803eb3d31d2f7c60200000075030f30c348890425"
    "f801200048890c2508032000488914251003200048c70425900320007c00000048c70425980320000100000048c70425"
    "a003200000000000800c25f70320008066830c25fc0320000666830c25fe0320001c51b80000200031d2b9300101c00f"
    "30f30f01d959c3"
)
#: GUIDed table entry of the SEV-ES reset block: address of the AP's code, length, GUID.
_RESET_BLOCK = bytes.fromhex("1800ffff1600de71f7007e1acb4f890e68c77e2fb44e")
_JUMP = bytes.fromhex("e90d00")

CANARY_ADDRESS = 0x9008
CANARY = 0x8BADF00DCAFED00D
CONSOLE = b"BA\n"


def image() -> bytes:
    """The image."""
    out = bytearray(b"\x90" * _SIZE)
    for at, data in ((0, _CODE), (0xFFE0 - len(_RESET_BLOCK), _RESET_BLOCK), (0xFFF0, _JUMP)):
        out[at : at + len(data)] = data
    return bytes(out)
