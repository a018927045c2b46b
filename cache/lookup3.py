"""The checksum that HDF5 puts behind its metadata: Bob Jenkins' lookup3 with a start value of 0.

In Python, a microsecond for 5 bytes: metadata alone are checked by it, rows by CRC-32 (`cache.verify`).
Run: `softlabel cache info FILE.h5`
"""

import struct

_WORD = 0xFFFFFFFF


def lookup3(content: bytes) -> int:
    """32 bits."""
    a = b = c = (0xDEADBEEF + len(content)) & _WORD
    if not content:
        return c
    last = (len(content) - 1) // 12 * 12
    for x, y, z in struct.iter_unpack("<III", content[:last]):
        a, b, c = a + x, b + y, (c + z) & _WORD
        a = (a - c ^ (c << 4 | c >> 28)) & _WORD
        c += b
        b = (b - a ^ (a << 6 | a >> 26)) & _WORD
        a += c
        c = (c - b ^ (b << 8 | b >> 24)) & _WORD
        b += a
        a = (a - c ^ (c << 16 | c >> 16)) & _WORD
        c += b
        b = (b - a ^ (a << 19 | a >> 13)) & _WORD
        a += c
        c = (c - b ^ (b << 4 | b >> 28)) & _WORD
        b += a
    x, y, z = struct.unpack("<III", content[last:].ljust(12, b"\0"))
    a, b, c = (a + x) & _WORD, (b + y) & _WORD, (c + z) & _WORD
    c = ((c ^ b) - _rotated(b, 14)) & _WORD
    a = ((a ^ c) - _rotated(c, 11)) & _WORD
    b = ((b ^ a) - _rotated(a, 25)) & _WORD
    c = ((c ^ b) - _rotated(b, 16)) & _WORD
    a = ((a ^ c) - _rotated(c, 4)) & _WORD
    b = ((b ^ a) - _rotated(a, 14)) & _WORD
    return ((c ^ b) - _rotated(b, 24)) & _WORD


def _rotated(word: int, bits: int) -> int:
    return word << bits & _WORD | word >> 32 - bits
