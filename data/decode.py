"""The one decoder: the bytes of an image file -> RGB uint8 tensor [3, H, W], for both stages alike.

Never resizes, never normalises. JPEG and PNG go through torchvision, every other format through Pillow;
what comes out is in the file's own orientation (EXIF applied), alpha dropped, 16-bit scaled by 1/257.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from data.errors import BadImage

# Part of every cache's identity: raise it when any input decodes to other pixels than before.
DECODER_VERSION = 1
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp"})
PIXEL_LIMIT = 200_000_000

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"


def decode(encoded: bytes, name: str) -> Tensor:
    """RGB uint8 [3, H, W], memory in the decoder's own order (HWC-strided for JPEG: do not call contiguous on it).

    `name` is only for the error. Raises BadImage for anything that is not a whole image.
    """
    if not encoded:
        raise BadImage(f"{name}: the file is empty")
    try:
        _check_pixel_count(encoded, name)
        if encoded.startswith((_JPEG, _PNG)):
            return _decode_torchvision(encoded)
        return _decode_pillow(encoded)
    except (RuntimeError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, BadImage):
            raise
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error).splitlines()[0]
        raise BadImage(f"{name}: cannot be decoded ({reason})") from error


def _check_pixel_count(encoded: bytes, name: str) -> None:
    # Image.open reads the header only; the bound is ours, so Pillow's own warning at half of its limit stays out.
    with Image.open(io.BytesIO(encoded)) as header:
        width_px, height_px = header.size
    if width_px * height_px > PIXEL_LIMIT:
        raise BadImage(f"{name}: {width_px} x {height_px} pixels, the limit is {PIXEL_LIMIT:,}")


def _decode_torchvision(encoded: bytes) -> Tensor:
    # bytearray: torch.frombuffer warns about read-only memory.
    buffer = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    image: Tensor = decode_image(buffer, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    if image.dtype == torch.uint16:
        image = ((image.to(torch.int32) + 128) // 257).to(torch.uint8)
    return image


def _decode_pillow(encoded: bytes) -> Tensor:
    with Image.open(io.BytesIO(encoded)) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1)


def read_image(path: str | Path) -> Tensor:
    """The decoded image of one file; the errors of `decode`, and BadImage where the file cannot be read."""
    return decode(read_bytes(path), str(path))


def read_bytes(path: str | Path) -> bytes:
    """The file's bytes; BadImage where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadImage(f"{path}: cannot be read ({error.strerror or error})") from error
