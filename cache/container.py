"""Which objects a cache file has and where each one's bytes lie: groups and datasets, without libhdf5.

Follows no link, opens no second file, reads no data and no attribute; what it does not know it refuses.
Run: `softlabel cache info FILE.h5`
"""

from io import FileIO
from typing import NamedTuple

import numpy as np

from cache.errors import CacheDamaged, shortened
from cache.hdf5 import NOWHERE, Message, Metadata, refuse, unpacked
from cache.hdf5_groups import is_group, links
from cache.layout import Extent, Spec

MAX_OBJECTS = 10_000
MAX_GROUP_DEPTH = 3
MAX_AXES = 32
SUPERBLOCK_BYTES = 8
"""The signature, with which every superblock begins; headers have as many bytes and more."""

_DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT, _FILTERS = 0x01, 0x03, 0x07, 0x08, 0x0B
_CONTIGUOUS = 1
_INTEGER, _FLOAT, _TEXT = 0, 1, 3
_IEEE: dict[tuple[int, ...], str] = {
    # Sign, then place and size of the exponent, of the mantissa, and what the exponent is biased by.
    (15, 10, 5, 0, 10, 15): "f2",
    (31, 23, 8, 0, 23, 127): "f4",
    (63, 52, 11, 0, 52, 1023): "f8",
}


class Container(NamedTuple):
    """Where everything lies."""

    extents: dict[str, Extent]
    headers: list[int]
    """First byte of the superblock and of each object's header."""


def contents(file: FileIO, n_bytes: int) -> Container:
    """What is in an open file of that length; CacheDamaged where it is not what a cache may have.

    An OSError comes through where the drive fails.
    """
    metadata = Metadata(file, n_bytes)
    found = Container({}, [metadata.superblock.base])
    root = metadata.messages(metadata.superblock.root)
    if not is_group(root):
        raise refuse("its root is no group")
    _walk(metadata, root, "", found)
    return found


def _walk(metadata: Metadata, group: list[Message], prefix: str, found: Container) -> None:
    if prefix.count("/") > MAX_GROUP_DEPTH:
        raise CacheDamaged(f"groups nested deeper than {MAX_GROUP_DEPTH} at {shortened(prefix)}")
    inside: dict[bytes, int] = {}
    for name, address in links(metadata, group):
        # Hard links to one group can make few bytes look like millions of objects.
        if len(found.headers) + len(inside) > MAX_OBJECTS:
            raise CacheDamaged(f"it has more than {MAX_OBJECTS:,} objects")
        if address is None:
            full_name = prefix + name.decode("utf-8", "surrogateescape")
            raise CacheDamaged(f"{shortened(full_name)} is a link, expected an object of this file")
        if name in inside or b"/" in name:
            raise refuse(f"the name {shortened(name.decode('utf-8', 'replace'))} twice, or with a slash")
        inside[name] = address
    for name, address in sorted(inside.items()):
        full_name = prefix + name.decode("utf-8", "surrogateescape")
        found.headers.append(metadata.superblock.base + address)
        if len(found.headers) > MAX_OBJECTS:
            raise CacheDamaged(f"it has more than {MAX_OBJECTS:,} objects")
        messages = metadata.messages(address)
        if is_group(messages):
            _walk(metadata, messages, full_name + "/", found)
        else:
            found.extents[full_name] = _extent(messages, shortened(full_name), metadata.superblock.base)


def _extent(messages: list[Message], name: str, base: int) -> Extent:
    kinds = {message.kind: message.content for message in messages}
    if not {_DATASPACE, _DATATYPE, _LAYOUT} <= kinds.keys():
        raise CacheDamaged(f"{name} is neither group nor dataset, expected a dataset")
    version, storage = unpacked("<BB", kinds[_LAYOUT])
    if storage != _CONTIGUOUS or version < 3 or _EXTERNAL in kinds or _FILTERS in kinds:
        raise CacheDamaged(f"{name} is chunked, compact, virtual, external or filtered, expected a contiguous dataset")
    address, stored_bytes = unpacked("<QQ", kinds[_LAYOUT], 2)
    dtype, shape = _dtype(kinds[_DATATYPE], name), _shape(kinds[_DATASPACE])
    if not shape or not all(shape) or address == NOWHERE:
        place = "no place" if address == NOWHERE else f"byte {address}"
        raise CacheDamaged(f"{name} is {dtype} {shape} at {place}, expected fixed-size values in allocated space")
    spec = Spec(dtype, shape)
    if stored_bytes != spec.n_bytes:
        raise CacheDamaged(f"{name} is {spec} in {stored_bytes:,} bytes, expected {spec.n_bytes:,}")
    return Extent(spec, base + address)


def _shape(content: bytes) -> tuple[int, ...]:
    """Empty for a scalar, and for what has no values."""
    version, n_axes, _, kind = unpacked("<BBBB", content)
    if version not in (1, 2) or n_axes > MAX_AXES:
        raise refuse(f"a shape of version {version} with {n_axes} axes")
    if version == 2 and kind != 1:
        return ()
    return unpacked(f"<{n_axes}Q", content, 8 if version == 1 else 4)


def _dtype(content: bytes, name: str) -> np.dtype:
    """Integers, IEEE floats and text of one length; everything else is refused before it is understood."""
    first, flags, flags_1, _, n_bytes = unpacked("<BBBBI", content)
    kind, order = first & 15, ">" if flags & 1 else "<"
    found = ""
    if kind == _INTEGER and n_bytes in (1, 2, 4, 8) and unpacked("<HH", content, 8) == (0, 8 * n_bytes):
        found = f"{order}{'i' if flags & 8 else 'u'}{n_bytes}"
    elif kind == _FLOAT and n_bytes in (2, 4, 8) and not flags & 0x40:
        offset, n_bits, *places, bias = unpacked("<HHBBBBI", content, 8)
        ieee = _IEEE.get((flags_1, *places, bias)) if (offset, n_bits, flags & 0x3E) == (0, 8 * n_bytes, 0x20) else None
        found = f"{order}{ieee}" if ieee == f"f{n_bytes}" else ""
    elif kind == _TEXT and flags == 1 and 1 <= n_bytes < 2**31:
        found = f"|S{n_bytes}"
    if not found:
        raise CacheDamaged(
            f"{name} is stored as another type than caches have, expected integers, IEEE floats or text of one length"
        )
    return np.dtype(found)
