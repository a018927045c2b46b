"""The decoder: every format gives the pixels that the file means, everything else one line that names the file."""

from __future__ import annotations

import gzip
import io
import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from data.decode import IMAGE_SUFFIXES, LIMIT_MEGAPIXELS, decode, n_frames, read_image
from data.errors import BadImage, DataError

ORIENTATION = 0x0112
Pixels = NDArray[np.uint8]


def smooth_picture(height_px: int = 24, width_px: int = 32) -> Pixels:
    """Gradients that survive JPEG, another one in each channel: uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height_px, 0:width_px]
    return np.stack([40 + 5 * x, 200 - 6 * y, 60 + 3 * x + 2 * y], axis=2).clip(0, 255).astype(np.uint8)


def encoded(pixels: NDArray[Any], kind: str, mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(pixels)
    if mode:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> Pixels:
    """[H, W, 3]"""
    image = decode(content, "mel/x.jpg")
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


def png(width_px: int, height_px: int, bits: int, colour: int, scanlines: bytes) -> bytes:
    """A PNG written by hand: Pillow writes no 16-bit colour, and no header without its pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width_px, height_px, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(scanlines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff_16_bit(levels: NDArray[np.uint16]) -> bytes:
    """An uncompressed TIFF of [H, W, 3 or 4] big-endian 16-bit levels, written by hand: Pillow writes none."""
    height_px, width_px, n_channels = levels.shape
    fields = [
        (256, 3, 1, width_px << 16), (257, 3, 1, height_px << 16), (258, 3, n_channels, 8), (259, 3, 1, 1 << 16),
        (262, 3, 1, 2 << 16), (273, 4, 1, 200), (277, 3, 1, n_channels << 16), (278, 3, 1, height_px << 16),
        (279, 4, 1, levels.nbytes), *([(338, 3, 1, 2 << 16)] if n_channels == 4 else []),
    ]  # fmt: skip
    directory = struct.pack(">H", len(fields)) + b"".join(struct.pack(">HHII", *field) for field in fields) + bytes(4)
    start = b"MM\0*" + struct.pack(">I", 16) + struct.pack(">4H", 16, 16, 16, 16) + directory
    return start.ljust(200, b"\0") + levels.tobytes()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_the_very_pixels(kind: str, options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(decoded(encoded(smooth_picture(), kind, **options)), smooth_picture())


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_lossy_formats_give_nearly_the_pixels(kind: str, options: dict[str, Any]) -> None:
    difference = decoded(encoded(smooth_picture(), kind, **options)).astype(int) - smooth_picture()
    assert np.abs(difference).max() <= 8
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize(("kind", "largest"), [("JPEG", 3), ("PNG", 0), ("BMP", 0), ("TIFF", 0)])
def test_gray_images_get_three_equal_channels(kind: str, largest: int) -> None:
    gray = smooth_picture()[:, :, 0]
    found = decoded(encoded(gray, kind, **({"quality": 95} if kind == "JPEG" else {})))
    assert (found == found[:, :, :1]).all()
    assert np.abs(found[:, :, 0].astype(int) - gray).max() <= largest


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_one_bit_images_are_black_and_white(kind: str) -> None:
    board = (np.indices((9, 10)).sum(axis=0) % 2).astype(bool)
    np.testing.assert_array_equal(decoded(encoded(board, kind))[:, :, 1], board * np.uint8(255))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_a_palette_becomes_its_colours(kind: str) -> None:
    few_colours = smooth_picture()[::8, ::8].repeat(8, axis=0).repeat(8, axis=1)
    content = encoded(few_colours, kind, "P", **({"transparency": 0} if kind == "PNG" else {}))
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.mode == "P"
        palette = np.array(opened.getpalette()).reshape(-1, 3)
        expected = palette[np.array(opened)]
    np.testing.assert_array_equal(decoded(content), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_dropped_not_blended(kind: str) -> None:
    alpha = np.full((24, 32, 1), 128, np.uint8)
    content = encoded(
        np.concatenate([smooth_picture(), alpha], axis=2), kind, **({"lossless": True} if kind == "WEBP" else {})
    )
    np.testing.assert_array_equal(decoded(content), smooth_picture())


def test_gray_with_alpha_keeps_its_gray() -> None:
    gray = smooth_picture()[:, :, 0]
    content = encoded(np.stack([gray, 255 - gray], axis=2), "PNG", "LA")
    np.testing.assert_array_equal(decoded(content)[:, :, 2], gray)


def test_a_cmyk_jpeg_has_the_colours_of_its_rgb() -> None:
    difference = decoded(encoded(smooth_picture(), "JPEG", "CMYK", quality=95)).astype(int) - smooth_picture()
    assert np.abs(difference).max() <= 8, "an inverted CMYK would be off by 100 and more"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_by_1_over_257(kind: str) -> None:
    levels = np.array([[0, 128, 129, 257, 385, 386, 25_700, 32_768, 65_406, 65_407, 65_535]], np.uint16)
    assert decoded(encoded(levels, kind))[0, :, 0].tolist() == [0, 0, 1, 1, 1, 2, 100, 128, 254, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("n_channels", [3, 4])
def test_of_16_bit_colour_the_high_byte_counts_which_is_within_one_level(kind: str, n_channels: int) -> None:
    levels = np.random.default_rng(0).integers(0, 65_536, (40, 50, n_channels)).astype(">u2")
    scanlines = b"".join(b"\0" + line.tobytes() for line in levels)
    content = png(50, 40, 16, {3: 2, 4: 6}[n_channels], scanlines) if kind == "PNG" else tiff_16_bit(levels)
    found = decoded(content)
    np.testing.assert_array_equal(found, levels[:, :, :3] // 256)
    assert np.abs(found - np.floor(levels[:, :, :3] / 257 + 0.5)).max() <= 1


def test_the_four_inks_of_a_ycck_jpeg_are_told_from_cmyk() -> None:
    """Adobe's marker says which it is: 0 CMYK, 2 YCCK; the very planes then mean other colours."""
    planes = np.stack([np.full((16, 16), level, np.uint8) for level in (140, 110, 150, 30)], axis=2)
    buffer = io.BytesIO()
    Image.fromarray(planes, "CMYK").save(buffer, "JPEG", quality=100, subsampling=0)
    content = bytearray(buffer.getvalue())
    marker = content.index(b"Adobe") + 11
    assert content[marker] == 0
    content[marker] = 2
    # Adobe stores inverted: Y, Cb, Cr are 255 - planes, and what they are as R, G, B are the inks (JFIF's matrix).
    y, cb, cr = (255 - int(level) for level in (140, 110, 150))
    rgb = np.array([y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)])
    expected = (255 - rgb) * (255 - 30) / 255
    assert np.abs(decoded(bytes(content)) - expected).max() <= 2


# What each EXIF orientation asks for, from the stored pixels to the upright ones.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    found = decoded(encoded(smooth_picture(), kind, exif=exif, **options))
    expected = UPRIGHT[orientation](smooth_picture())
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (8 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "MPO"])
def test_of_several_frames_the_first_counts(kind: str) -> None:
    first, second = Image.fromarray(smooth_picture()), Image.fromarray(255 - smooth_picture())
    buffer = io.BytesIO()
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "MPO": {"quality": 95}}.get(kind, {})
    first.save(buffer, kind, save_all=True, append_images=[second], **options)
    difference = decoded(buffer.getvalue()).astype(int) - smooth_picture()
    assert np.abs(difference).max() <= (8 if kind == "MPO" else 0)
    assert n_frames(buffer.getvalue()) == 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "BMP"])
