"""Public data sets as folders: `torchvision:CIFAR10`, `hf:NAME[:CONFIG]`. Written once, then scanned like any folder.

The files keep the bytes that were published; arrays become BMP, whose bytes no library's version changes. A folder
appears under its name only when it is whole. Run: softlabel cache build torchvision:CIFAR10 -o t.h5
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.errors import BadOption, DataError
from data.sources.folders import UNLABELLED_FOLDERS

if TYPE_CHECKING:
    from data.options import ScanOptions

_SOURCES = ("torchvision:", "hf:")
Item = tuple[bytes, str, str | None]
"""The bytes of an image file, its suffix, and its class; None where it has no label."""
Splits = Mapping[str, Callable[[], Iterator[Item]]]
"""Split, or "" where a data set has none -> its images."""


def is_download(data: str | Path) -> bool:
    """Whether DATA names a public data set."""
    return str(data).startswith(_SOURCES)


def materialise(data: str | Path, options: ScanOptions) -> Path:
    """The folder of a public data set, `<split>/<class>/*`; written now where it is not there yet.

    DataError where it is unknown, cannot be had, or has no labels.
    """
    if options.downloads is None:
        raise BadOption(f"{data} is written into a folder first: name it in ScanOptions.downloads")
    source, _, name = str(data).partition(":")
    chosen = (*options.label_columns, "", options.image_column or "")
    digest = hashlib.blake2b(repr((str(data), chosen)).encode(), digest_size=4).hexdigest()
    folder = options.downloads / f"{source}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.')}-{digest}"
    if folder.is_dir():
        return folder
    raw = options.downloads / "raw"
    try:
        raw.mkdir(parents=True, exist_ok=True)
        if source == "torchvision":
            from data.sources.torchvision_sets import splits_of
        else:
            from data.sources.hf_sets import splits_of
        splits = splits_of(name, raw, options)
        _write(splits, folder, str(data))
    except OSError as error:
        raise DataError(f"{data} cannot be written below {options.downloads} ({error.strerror or error})") from error
    return folder


def _write(splits: Splits, folder: Path, data: str) -> None:
    """Write every image into a folder beside, and give that its name when all are there."""
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        labels = set()
        for split, images in splits.items():
            for at, (encoded, suffix, label) in enumerate(_progress(images(), f"{data} {split}")):
                labels.add(label)
                of_class = beside / split / (UNLABELLED_FOLDERS[0] if label is None else _folder_name(label))
                of_class.mkdir(parents=True, exist_ok=True)
                (of_class / f"{at:06}{suffix}").write_bytes(encoded)
        if not labels - {None}:
            raise DataError(f"{data} has no labels")
        if len({_folder_name(label) for label in labels if label is not None}) < len(labels - {None}):
            raise DataError(f"{data} has class names that differ in / or \\ only: {', '.join(map(str, labels))}")
        with contextlib.suppress(OSError):  # another process was faster: its folder is as whole as this one
            beside.replace(folder)
        if not folder.is_dir():
            raise DataError(f"{folder} cannot be written: something else is in its place")
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _progress(images: Iterator[Item], title: str) -> Iterator[Item]:
    from tqdm import tqdm

    yield from tqdm(images, desc=title, unit="image", disable=None, leave=False)


def _folder_name(label: str) -> str:
    """A class name as a folder; one that would be hidden, or be another folder, gets an underscore."""
    name = re.sub(r"[/\\]", "_", label).strip() or "_"
    return f"_{name}" if name.startswith(".") or name in UNLABELLED_FOLDERS else name


def bmp(pixels: NDArray[np.uint8]) -> bytes:
    """A 24-bit BMP of RGB or gray pixels, uint8 [H, W, 3] or [H, W] (Windows BITMAPINFOHEADER, bottom row first)."""
    rgb = np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels
    height_px, width_px = rgb.shape[:2]
    row = np.zeros((height_px, (width_px * 3 + 3) // 4 * 4), np.uint8)
    row[:, : width_px * 3] = rgb[::-1, :, ::-1].reshape(height_px, -1)
    header = struct.pack("<2sIHHI", b"BM", 54 + row.size, 0, 0, 54)
    return header + struct.pack("<IiiHHIIiiII", 40, width_px, height_px, 1, 24, 0, row.size, 0, 0, 0, 0) + row.tobytes()


def suffix_of(encoded: bytes) -> str:
    """The usual suffix of a file by its first bytes; `.img`, which nobody takes for an image, where it is none."""
    for magic, suffix in _MAGIC.items():
        if encoded.startswith(magic):
            return suffix
    return ".webp" if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP" else ".img"


_MAGIC: Mapping[bytes, str] = {
    b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"II*\x00": ".tif", b"MM\x00*": ".tif",
}  # fmt: skip


def first_line(error: Any) -> str:
    """The first line of what another library said, or the kind of its error where it said nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
