"""The one decoder: the bytes of an image file -> RGB uint8 tensor [3, H, W], for both stages alike.

Never resizes, never normalises. Pillow decodes every format: torchvision's decoders gave the same pixels for JPEG and
PNG but are deprecated. EXIF orientation is applied, alpha dropped, the first frame taken, 16-bit gray scaled by 1/257.
Of 16-bit colour Pillow gives the high byte, which is v // 256: within one level of v / 257.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from data.errors import BadImage, UnreadableImage

# Part of every cache's identity: raise it when any input decodes to other pixels than before.
DECODER_VERSION = 1
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp"})
EMPTY = "the file is empty"
LIMIT_MEGAPIXELS = 170
"""Width times height of the largest image that is decoded; Pillow's own hard limit is just above."""
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF")
"""What Pillow has everywhere, MPO with JPEG. Others depend on how it was built; for EPS it would start Ghostscript."""
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer: `git lfs pull` gets the image"),
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\x03\x04", "a zip file"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"\0\0\0\x0cjP", "JPEG 2000"),
    (b"<", "a web page or other markup"),
)
"""How files begin that are often found under the name of an image."""
_TURNED = range(2, 9)
"""EXIF's orientations that are not upright."""
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0

# What Pillow's readers raise for broken files, broken EXIF and TIFF tags included.
_PILLOW_ERRORS = (
    Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError,
    struct.error, MemoryError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a file says of the image in it."""

    format: str
    """By content, as Pillow calls it: JPEG, PNG, MPO (a JPEG with further ones), ..."""
    mode: str
    """As Pillow calls it: RGB, L (gray), P (palette), CMYK, I;16 (16-bit gray), ...; 16-bit colour reads as RGB."""
    width_px: int
    height_px: int
    """Both as decoded, after turning."""
    orientation: int
    """EXIF's: 1 upright, 2-8 mirrored or turned when it is decoded."""


class _QuietPillow:
    """Inside, no warning is shown: Pillow warns at half of its limit and beside some of its errors.

    `catch_warnings` swaps the filters of the whole process, so that threads that come and go out of step would leave
    them swapped: the first thread enters it, the last one leaves it.
    """

    def __init__(self) -> None:
        self._lock, self._n_inside = threading.Lock(), 0
        self._filters = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._n_inside += 1
            if self._n_inside == 1:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._filters.close()


_quiet_pillow = _QuietPillow()


def decode(encoded: bytes, name: str) -> Tensor:
    """RGB uint8 [3, H, W], laid out in memory as H, W, 3: never call contiguous on it, rendering is twice as slow then.

    `name` is only for the error. Raises BadImage for anything that is not a whole image.
    """
    return decode_with_facts(encoded, name)[0]


def decode_with_facts(encoded: bytes, name: str) -> tuple[Tensor, ImageFacts]:
    """`decode`, and what the file says of the image."""
    if not encoded:
        raise BadImage(EMPTY, name)
    with _reasons(encoded, name), Image.open(io.BytesIO(encoded), formats=_FORMATS) as opened:
        _check_pixel_count(opened, name)
        _check_range(opened, name)
        kind, mode = opened.format, opened.mode
        # Pillow turns a TIFF, and forgets how, when its pixels are read; a PNG's EXIF may stand behind the pixels.
        orientation = getattr(opened, "tag_v2", {}).get(ExifTags.Base.Orientation)
        opened.load()
        turned = opened.getexif().get(ExifTags.Base.Orientation)
        # Pillow copies an image that it need not turn, and one that is RGB already.
        image = _as_rgb(ImageOps.exif_transpose(opened) if turned in _TURNED else opened)
        pixels = np.array(image)
        orientation = orientation or turned
    height_px, width_px = pixels.shape[:2]
    is_known = orientation in range(1, 9)
    facts = ImageFacts(kind or "", mode, width_px, height_px, int(orientation) if is_known else 1)
    return torch.from_numpy(pixels).permute(2, 0, 1), facts


def n_pixels(path: str | Path) -> int:
    """Width times height of the first frame, by the header alone; 0 where there is none that can be read."""
    try:
        with _quiet_pillow, Image.open(path, formats=_FORMATS) as opened:
            return int(opened.width * opened.height)
    except _PILLOW_ERRORS:
        return 0


def n_frames(encoded: bytes) -> int:
    """How many frames or pages an image has that can be decoded; reads headers only, but those of all pages."""
    try:
        with _quiet_pillow, Image.open(io.BytesIO(encoded), formats=_FORMATS) as opened:
            return int(getattr(opened, "n_frames", 1))
    except _PILLOW_ERRORS:  # the pages behind the first one are broken
        return 2


@contextlib.contextmanager
def _reasons(encoded: bytes, name: str) -> Iterator[None]:
    """Inside, what Pillow raises becomes a BadImage with the reason in one line."""
    try:
        with _quiet_pillow:
            yield
    except UnidentifiedImageError as error:
        raise BadImage(f"cannot be decoded ({_what_it_is(encoded)})", name) from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {LIMIT_MEGAPIXELS} megapixels, which is the limit", name) from error
    except BadImage:
        raise
    except _PILLOW_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BadImage(f"cannot be decoded ({reason})", name) from error


def _what_it_is(encoded: bytes) -> str:
    """What a file is that Pillow does not know, as far as its first bytes tell."""
    start = encoded[:256].removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if start[4:8] == b"ftyp":
        return "it is AVIF, HEIC or a film"
    return next((f"it is {what}" for begin, what in _OTHERS if start.startswith(begin)), "not an image")


def _check_pixel_count(header: Image.Image, name: str) -> None:
    width_px, height_px = header.size
    if width_px * height_px > LIMIT_MEGAPIXELS * 1e6:
        found = f"{width_px} x {height_px} = {width_px * height_px / 1e6:,.2f} megapixels"
        raise BadImage(f"{found}, the limit is {LIMIT_MEGAPIXELS}", name)


def _check_range(opened: Image.Image, name: str) -> None:
    """BadImage for numbers of which Pillow does not tell what is black and what is white."""
    tags = getattr(opened, "tag_v2", {})
    if opened.mode == "F":
        raise BadImage("cannot be decoded (floating-point pixels have no known range)", name)
    if opened.mode.startswith("I") and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise BadImage("cannot be decoded (16-bit gray whose 0 is white)", name)
    if opened.mode.startswith("I") and tags.get(_TIFF_BITS) == (12,):
        raise BadImage("cannot be decoded (12-bit gray)", name)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, where convert("RGB") would clip at 255
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65_535:
            raise ValueError("integer pixels beyond 0..65,535 have no known range")
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def read_image(path: str | Path) -> Tensor:
    """The decoded image of one file; the errors of `decode`, and UnreadableImage where the file cannot be read."""
    return decode(read_bytes(path), str(path))


def read_bytes(path: str | Path) -> bytes:
    """The file's bytes; UnreadableImage where the system does not give them."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot be read ({error.strerror or error})", path) from error
