# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory controller's encryption: AES-XTS with a key per guest, tweaked by the address.

The real function is not published; what the model keeps of it is that the host sees ciphertext, that equal
plaintext differs from address to address and guest to guest, and that 16-byte blocks stand alone.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

KEY_SIZE = 32  # AES-128 twice
#: The key that encrypts nothing, of a memory controller that is wrong on purpose.
NO_KEY = b""
BLOCK_SIZE = 16
_PAGE = 4096


def encrypt(key: bytes, address: int, data: bytes) -> bytes:
    """What the host reads at `address` after the guest (or the firmware) wrote `data` there.

    :raise ValueError: address or length is no multiple of 16.
    """
    return _transform(key, address, data, encrypting=True)


def decrypt(key: bytes, address: int, data: bytes) -> bytes:
    """The inverse of :func:`encrypt`."""
    return _transform(key, address, data, encrypting=False)


def _transform(key: bytes, address: int, data: bytes, *, encrypting: bool) -> bytes:
    if address % BLOCK_SIZE or len(data) % BLOCK_SIZE:
        raise ValueError(f"wanted multiples of {BLOCK_SIZE}, got address {address:#x}, {len(data)} bytes")
    if key == NO_KEY:
        return data
    algorithm = algorithms.AES(key)
    before = address % _PAGE
    after = -(before + len(data)) % _PAGE
    padded = memoryview(bytes(before) + data + bytes(after))
    out = bytearray(len(padded))
    for offset in range(0, len(padded), _PAGE):
        tweak = (address - before + offset).to_bytes(16, "little")
        cipher = Cipher(algorithm, modes.XTS(tweak))
        context: CipherContext = cipher.encryptor() if encrypting else cipher.decryptor()
        out[offset : offset + _PAGE] = context.update(padded[offset : offset + _PAGE])
    return bytes(out[before : before + len(data)])