def test_an_image_has_one_frame(kind: str) -> None:
    assert n_frames(encoded(smooth_picture(), kind)) == 1


def test_pages_behind_the_first_that_are_broken_are_pages_too() -> None:
    buffer = io.BytesIO()
    page = Image.fromarray(smooth_picture())
    page.save(buffer, "TIFF", save_all=True, append_images=[page])
    content = buffer.getvalue()[:-12]
    np.testing.assert_array_equal(decoded(content), smooth_picture())
    assert n_frames(content) == 2


def test_decoding_in_threads_leaves_the_filters_of_warnings_as_they_were() -> None:
    """`catch_warnings` of threads that end in another order than they began would leave them swapped."""
    content, before = encoded(smooth_picture(), "PNG"), list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: decode(content, "x"), range(400)))
    assert warnings.filters == before


def test_the_memory_is_in_the_order_that_renders_fast() -> None:
    assert decode(encoded(smooth_picture(), "PNG"), "x").stride() == (1, 32 * 3, 3)


def refusal(content: bytes) -> str:
    """The one line that refuses these bytes."""
    with pytest.raises(BadImage) as caught:
        decode(content, "mel/x.jpg")
    text = str(caught.value)
    assert text.startswith("mel/x.jpg: ")
    assert "\n" not in text
    assert len(text) < 250
    return text


