"""The names in a group of an HDF5 file and where each leads: in headers, in symbol tables, in heaps for many.

Follows no link that is not hard. Bounded by `cache.hdf5`, which reads. Run: `softlabel cache info FILE.h5`
"""

from collections.abc import Iterator

from cache.hdf5 import NOWHERE, Message, Metadata, refuse, unpacked

LINK_INFO, LINK, SYMBOL_TABLE = 0x02, 0x06, 0x11
MAX_HEAP_BYTES = 1 << 20
_MAX_LEVEL = 8
_HARD = 0
_SOFT_ENTRY = 2
_NAME_TREE = 5
_RECORD_BYTES = 11

Link = tuple[bytes, int | None]
"""A name, and the address of the object's header: None where the link is soft, or leads into another file."""


def is_group(messages: list[Message]) -> bool:
    """Whether an object with this header is a group."""
    return any(message.kind in (LINK_INFO, SYMBOL_TABLE) for message in messages)


def links(metadata: Metadata, messages: list[Message]) -> Iterator[Link]:
    """Everything in a group."""
    for message in messages:
        if message.kind == LINK:
            yield _link(message.content)
        elif message.kind == LINK_INFO:
            yield from _dense(metadata, message.content)
        elif message.kind == SYMBOL_TABLE:
            tree, heap = unpacked("<QQ", message.content)
            yield from _symbols(metadata, tree, _local_heap(metadata, heap), _MAX_LEVEL)


def _link(content: bytes) -> Link:
    version, flags = unpacked("<BB", content)
    at, kind = 2, _HARD
    if flags & 8:
        (kind,) = unpacked("<B", content, at)
    at += bool(flags & 8) + 8 * bool(flags & 4) + bool(flags & 16)
    width = 1 << (flags & 3)
    length = int.from_bytes(content[at : at + width], "little")
    at += width
    name = content[at : at + length]
    if kind != _HARD:
        return name, None
    (address,) = unpacked("<Q", content, at + length)
    if version != 1 or not name:
        raise refuse(f"a link of version {version}")
    return name, address


def _local_heap(metadata: Metadata, address: int) -> bytes:
    head = metadata.piece(address, 32)
    length, _, data = unpacked("<QQQ", head, 8)
    if head[:5] != b"HEAP\0" or length > MAX_HEAP_BYTES:
        raise refuse(f"no sound HEAP at byte {address}")
    return metadata.piece(data, length)


def _symbols(metadata: Metadata, address: int, names: bytes, level: int) -> Iterator[Link]:
    """A tree of nodes; each is below its parent by a level, so that no circle is followed for ever."""
    head = metadata.piece(address, 24)
    kind, its_level, n_children = unpacked("<BBH", head, 4)
    if head[:4] != b"TREE" or kind != 0 or its_level >= level:
        raise refuse(f"no sound TREE at byte {address}")
    content = metadata.piece(address + 24, 16 * n_children + 8)
    for number in range(n_children):
        (child,) = unpacked("<Q", content, 16 * number + 8)
        yield from _symbols(metadata, child, names, its_level) if its_level else _symbol_node(metadata, child, names)


def _symbol_node(metadata: Metadata, address: int, names: bytes) -> Iterator[Link]:
    head = metadata.piece(address, 8)
    (n_symbols,) = unpacked("<H", head, 6)
    if head[:5] != b"SNOD\x01":
        raise refuse(f"no sound SNOD at byte {address}")
    content = metadata.piece(address + 8, 40 * n_symbols)
    for number in range(n_symbols):
        at, header, kind = unpacked("<QQI", content, 40 * number)
        end = names.find(b"\0", at) if at < len(names) else -1
        if end <= at:
            raise refuse("a name that is not in its heap")
        yield names[at:end], None if kind == _SOFT_ENTRY else header


def _dense(metadata: Metadata, content: bytes) -> Iterator[Link]:
    """Groups with many links: a tree of records, each with the place of its link in a heap."""
    version, flags = unpacked("<BB", content)
    heap, tree = unpacked("<QQ", content, 2 + 8 * (flags & 1))
    if version != 0:
        raise refuse(f"links of version {version}")
    if heap == NOWHERE:
        return
    links_of = _Heap(metadata, heap)
    for record in _records(metadata, tree):
        yield _link(links_of.get(record[4:]))


