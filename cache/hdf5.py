"""Pieces of an HDF5 file's metadata, each bounded and checked: bytes, superblock, object headers.

Written anew because libhdf5 crashes on metadata that somebody made up (docs/reliability.md). Knows versions 0 to 3 of
the superblock and both kinds of headers. Reads no data. Run: `softlabel cache info FILE.h5`
"""

import struct
from collections.abc import Iterator
from io import FileIO
from typing import NamedTuple

from cache.errors import CacheDamaged
from cache.lookup3 import lookup3

NOWHERE = 2**64 - 1
"""The address of what is not there."""
SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_METADATA_BYTES = 8 << 20
"""That are read in all: ten thousand objects of ours have 3 MB."""
MAX_HEADER_BYTES = 1 << 16
"""Of one object: ours have some hundreds, the rest is for attributes."""
MAX_MESSAGES = 4096
"""Of one object."""
CONTINUATION = 0x10
DRIVER = 0x14
_LAST_KNOWN = 0x18
_SHARED, _MUST_BE_KNOWN = 0x02, 0x80
_SKIPPED_WHEN_SHARED = (0x04, 0x05, 0x0C)
"""Fill values and attributes: nobody looks at them."""


class Message(NamedTuple):
    """One entry of an object's header."""

    kind: int
    content: bytes


class Superblock(NamedTuple):
    """Where the file begins: all addresses are relative to `base`."""

    base: int
    root: int


def refuse(what: str) -> CacheDamaged:
    """The error for metadata that nobody can read."""
    return CacheDamaged(f"HDF5 cannot read it ({what})")


class Metadata:
    """The metadata of an open file, in pieces that stay within it and within a limit in all."""

    def __init__(self, file: FileIO, n_bytes: int) -> None:
        self._file, self.n_bytes, self._left = file, n_bytes, MAX_METADATA_BYTES
        self.superblock = self._superblock()

    def piece(self, address: int, n_bytes: int) -> bytes:
        """Bytes at an address of the file; CacheDamaged beyond its end."""
        return self._raw(self.superblock.base + address, n_bytes)

    def checked(self, address: int, n_bytes: int, signature: bytes) -> bytes:
        """A block that begins with a signature and ends in a checksum."""
        content = self.piece(address, n_bytes)
        if content[:4] != signature or content[-4:] != lookup3(content[:-4]).to_bytes(4, "little"):
            raise refuse(f"no sound {signature.decode()} at byte {address}")
        return content

    def messages(self, address: int) -> list[Message]:
        """All messages of the object header at an address, continuations followed."""
        start = self.piece(address, min(16, self.n_bytes - self.superblock.base - address))
        found: list[Message] = []
        if start[:4] == b"OHDR":
            chunks, read = [self._first_chunk(address)], _messages
        elif len(start) == 16 and start[:1] == b"\x01":
            (length,) = struct.unpack_from("<I", start, 8)
            chunks, read = [(self.piece(address + 16, _bounded(length)), 0)], _old_messages
        else:
            raise refuse(f"no object at byte {address}")
        n_bytes = 0
        while chunks:
            content, flags = chunks.pop(0)
            n_bytes += len(content)
            for message in read(content, flags):
                found.append(message)
                if message.kind == CONTINUATION:
                    chunks.append((self._continued(message, read is _messages), flags))
                if len(found) > MAX_MESSAGES or n_bytes > MAX_HEADER_BYTES:
                    raise refuse(f"the header at byte {address} is longer than {MAX_HEADER_BYTES:,} bytes")
        return found

    def _first_chunk(self, address: int) -> tuple[bytes, int]:
        head = self.piece(address, 6)
        flags = head[5]
        at = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        length = _bounded(int.from_bytes(self.piece(address + at, width), "little"))
        content = self.checked(address, at + width + length + 4, b"OHDR")
        if content[4] != 2:
            raise refuse(f"a header of version {content[4]} at byte {address}")
        return content[at + width : -4], flags

    def _continued(self, message: Message, is_checked: bool) -> bytes:
        address, length = unpacked("<QQ", message.content)
        if is_checked:
            return self.checked(address, _bounded(length), b"OCHK")[4:-4]
        return self.piece(address, _bounded(length))

    def _raw(self, offset: int, n_bytes: int) -> bytes:
        """As the drive gives them; its OSErrors come through."""
        self._left -= n_bytes + 32  # what an empty piece costs, so that none is for nothing
        if self._left < 0:
            raise refuse(f"its metadata have more than {MAX_METADATA_BYTES:,} bytes")
        if n_bytes < 0 or offset < 0 or offset + n_bytes > self.n_bytes:
            raise refuse(f"{n_bytes:,} bytes at {offset:,} of a file of {self.n_bytes:,}")
        self._file.seek(offset)
        content = bytearray(n_bytes)
        left = memoryview(content)
        while left:
            n_read = self._file.readinto(left)
            if not n_read:
                raise CacheDamaged("it was cut off while it was read")
            left = left[n_read:]
        return bytes(content)

    def _superblock(self) -> Superblock:
        base = 0
        while self._raw(base, min(8, max(0, self.n_bytes - base))) != SIGNATURE:
            base = max(512, 2 * base)
            if base >= self.n_bytes:
                raise refuse("no signature of HDF5")
        head = self._raw(base, min(96 + 4, self.n_bytes - base)).ljust(100, b"\0")
        version = head[8]
        if version in (2, 3):
            if head[44:48] != lookup3(head[:44]).to_bytes(4, "little") or head[9:11] != b"\x08\x08":
                raise refuse("its superblock is damaged")
            own_base, extension, end, root = struct.unpack_from("<QQQQ", head, 12)
        elif version in (0, 1) and head[13:15] == b"\x08\x08":
            at = 24 + 4 * version
            own_base, _, end, driver, _, root = struct.unpack_from("<QQQQQQ", head, at)
            extension = NOWHERE
            if driver != NOWHERE:
                raise refuse("it is spread over several files")
        else:
            raise refuse(f"a superblock of version {version}")
        # Both are bytes of the file, but a file that somebody put behind other bytes knows nothing of those.
        if end - own_base + base > self.n_bytes:
            raise refuse(f"it should have {end - own_base + base:,} bytes and has {self.n_bytes:,}")
        self.superblock = Superblock(base, root)
        if extension != NOWHERE and any(message.kind == DRIVER for message in self.messages(extension)):
            raise refuse("it is spread over several files")
        return self.superblock


