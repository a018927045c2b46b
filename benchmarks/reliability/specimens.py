"""Make sound caches to be damaged, and find out where their objects, headers and gaps lie.

Asks the file itself for that, by plain h5py and by its bytes, never the product.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache import Manifest, Table
from cache.fill import write_table
from data.samples import FOLDER_TASK
from data.views import COLUMNS
from pipeline.demo.lesions import write_lesions
from reliability import forks, tiny

Span = tuple[int, int]

SUPERBLOCK, HEADERS, GAPS = "HDF5 superblock", "HDF5 object headers", "unused gaps"
SUPERBLOCK_BYTES = 48
CONTINUATION = 0x10
CLASSES, EMBEDDING_SIZE, MERGED_SAMPLES, MERGED_VIEWS = 1000, 1152, 500, 4


@dataclass(frozen=True, eq=False)
class Specimen:
    """A sound cache file, byte by byte, and where its parts lie."""

    name: str
    content: bytes
    spans: dict[str, list[Span]]
    """(start, stop) of every byte of the file, by object; superblock, object headers and gaps are objects here."""
    values: dict[str, bytes]
    """The sealed bytes of each object as plain h5py reads them."""
    row_bytes: dict[str, int]
    """Bytes of one entry of the objects that have a CRC table."""


def dissect(path: Path, name: str) -> Specimen:
    """A specimen of a sound file."""
    content, spans, values, row_bytes = path.read_bytes(), dict[str, list[Span]](), dict[str, bytes](), dict[str, int]()

    def visit(full_name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            start = item.id.get_offset()
            spans[full_name] = [(start, start + item.id.get_storage_size())]
            values[full_name] = item[()].tobytes()
            row_bytes[full_name] = item.id.get_storage_size() // item.shape[0]

    with h5py.File(path, "r", locking=False) as h5:
        h5.visititems(visit)
    row_bytes = {big: n_bytes for big, n_bytes in row_bytes.items() if f"crc32/{big}" in spans}
    spans[SUPERBLOCK] = [(0, SUPERBLOCK_BYTES)]
    spans[HEADERS] = list(_headers(content, [span for listed in spans.values() for span in listed]))
    gaps = list(_between([span for listed in spans.values() for span in listed], len(content)))
    if any(any(content[start:stop]) for start, stop in gaps):
        raise RuntimeError(f"{path}: bytes that belong to nothing are not zero")
    if gaps:
        spans[GAPS] = gaps
    return Specimen(name, content, spans, values, row_bytes)


def _headers(content: bytes, objects: list[Span]) -> Iterator[Span]:
    """The object headers of HDF5 (version 2), with their continuations; found by signature, measured by length."""
    for start, stop in _between(objects, len(content)):
        for match in re.finditer(b"OHDR\x02", content[start:stop]):
            header = start + match.start()
            flags = content[header + 5]
            at = header + 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
            width = 1 << (flags & 3)
            n_bytes = int.from_bytes(content[at : at + width], "little")
            messages = (at + width, at + width + n_bytes)
            yield header, messages[1] + 4
            yield from _continuations(content, messages, 6 if flags & 4 else 4)


def _continuations(content: bytes, messages: Span, head_bytes: int) -> Iterator[Span]:
    at, stop = messages
    while at + head_bytes <= stop:
        body, n_bytes = at + head_bytes, int.from_bytes(content[at + 1 : at + 3], "little")
        if content[at] == CONTINUATION:
            start = int.from_bytes(content[body : body + 8], "little")
            length = int.from_bytes(content[body + 8 : body + 16], "little")
            yield start, start + length
            yield from _continuations(content, (start + 4, start + length - 4), head_bytes)
        at = body + n_bytes


def _between(spans: list[Span], n_bytes: int) -> Iterator[Span]:
    """What the spans leave over."""
    at = 0
    for start, stop in [*sorted(spans), (n_bytes, n_bytes)]:
        if start > at:
            yield at, start
        at = max(at, stop)


def built_cache(folder: Path) -> Path:
    """A small cache by the real `cache build`: everything about it is small, and nothing is aligned."""
    images, out = folder / "images", folder / "built.h5"
    write_lesions(images, {"train": 6, "val": 2}, size_px=32)
    teacher = ["--teacher", str(tiny.write_teacher(folder / "teacher", images)), "--views", "4", "--device", "cpu"]
    forks.must(["cache", "build", str(images), "-o", str(out), *teacher])
    return out


def merged_cache(folder: Path) -> Path:
    """Two random caches through the real `cache merge`: large objects."""
    parts = [random_cache(folder / f"part-{number}.h5", number, MERGED_SAMPLES // 2) for number in range(2)]
    out = folder / "merged.h5"
    forks.must(["cache", "merge", *map(str, parts), "-o", str(out)])
    return out


def random_cache(path: Path, number: int, n_samples: int) -> Path:
    """A cache with 1,000 classes (float16 logits) and embeddings; another one for each number."""
    generator, n_rows = np.random.default_rng(number), n_samples * MERGED_VIEWS
    identity = {
        "tasks": [{"name": FOLDER_TASK, "classes": [f"class {c:03}" for c in range(CLASSES)]}],
        "view_columns": list(COLUMNS), "teacher": {"weights": "00ff"}, "precision": "fp16",
    }  # fmt: skip
    table = Table(
        key=np.unique(generator.integers(0, 256, (n_samples, 16), dtype=np.uint8), axis=0),
        first_row=np.arange(0, n_rows + 1, MERGED_VIEWS).astype("<u8"),
        view=np.tile(np.arange(MERGED_VIEWS), n_samples).astype("<u2"),
        params=generator.random((n_rows, len(COLUMNS))).astype("<f4"),
        witness=generator.integers(0, 256, (n_rows, 12), dtype=np.uint8),
        logits={FOLDER_TASK: generator.normal(-10, 4, (n_rows, CLASSES)).astype("<f2")},
        features={"embedding": generator.normal(size=(n_rows, EMBEDDING_SIZE)).astype("<f2")},
        names=[f"mole/{sample:05}.jpg" for sample in range(n_samples)],
    )
    write_table(path, Manifest(identity, {"part": number}), table)
    return path
