"""The one decoder: the bytes of an image file -> RGB uint8 tensor [3, H, W], for both stages alike.

Never resizes, never normalises. Pillow decodes every format: torchvision's decoders gave the same pixels for JPEG and
PNG but are deprecated. EXIF orientation is applied, alpha dropped, the first frame taken,
16-bit gray scaled by 1/257.
"""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from data.errors import BadImage, UnreadableImage

# Part of every cache's identity: raise it when any input decodes to other pixels than before.
DECODER_VERSION = 1
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp"})
PIXEL_LIMIT = 170_000_000
"""Width times height of the largest image that is decoded; Pillow's own hard limit is just above."""

# What Pillow's readers raise for broken files, broken EXIF and TIFF tags included.
_PILLOW_ERRORS = (
    Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError,
    struct.error, MemoryError,
)  # fmt: skip


def decode(encoded: bytes, name: str) -> Tensor:
    """RGB uint8 [3, H, W], laid out in memory as H, W, 3: never call contiguous on it, rendering is twice as slow then.

    `name` is only for the error. Raises BadImage for anything that is not a whole image.
    """
    if not encoded:
        raise BadImage("the file is empty", name)
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of its limit and beside some of its errors; the errors below say it once.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as opened:
                _check_pixel_count(opened, name)
                image = _as_rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise BadImage("cannot be decoded (not an image)", name) from error
    except BadImage:
        raise
    except _PILLOW_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BadImage(f"cannot be decoded ({reason})", name) from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _check_pixel_count(header: Image.Image, name: str) -> None:
    width_px, height_px = header.size
    if width_px * height_px > PIXEL_LIMIT:
        raise BadImage(f"{width_px} x {height_px} pixels, the limit is {PIXEL_LIMIT:,}", name)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, where convert("RGB") would clip at 255
        levels = np.asarray(image).astype(np.int64).clip(0, 65_535)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def read_image(path: str | Path) -> Tensor:
    """The decoded image of one file; the errors of `decode`, and UnreadableImage where the file cannot be read."""
    return decode(read_bytes(path), str(path))


def read_bytes(path: str | Path) -> bytes:
    """The file's bytes; UnreadableImage where the system does not give them."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot be read ({error.strerror or error})", path) from error