def unpacked(layout: str, content: bytes, at: int = 0) -> tuple[int, ...]:
    """`struct.unpack_from`, where content that is too short is damage."""
    if len(content) < at + struct.calcsize(layout):
        raise refuse("an entry that is too short")
    return struct.unpack_from(layout, content, at)


def _bounded(length: int) -> int:
    if length > MAX_HEADER_BYTES:
        raise refuse(f"a header of {length:,} bytes")
    return length


def _messages(content: bytes, flags: int) -> Iterator[Message]:
    """Those of a header with a signature; fewer bytes at the end than a message needs are a gap."""
    at, head_bytes = 0, 6 if flags & 4 else 4
    while at + head_bytes <= len(content):
        kind, length, its_flags = unpacked("<BHB", content, at)
        at += head_bytes
        yield _message(kind, its_flags, content[at : at + length], length)
        at += length


def _old_messages(content: bytes, flags: int) -> Iterator[Message]:
    at = 0
    while at + 8 <= len(content):
        kind, length, its_flags = unpacked("<HHB", content, at)
        at += 8
        yield _message(kind, its_flags, content[at : at + length], length)
        at += length


def _message(kind: int, flags: int, content: bytes, length: int) -> Message:
    if len(content) < length:
        raise refuse("a header's entry that is longer than the header")
    if flags & _SHARED and kind not in _SKIPPED_WHEN_SHARED:
        raise CacheDamaged("it has named or shared types, which is stored as another type than caches have")
    if kind > _LAST_KNOWN and flags & _MUST_BE_KNOWN:
        raise refuse(f"a header's entry of kind {kind}")
    return Message(kind, content)
