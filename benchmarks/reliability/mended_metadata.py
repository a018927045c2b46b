"""The checksum of HDF5's own metadata, and where it stands in a file: so that a changed header gets one that fits.

Knows signatures and lengths only, by trial: a block is whatever its checksum fits. Run: benchmarks/hostile_files.py
"""

import re

from cache.lookup3 import lookup3

_SIGNATURES = re.compile(
    b"\x89HDF\r\n\x1a\n|OHDR|OCHK|BTHD|BTIN|BTLF|FRHP|FHDB|FHIB|FSHD|FSSE|SMTB|SMLI|FAHD|FADB|EAHD"
)
_LONGEST = 1200


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
