"""Files as folders of images really have them: odd ones that are images, broken ones, things that are no files at all.

One table says of each kind what is to be said of it. Run: pytest tests/data/test_hostile_files.py
"""

from __future__ import annotations

import gzip
import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FINE = ""
SEVERAL = "several frames or pages"

Seed = int
Bytes = Callable[[Seed], bytes]
Maker = Callable[[Path, Seed], None]


def pixels(seed: Seed, height_px: int = 24, width_px: int = 32) -> NDArray[np.uint8]:
    """Gradients under noise, other ones for each seed: uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height_px, 0:width_px]
    smooth = np.stack([40 + 5 * x, 200 - 6 * y, 60 + 3 * x + 2 * y], axis=2) % 256
    return (smooth + np.random.default_rng(seed).integers(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)


def encoded(seed: Seed, kind: str, mode: str | None = None, **options: Any) -> bytes:
    """The bytes of an image file as Pillow writes it."""
    return _saved(Image.fromarray(pixels(seed)).convert(mode or "RGB"), kind, **options)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image(kind: str, mode: str | None = None, **options: Any) -> Bytes:
    return lambda seed: encoded(seed, kind, mode, **options)


def sized(height_px: int, width_px: int) -> Bytes:
    return lambda seed: _saved(Image.fromarray(pixels(seed, height_px, width_px)), "PNG")


def levels(dtype: str, kind: str, largest: int = 65_535, **options: Any) -> Bytes:
    """One channel of numbers that take more than 8 bits."""

    def make(seed: Seed) -> bytes:
        values = pixels(seed)[:, :, 0].astype(np.float64) * (largest / 255)
        return _saved(Image.fromarray(values.astype(dtype)), kind, **options)

    return make


def frames(kind: str, **options: Any) -> Bytes:
    def make(seed: Seed) -> bytes:
        first, second = (Image.fromarray(pixels(number)) for number in (seed, seed + 1))
        return _saved(first, kind, save_all=True, append_images=[second], **options)

    return make


def cut(make: Bytes, share: float) -> Bytes:
    """The first part of a file."""
    return lambda seed: (content := make(seed))[: int(len(content) * share)]


def begins(start: bytes, make: Bytes) -> Bytes:
    """A file with other first bytes."""
    return lambda seed: start + make(seed)[len(start) :]


def text(content: str) -> Bytes:
    return lambda seed: f"{content} {seed}\n".encode()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width_px: int, height_px: int, bits: int = 8, scanlines: bytes = b"", more: bytes = b"") -> Bytes:
    """A PNG written by hand: Pillow writes no 16-bit colour, and no header without its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, bits, 2, 0, 0, 0)) + more
    end = chunk(b"IDAT", zlib.compress(scanlines)) + chunk(b"IEND", b"")
    return lambda seed: b"\x89PNG\r\n\x1a\n" + header + chunk(b"tEXt", b"seed\0%d" % seed) + end


def colour_16_bit(seed: Seed) -> bytes:
    values = np.random.default_rng(seed).integers(0, 65_536, (4, 5, 3)).astype(">u2")
    return png(5, 4, 16, b"".join(b"\0" + line.tobytes() for line in values))(seed)


def flipped(seed: Seed, place: int) -> bytes:
    """A PNG with one bit of its pixel data, or of the checksum behind it (place -1), flipped."""
    content = bytearray(encoded(seed, "PNG"))
    start = content.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", content[start - 8 : start - 4])
    content[start + (length if place < 0 else place)] ^= 1
    return bytes(content)


def ring_of_pages(seed: Seed) -> bytes:
    """A TIFF of two pages, the second of which is followed by the first."""
    content = bytearray(frames("TIFF")(seed))

    def next_of(directory: int) -> int:
        return directory + 2 + 12 * struct.unpack_from("<H", content, directory)[0]

    (first,) = struct.unpack_from("<I", content, 4)
    (second,) = struct.unpack_from("<I", content, next_of(first))
    struct.pack_into("<I", content, next_of(second), first)
    return bytes(content)


def holding(content: Bytes) -> Maker:
    """A regular file."""

    def make(path: Path, seed: Seed) -> None:
        path.write_bytes(content(seed))

    return make


def pipe(path: Path, seed: Seed) -> None:
    os.mkfifo(path)


def a_socket(path: Path, seed: Seed) -> None:
    here = os.open(path.parent, os.O_RDONLY)  # the path of a socket may have 108 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def link(to: str) -> Maker:
    return lambda path, seed: path.symlink_to(to)


