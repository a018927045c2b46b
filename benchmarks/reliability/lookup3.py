"""The checksum of HDF5's own metadata, and where it stands in a file: so that a changed header gets one that fits.

Knows signatures and lengths only, by trial: a block is whatever its checksum fits. Run: benchmarks/hostile_files.py
"""

import re
import struct

_MASK = 0xFFFFFFFF
_SIGNATURES = re.compile(
    b"\x89HDF\r\n\x1a\n|OHDR|OCHK|BTHD|BTIN|BTLF|FRHP|FHDB|FHIB|FSHD|FSSE|SMTB|SMLI|FAHD|FADB|EAHD"
)
_LONGEST = 1200


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & _MASK


def lookup3(content: bytes) -> int:
    """Jenkins' lookup3 with a start value of 0, 32 bits."""
    a = b = c = (0xDEADBEEF + len(content)) & _MASK
    if not content:
        return c
    last = (len(content) - 1) // 12 * 12
    for k0, k1, k2 in struct.iter_unpack("<III", content[:last]):
        a, b, c = (a + k0) & _MASK, (b + k1) & _MASK, (c + k2) & _MASK
        a = (a - c & _MASK) ^ _rotated(c, 4)
        c = c + b & _MASK
        b = (b - a & _MASK) ^ _rotated(a, 6)
        a = a + c & _MASK
        c = (c - b & _MASK) ^ _rotated(b, 8)
        b = b + a & _MASK
        a = (a - c & _MASK) ^ _rotated(c, 16)
        c = c + b & _MASK
        b = (b - a & _MASK) ^ _rotated(a, 19)
        a = a + c & _MASK
        c = (c - b & _MASK) ^ _rotated(b, 4)
        b = b + a & _MASK
    k0, k1, k2 = struct.unpack("<III", content[last:].ljust(12, b"\0"))
    a, b, c = (a + k0) & _MASK, (b + k1) & _MASK, (c + k2) & _MASK
    for bits in ((14, 11, 25), (16, 4, 14), (24, 0, 0)):
        c = ((c ^ b) - _rotated(b, bits[0])) & _MASK
        if bits[1]:
            a = ((a ^ c) - _rotated(c, bits[1])) & _MASK
            b = ((b ^ a) - _rotated(a, bits[2])) & _MASK
    return c


def checked_blocks(content: bytes) -> list[tuple[int, int]]:
    """(start, stop) of each stretch that begins with a signature and is followed by its own checksum."""
    found = []
    for match in _SIGNATURES.finditer(content):
        start = match.start()
        for stop in range(start + 8, min(start + _LONGEST, len(content) - 3)):
            if content[stop : stop + 4] == lookup3(content[start:stop]).to_bytes(4, "little"):
                found.append((start, stop))
                break
    return found


def mend(content: bytearray, block: tuple[int, int]) -> None:
    """Put the checksum that fits behind a block."""
    start, stop = block
    content[stop : stop + 4] = lookup3(bytes(content[start:stop])).to_bytes(4, "little")
