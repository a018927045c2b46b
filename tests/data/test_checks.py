"""The check of all files before a long run."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from PIL import Image

from data import checks
from data.checks import checked
from data.errors import BadFile, BadImage
from data.samples import Sample, content_key


def samples_of(n: int) -> list[Sample]:
    return [Sample(number.to_bytes(16, "big"), str(number), str(number), "train", {}) for number in range(n)]


def image_with(n_frames: int) -> bytes:
    frames = [Image.new("RGB", (4, 3), (shade, 0, 0)) for shade in range(0, 100 * n_frames, 100)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were read so far; those that end in 7 are bad."""
    paths: list[str] = []
    lock = threading.Lock()
    content = image_with(1)

    def read_encoded(sample: Sample) -> bytes:
        with lock:
            paths.append(sample.path)
        if sample.path.endswith("7"):
            raise BadImage("not an image", sample.path)
        return content

    monkeypatch.setattr(checks, "read_encoded", read_encoded)
    monkeypatch.setattr(checks, "_WAITING", 16)
    return paths


@pytest.mark.parametrize("n", [0, 3, 16, 17, 100])
def test_every_sample_is_checked_once_and_told_in_order(n: int, read: list[str]) -> None:
    samples = samples_of(n)
    found = list(checked(samples))
    assert [image.sample for image in found] == samples
    assert [image.bad for image in found if image.bad is not None] == [
        BadFile(sample.path, "not an image", key=sample.key) for sample in samples if sample.path[-1] == "7"
    ]
    assert sorted(read) == sorted(sample.path for sample in samples)


def test_only_a_few_samples_wait_at_a_time_and_none_is_read_after_an_interrupt(read: list[str]) -> None:
    found = checked(samples_of(1000))
    next(found)
    found.close()
    assert len(read) <= 16


def test_a_file_that_is_gone_says_nothing_of_its_image(tmp_path: Path) -> None:
    sample = Sample(bytes(16), str(tmp_path / "gone.png"), "gone.png", "train", {})
    (found,) = checked([sample])
    assert found.bad == BadFile(sample.path, "cannot be read (No such file or directory)", True, sample.key)


@pytest.mark.parametrize("n_frames", [1, 3])
def test_frames_and_pages_are_counted(n_frames: int, tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    path.write_bytes(image_with(n_frames))
    (found,) = checked([Sample(content_key(path.read_bytes()), str(path), path.name, "train", {})])
    assert (found.bad, found.n_frames) == (None, n_frames)