def _records(metadata: Metadata, address: int) -> Iterator[bytes]:
    head = metadata.checked(address, 38, b"BTHD")
    kind, node_bytes, record_bytes, depth = unpacked("<BIHH", head, 5)
    root, n_records = unpacked("<QH", head, 16)
    if (head[4], kind, record_bytes) != (0, _NAME_TREE, _RECORD_BYTES) or depth > 1 or node_bytes > MAX_HEAP_BYTES:
        raise refuse(f"a tree of kind {kind} and depth {depth} at byte {address}")
    if not n_records:
        return
    if depth == 0:
        yield from _leaf(metadata, root, n_records)
        return
    width = max(1, ((node_bytes - 10) // _RECORD_BYTES).bit_length() + 7 >> 3)
    n_bytes = 6 + _RECORD_BYTES * n_records + (8 + width) * (n_records + 1)
    content = metadata.checked(root, n_bytes + 4, b"BTIN")
    yield from (content[6 + _RECORD_BYTES * at :][:_RECORD_BYTES] for at in range(n_records))
    for at in range(6 + _RECORD_BYTES * n_records, n_bytes, 8 + width):
        (child,) = unpacked("<Q", content, at)
        yield from _leaf(metadata, child, int.from_bytes(content[at + 8 : at + 8 + width], "little"))


def _leaf(metadata: Metadata, address: int, n_records: int) -> Iterator[bytes]:
    content = metadata.checked(address, 6 + _RECORD_BYTES * n_records + 4, b"BTLF")
    if content[5] != _NAME_TREE:
        raise refuse(f"no sound BTLF at byte {address}")
    yield from (content[6 + _RECORD_BYTES * at :][:_RECORD_BYTES] for at in range(n_records))


class _Heap:
    """A fractal heap, as far as links need it: blocks of growing size, no huge objects, no filters."""

    def __init__(self, metadata: Metadata, address: int) -> None:
        self._metadata = metadata
        head = metadata.checked(address, 146, b"FRHP")
        id_bytes, filter_bytes = unpacked("<HH", head, 5)
        self._width, self._first, self._largest, self._bits, _, root, rows = unpacked("<HQQHHQH", head, 110)
        self._offset_bytes = self._bits + 7 >> 3
        (most,) = unpacked("<I", head, 10)
        self._length_bytes = max(1, min(most, self._largest).bit_length() + 7 >> 3)
        if id_bytes != 7 or filter_bytes or not 1 <= self._width <= 64 or self._first < 1 or rows > 16:
            raise refuse(f"a heap that is none of links at byte {address}")
        self._blocks = [(0, root)] if rows == 0 else list(self._direct(root, rows))

    def get(self, place: bytes) -> bytes:
        """The bytes of an object by its ID in the heap."""
        if place[0] & 0x30:
            raise refuse("a link outside of its heap")
        at = int.from_bytes(place[1 : 1 + self._offset_bytes], "little")
        length = int.from_bytes(place[1 + self._offset_bytes :][: self._length_bytes], "little")
        start, address = max(block for block in self._blocks if block[0] <= at)
        if address == NOWHERE:
            raise refuse("a link in a block that is not there")
        return self._metadata.piece(address + at - start, length)

    def _direct(self, address: int, rows: int) -> Iterator[tuple[int, int]]:
        """(offset in the heap, address) of each block that holds objects; further levels are not for links."""
        at = 13 + self._offset_bytes
        content = self._metadata.piece(address, at + 8 * rows * self._width)
        if content[:4] != b"FHIB":
            raise refuse(f"no sound FHIB at byte {address}")
        start = 0
        for row in range(rows):
            n_bytes = self._first << max(0, row - 1)
            if n_bytes > self._largest:
                raise refuse("a group with more links than a cache needs")
            for column in range(self._width):
                yield start, unpacked("<Q", content, at + 8 * (row * self._width + column))[0]
                start += n_bytes