def linked(path: Path, seed: Seed) -> None:
    """A link to an image outside the folder of images."""
    outside = path.parents[3] / f"outside {seed}.png"
    outside.write_bytes(encoded(seed, "PNG"))
    path.symlink_to(outside)


def linked_folder(path: Path, seed: Seed) -> None:
    """An image two folders below a link."""
    outside = path.parents[5] / f"outside {seed}"
    (outside / "deeper").mkdir(parents=True)
    (outside / "deeper" / path.name).write_bytes(encoded(seed, "PNG"))
    path.parents[1].symlink_to(outside)


def folder(path: Path, seed: Seed) -> None:
    path.mkdir()
    (path / "inside.jpg").write_bytes(b"never looked at")


def locked(path: Path, seed: Seed) -> None:
    path.write_bytes(b"secret")
    path.chmod(0)


NO_IMAGE = r"cannot be decoded \(not an image\)"
CUT = r"cannot be decoded \(.*(?i:truncated).*\)"
TOO_LARGE = "more than 170 megapixels, which is the limit"
BROKEN = r"cannot be decoded \(.+\)"

CONTENTS: tuple[tuple[str, Bytes, str], ...] = (
    ("plain.jpg", image("JPEG"), FINE),
    ("plain.png", image("PNG"), FINE),
    ("plain.webp", image("WEBP"), FINE),
    ("plain.bmp", image("BMP"), FINE),
    ("plain.tiff", image("TIFF"), FINE),
    ("packed.tif", image("TIFF", compression="tiff_lzw"), FINE),
    ("camera.jfif", image("JPEG", quality=90), FINE),
    ("progressive.jpeg", image("JPEG", progressive=True), FINE),
    ("CAPITALS.JPG", image("JPEG", quality=60), FINE),
    ("two.extensions.tar.png", image("PNG"), FINE),
    ("lying.jpg", image("PNG"), FINE),
    ("gray.png", image("PNG", "L"), FINE),
    ("one bit.tiff", image("TIFF", "1"), FINE),
    ("palette.png", image("PNG", "P"), FINE),
    ("palette transparent.png", image("PNG", "P", transparency=3), FINE),
    ("palette transparencies.png", image("PNG", "P", transparency=bytes(range(200))), FINE),
    ("rgba.png", image("PNG", "RGBA"), FINE),
    ("gray alpha.png", image("PNG", "LA"), FINE),
    ("rgba.webp", image("WEBP", "RGBA"), FINE),
    ("inks.jpg", image("JPEG", "CMYK"), FINE),
    ("inks.tif", image("TIFF", "CMYK"), FINE),
    ("gray 16.png", levels("<u2", "PNG"), FINE),
    ("gray 16.tif", levels("<u2", "TIFF"), FINE),
    ("gray 16 big.tif", levels(">u2", "TIFF"), FINE),
    ("gray 32.tif", levels("<i4", "TIFF"), FINE),
    ("colour 16.png", colour_16_bit, FINE),
    ("one pixel.png", sized(1, 1), FINE),
    ("tall.png", sized(20_000, 1), FINE),
    ("wide.png", sized(1, 20_000), FINE),
    ("é 皮 🙂.png", image("PNG"), FINE),
    (os.fsdecode(b"caf\xe9.jpg"), image("JPEG"), FINE),
    ("x" * 251 + ".png", image("PNG"), FINE),
    ("turned.jpg", image("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"), FINE),
    ("odd exif.jpg", image("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1\x12\0\x09\xff\xff\xff\xff"), FINE),
    ("more behind it.jpg", lambda seed: encoded(seed, "JPEG") + b"more", FINE),
    ("other checksum.png", lambda seed: flipped(seed, -1), FINE),
    ("deeper/deeper.png", image("PNG"), FINE),
    ("animated.png", frames("PNG"), SEVERAL),
    ("animated.webp", frames("WEBP"), SEVERAL),
    ("pages.tiff", frames("TIFF"), SEVERAL),
    ("pages in a ring.tif", ring_of_pages, SEVERAL),
    ("stereo.jpg", frames("MPO"), SEVERAL),
    ("empty.jpg", lambda seed: b"", "the file is empty"),
    ("20 bytes.jpg", lambda seed: encoded(seed, "JPEG")[:16] + seed.to_bytes(4, "big"), NO_IMAGE),
    ("half.jpg", cut(image("JPEG", quality=100), 0.7), CUT),
    ("half.png", cut(image("PNG"), 0.5), CUT),
    ("half.bmp", cut(image("BMP"), 0.5), CUT),
    ("half.tif", cut(image("TIFF"), 0.5), CUT),
    ("half.webp", cut(image("WEBP"), 0.5), BROKEN),
    ("only a header.png", lambda seed: encoded(seed, "PNG")[:33] + bytes(seed % 256), BROKEN),
    ("no pixels.png", png(5, 0), NO_IMAGE),
    ("wrong magic.png", begins(b"\x88PNG", image("PNG")), NO_IMAGE),
    ("flipped bit.png", lambda seed: flipped(seed, 40), BROKEN),
    ("bomb.png", png(65_000, 65_000), TOO_LARGE),
    ("large.png", png(17_001, 10_000), r"17001 x 10000 = 170\.01 megapixels, the limit is 170"),
    ("text bomb.png", png(5, 4, more=chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(20_000_000)))), BROKEN),
    ("float.tif", levels("<f4", "TIFF"), r"cannot be decoded \(floating-point pixels have no known range\)"),
    ("white is 0.tif", levels("<u2", "TIFF", tiffinfo={262: 0}), r"cannot be decoded \(16-bit gray whose 0 is .*\)"),
    ("beyond.tif", levels("<i4", "TIFF", largest=2**24), r"cannot be decoded \(integer pixels beyond 0\.\.65,535 .*\)"),
    ("page.jpg", text("<!DOCTYPE html><title>404</title>"), r"cannot be decoded \(it is a web page .*\)"),
    ("pointer.png", text("version https://git-lfs.github.com/spec/v1"), r"cannot be decoded \(it is a Git LFS .*\)"),
    ("text.tiff", text("image,label"), NO_IMAGE),
    ("zeros.bmp", lambda seed: bytes(500 + seed), NO_IMAGE),
    ("packed.png", lambda seed: gzip.compress(encoded(seed, "PNG"), mtime=0), r"cannot be decoded \(it is a gzip .*\)"),
    ("modern.jpg", begins(b"\0\0\0\x20ftypavif", image("PNG")), r"cannot be decoded \(it is AVIF, .*\)"),
    ("script.jpg", text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"), r"cannot be decoded \(it is PostScript\)"),
    ("two\nlines \x1b[31mred\x1b[0m.jpg", text("escaped"), NO_IMAGE),
)  # fmt: skip
"""Name, bytes, and what the scan and the check are to say: FINE, SEVERAL, or a regular expression for the reason."""
THINGS: tuple[tuple[str, Maker, str], ...] = (
    ("to an image.png", linked, FINE),
    ("to a folder/deeper/inside.png", linked_folder, FINE),
    ("folder.jpg", folder, "a folder that is named like an image"),
    ("pipe.png", pipe, "a named pipe, not a file"),
    ("socket.webp", a_socket, "a socket, not a file"),
    ("device.png", link("/dev/zero"), "a device, not a file"),
    ("to nothing.png", link("nowhere.png"), "a link to nothing"),
    ("unmounted", link("/nowhere/images"), "a link to nothing"),
    ("to itself.png", link("to itself.png"), "a link in a circle of links"),
    ("to and.png", link("fro.png"), "a link in a circle of links"),
    ("fro.png", link("to and.png"), "a link in a circle of links"),
    ("back", link("."), "a link that leads back into a folder above it"),
    ("further back", link("../.."), "a link that leads back into a folder above it"),
    *((("locked.jpg", locked, "no permission to read it"),) if os.name == "posix" and os.geteuid() else ()),
)  # fmt: skip
"""The same for what is more than bytes; root may read everything."""