def test_an_empty_file_is_refused() -> None:
    assert refusal(b"") == "mel/x.jpg: the file is empty"


@pytest.mark.parametrize("content", [b"image,label\n1.jpg,mel\n", b"\0" * 500, b"\xff"])
def test_a_file_that_is_no_image_is_refused(content: bytes) -> None:
    assert refusal(content) == "mel/x.jpg: cannot be decoded (not an image)"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\n <!DOCTYPE html>404 Not Found", "a web page or other markup"),
        (b"\xef\xbb\xbf<svg/>", "a web page or other markup"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer: `git lfs pull` gets the image"),
        (gzip.compress(b"x", mtime=0), "a gzip file"),
        (b"\0\0\0\x20ftypavif", "AVIF, HEIC or a film"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    ],
)
def test_what_is_often_found_under_the_name_of_an_image_is_called_what_it_is(content: bytes, what: str) -> None:
    assert refusal(content) == f"mel/x.jpg: cannot be decoded (it is {what})"


def test_numbers_without_a_known_range_are_refused() -> None:
    assert "no known range" in refusal(encoded(np.zeros((2, 3), np.float32), "TIFF"))
    assert "no known range" in refusal(encoded(np.full((2, 3), 70_000, np.int32), "TIFF"))
    assert "0 is white" in refusal(encoded(np.zeros((2, 3), np.uint16), "TIFF", tiffinfo={262: 0}))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_a_truncated_file_is_refused_wherever_it_ends(kind: str) -> None:
    content = encoded(smooth_picture(), kind)
    # The last 20 bytes hold no pixel in some formats: checksum and end mark of PNG.
    for n_bytes in {1, 2, 3, 4, 11, *range(12, len(content) - 20, max(1, len(content) // 40))}:
        refusal(content[:n_bytes])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_damaged_bytes_give_an_image_or_one_line(kind: str) -> None:
    content, rng, reasons = encoded(smooth_picture(), kind), np.random.default_rng(0), []
    for _ in range(100):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = rng.integers(256)
        try:
            decode(bytes(damaged), "mel/x.jpg")
        except BadImage as error:
            reasons.append(str(error))
    assert reasons
    assert all(re.fullmatch(r"mel/x\.jpg: .+", reason) for reason in reasons)  # "." takes no line break


@pytest.mark.parametrize(("width_px", "height_px"), [(17_001, 10_000), (65_000, 65_000)])
def test_an_image_over_the_pixel_limit_is_refused_by_its_header(width_px: int, height_px: int) -> None:
    assert width_px * height_px > LIMIT_MEGAPIXELS * 1e6
    assert "megapixels" in refusal(png(width_px, height_px, 8, 2, b""))


def test_an_image_of_half_the_limit_is_not_refused_for_its_size() -> None:
    """Pillow would warn from 89 million pixels on; this file lacks its pixels, and says that."""
    reason = refusal(png(10_000, 10_000, 8, 2, b""))
    assert "truncated" in reason
    assert "limit" not in reason


def test_the_limit_names_what_was_found_and_what_is_allowed() -> None:
    assert refusal(png(17_001, 10_000, 8, 2, b"")) == "mel/x.jpg: 17001 x 10000 = 170.01 megapixels, the limit is 170"


def test_a_file_is_read_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(smooth_picture(), "PNG"))
    np.testing.assert_array_equal(read_image(path).permute(1, 2, 0).numpy(), smooth_picture())


def test_a_missing_file_is_a_bad_image_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="cannot be read") as caught:
        read_image(tmp_path / "gone.jpg")
    assert str(tmp_path / "gone.jpg") in str(caught.value)
    assert isinstance(caught.value, DataError)
    with pytest.raises(BadImage, match="cannot be read"):
        read_image(tmp_path)


def test_suffixes_are_lower_case_with_their_dot() -> None:
    assert all(re.fullmatch(r"\.[a-z]+", suffix) for suffix in IMAGE_SUFFIXES)
    assert {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"} <= IMAGE_SUFFIXES
