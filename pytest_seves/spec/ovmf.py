# SPDX-License-Identifier: GPL-2.0-or-later
"""OVMF: the GUIDed table at the end of a firmware image.

Source: edk2 ``OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm`` (edk2-stable202602). GUIDs are stored in
EFI order: the first three groups little-endian (:attr:`uuid.UUID.bytes_le`).
"""

from __future__ import annotations

import uuid

TABLE_FOOTER = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
SEV_ES_RESET_BLOCK = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
SEV_SECRET_BLOCK = uuid.UUID("4c2eb361-7d9b-4cc3-8081-127c90d3d294")
SEV_HASH_TABLE = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
SEV_METADATA = uuid.UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
TDX_METADATA = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
IGVM = uuid.UUID("784fa70e-3176-4677-8a20-04b68699e374")

#: The footer entry ends this many bytes before the end of the image (the 32 bytes are the reset code).
FOOTER_FROM_END = 0x20
