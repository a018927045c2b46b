"""Looking into every image of a data set, once."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data import checks
from data.decode import ImageFacts, decode_with_facts
from data.inspection import ImageFormats, inspect
from data.near_duplicates import NearDuplicateConfig
from data.options import ScanOptions
from data.samples import Sample

ASKING = ScanOptions(remember_split=False)
ORIENTATION = 0x0112


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Blobs of colour."""
    levels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder of two classes with images of many kinds, and two bad files."""
    a, b = tmp_path / "train" / "a", tmp_path / "train" / "b"
    save(picture(0), a / "0.jpg")
    save(picture(1), a / "1.jpg", exif=turned(6))
    save(picture(2).convert("L"), a / "2.png")
    save(picture(3).convert("P"), a / "3.png")
    save(picture(4), b / "4.jpg", format="PNG")  # named otherwise
    save(picture(5).convert("CMYK"), b / "5.tif")
    save(picture(6), b / "6.tif", save_all=True, append_images=[picture(7)])
    save(Image.fromarray(np.arange(200, dtype=np.uint16).reshape(10, 20) * 300), b / "7.png")
    (b / "empty.jpg").touch()
    (b / "broken.jpg").write_bytes((a / "0.jpg").read_bytes()[:-300])
    return tmp_path


def test_what_the_files_say_is_counted(odd: Path) -> None:
    found = inspect(odd, ASKING)
    formats = found.formats
    assert formats.formats == {"JPEG": 2, "PNG": 4, "TIFF": 2}
    assert formats.modes == {"RGB": 4, "L": 1, "P": 1, "CMYK": 1, "I;16": 1}
    assert formats.sizes_px == {(60, 40): 6, (40, 60): 1, (20, 10): 1}
    assert (formats.n_turned, formats.several_frames) == (1, ["train/b/6.tif"])
    assert found.look_alikes is None


def test_files_without_bytes_and_files_that_are_no_image_are_listed_together(odd: Path) -> None:
    found = inspect(odd, ASKING)
    assert [Path(file.path).name for file in found.bad] == ["broken.jpg", "empty.jpg"]
    assert found.n_files == 10


def test_every_image_is_read_and_decoded_once(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[str]()
    read_encoded = checks.read_encoded

    def counting(sample: Sample) -> bytes:
        read.append(sample.name)
        return read_encoded(sample)

    monkeypatch.setattr(checks, "read_encoded", counting)
    inspect(odd, ASKING, NearDuplicateConfig())
    assert sorted(read) == sorted(
        {path.relative_to(odd).as_posix() for path in odd.rglob("*.*")} - {"train/b/empty.jpg"}
    )


def test_look_alikes_of_two_splits_and_of_two_classes_are_told_apart_and_the_same_bytes_are_none(
    tmp_path: Path,
) -> None:
    for number, (split, label) in enumerate([("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")]):
        save(picture(number), tmp_path / split / label / "own.png")
    save(picture(10), tmp_path / "train" / "a" / "x.png")
    save(ImageOps.mirror(picture(10)), tmp_path / "test" / "a" / "x mirrored.png")
    save(picture(11), tmp_path / "train" / "a" / "y.png")
    save(picture(11), tmp_path / "train" / "b" / "y.jpg", quality=80)
    save(picture(12), tmp_path / "train" / "a" / "z.png")
    save(picture(12), tmp_path / "train" / "a" / "z.jpg", quality=80)  # of one class and split
    for split in ("train", "test"):
        save(picture(13), tmp_path / split / "b" / "same.png")
    found = inspect(tmp_path, ASKING, NearDuplicateConfig()).look_alikes
    assert found
    (across,), (contradicting,) = found.across_splits, found.across_labels
    assert {across.one.name, across.other.name} == {"train/a/x.png", "test/a/x mirrored.png"}
    assert across.is_turned
    assert {contradicting.one.name, contradicting.other.name} == {"train/a/y.png", "train/b/y.jpg"}
    assert not contradicting.is_turned


def test_bad_files_and_empty_folders_do_not_disturb_the_search_for_look_alikes(odd: Path, tmp_path: Path) -> None:
    assert inspect(odd, ASKING, NearDuplicateConfig()).look_alikes is not None
    only_bad = tmp_path / "only bad"
    (only_bad / "train" / "a").mkdir(parents=True)
    (only_bad / "train" / "a" / "0.png").write_bytes(b"no image")
    found = inspect(only_bad, ASKING, NearDuplicateConfig())
    assert (len(found.bad), found.formats.formats) == (1, {})
    assert found.look_alikes
    assert found.look_alikes.across_splits == ()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_that_exif_says_and_the_size_after_turning(kind: str, orientation: int) -> None:
    buffer = io.BytesIO()
    picture(0, (30, 20)).save(buffer, kind, exif=turned(orientation))
    size = (20, 30) if orientation > 4 else (30, 20)
    _, facts = decode_with_facts(buffer.getvalue(), "x")
    assert facts == ImageFacts(kind, "RGB", *size, orientation)


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_an_orientation_that_there_is_not_is_upright(orientation: int) -> None:
    buffer = io.BytesIO()
    picture(0).save(buffer, "JPEG", exif=turned(orientation))
    assert decode_with_facts(buffer.getvalue(), "x")[1].orientation == 1


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1), st.sampled_from([0, 0.5, 1]))
def test_quantiles_of_sizes_are_those_of_the_sorted_images(sizes: list[tuple[int, int]], share: float) -> None:
    found = ImageFormats(sizes_px=Counter(sizes)).quantile_px(share)
    areas = sorted(width * height for width, height in sizes)
    assert found in sizes
    assert found[0] * found[1] == areas[int(share * (len(sizes) - 1))]