IGNORED = {
    ".hidden.jpg": b"x", "._plain.jpg": b"what a Mac leaves on foreign disks", "notes.txt": b"x",
    "moving.gif": b"GIF89a", "again.gif": b"GIF89a", "Thumbs.db": b"x", "README": b"x",
    ".ipynb_checkpoints/plain.jpg": b"x",
}  # fmt: skip
"""Files that are neither images nor named like such; hidden ones are not even counted."""


def write_hostile_files(folder: Path, seed: Seed = 0) -> dict[str, str]:
    """Write one of each kind, of other content for each seed: path -> what is said, of those this system can have."""
    said = {}

    def write(name: str, make: Maker, number: int, expected: str) -> None:
        path = folder / name
        path.parents[1 if make is linked_folder else 0].mkdir(parents=True, exist_ok=True)
        try:
            make(path, 1000 * seed + number)
        except (OSError, AttributeError):  # a Mac refuses names of other bytes, Windows pipes and most links
            return
        said[str(path)] = expected

    for number, (name, content, expected) in enumerate(CONTENTS):
        write(name, holding(content), number, expected)
    for number, (name, make, expected) in enumerate(THINGS, len(CONTENTS)):
        write(name, make, number, expected)
    for name, nothing in IGNORED.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(nothing)
    return said
