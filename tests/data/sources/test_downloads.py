"""Public data sets become folders: once, whole, with bytes that no library's version changes. No network."""

from __future__ import annotations

import gzip
import io
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import BadOption, DataError
from data.options import ScanOptions
from data.samples import SampleSet, content_key
from data.scan import scan_data
from data.sources import torchvision_sets
from data.sources.downloads import bmp

Scan = Callable[..., SampleSet]


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """The downloads folder with MNIST's raw files in it, of ten images each."""
    raw = tmp_path / "downloads" / "raw" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, first in (("train", 0), ("t10k", 100)):
        pixels = np.arange(first, first + 10, dtype=np.uint8).repeat(28 * 28)
        labels = bytes(number % 3 for number in range(10))
        for suffix in ("", ".gz"):
            opened = gzip.open if suffix else open
            with opened(raw / f"{name}-images-idx3-ubyte{suffix}", "wb") as file:
                file.write(struct.pack(">4i", 0x803, 10, 28, 28) + pixels.tobytes())
            with opened(raw / f"{name}-labels-idx1-ubyte{suffix}", "wb") as file:
                file.write(struct.pack(">2i", 0x801, 10) + labels)
    return tmp_path / "downloads"


def test_mnist_becomes_a_folder_of_bmp_files_once(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ScanOptions(downloads=mnist)
    found = scan_data("torchvision:MNIST", options)
    assert found.splits == ("train", "test")
    assert found.classes == {"class": ("0 - zero", "1 - one", "2 - two")}
    assert found.words == ("torchvision:MNIST",)
    gray = next(sample for sample in found.samples if sample.name.startswith("test/0 - zero/000009"))
    assert np.array_equal(np.asarray(Image.open(gray.path)), np.full((28, 28, 3), 109, np.uint8))
    monkeypatch.setattr(torchvision_sets, "splits_of", lambda *_: pytest.fail("it was there already"))
    assert scan_data("torchvision:MNIST", options) == found


def test_a_killed_download_is_never_taken_for_whole(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(pixels: np.ndarray) -> bytes:
        if pixels[0, 0, 0] == 105:
            raise KeyboardInterrupt
        return bmp(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(torchvision_sets, "bmp", killed)
        with pytest.raises(KeyboardInterrupt):
            scan_data("torchvision:MNIST", ScanOptions(downloads=mnist))
    assert [path.name for path in mnist.iterdir()] == ["raw"]
    assert len(scan_data("torchvision:MNIST", ScanOptions(downloads=mnist)).samples) == 20


def test_a_data_set_without_splits_is_split_here(tmp_path: Path) -> None:
    found = scan_data("torchvision:FakeData", ScanOptions(downloads=tmp_path, max_per_class=5))
    assert found.splits == ("train", "val", "test")
    assert (found.root / "splits.csv").is_file()


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3), (1, 1, 3)])
def test_bmp_files_hold_the_very_pixels_and_have_these_bytes(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = np.repeat(pixels[..., None], 3, -1) if len(shape) == 2 else pixels
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(bmp(pixels)))), expected)


def test_the_bytes_of_a_bmp_are_pinned() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert content_key(bmp(pixels)).hex() == "c6ba6ae2c7ce779c5ed96ce10ce387ec"


@pytest.mark.parametrize(
    ("data", "settings", "said"),
    [
        ("torchvision:CIFAR1", {}, r"torchvision:CIFAR1 is not a data set .*did you mean 'CIFAR10'"),
        ("torchvision:MNIST", {"label_columns": ("x",)}, "has no columns: --label-column and --image-column are for"),
        ("torchvision:MNIST", {"group_column": "x"}, "torchvision:MNIST has no table: --group-column x goes with"),
        ("hf:x/y", {"csv": Path("t.csv")}, "hf:x/y has no table: --csv t.csv"),
        ("hf:x/y", {"label_columns": ("a", "b")}, "is read for one task: name one --label-column, got 2"),
    ],
)
def test_what_cannot_be_asked_for_is_told(data: str, settings: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        scan_data(data, ScanOptions(downloads=tmp_path, **settings))


def test_a_caller_says_where_downloads_go() -> None:
    with pytest.raises(BadOption, match="is written into a folder first"):
        scan_data("torchvision:MNIST")


def test_a_download_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried ...")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", unreachable)
    with pytest.raises(DataError, match=r"torchvision:MNIST cannot be downloaded: Error downloading train-images"):
        scan_data("torchvision:MNIST", ScanOptions(downloads=tmp_path))


def test_the_package_for_hf_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"hf:x/y needs the package datasets: pip install '\.\[hf\]'"):
        scan_data("hf:x/y", ScanOptions(downloads=tmp_path))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local data set of parquet files: images as bytes, a label column of names, another of numbers."""
    datasets = pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["mel", "nv"]), "sex": datasets.Value("string")}
    )
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    for split, first in (("train", 0), ("validation", 50)):
        rows = []
        for number in range(first, first + 6):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, ("JPEG", "PNG")[number % 2])
            image = {"bytes": buffer.getvalue(), "path": None}
            rows.append({"image": image, "label": number % 2 if number else -1, "sex": "mf"[number // 2 % 2]})
        parquet.write_table(
            pyarrow.Table.from_pylist(rows, schema=features.arrow_schema), folder / f"{split}-00000-of-00001.parquet"
        )
    return tmp_path / "set"


def test_a_hub_data_set_keeps_its_bytes_and_its_classes(hub: Path, tmp_path: Path) -> None:
    found = scan_data(f"hf:{hub}", ScanOptions(downloads=tmp_path / "downloads"))
    assert found.splits == ("train", "val")
    assert found.classes == {"class": ("mel", "nv")}
    assert Counter(dict(sample.labels).get("class") for sample in found.samples) == {"mel": 5, "nv": 6, None: 1}
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (51, 0, 0)).save(buffer, "PNG")
    one = next(sample for sample in found.samples if sample.key == content_key(buffer.getvalue()))
    assert one.name == "val/nv/000001.png"


def test_the_columns_of_a_hub_data_set_can_be_chosen(hub: Path, tmp_path: Path) -> None:
    options = ScanOptions(downloads=tmp_path / "downloads", label_columns=("sex",), image_column="image")
    found = scan_data(f"hf:{hub}", options)
    assert found.classes == {"class": ("f", "m")}
    assert found.words == (f"hf:{hub}", "--image-column", "image", "--label-column", "sex")
    with pytest.raises(DataError, match="has no column sx; it has label, sex; did you mean 'sex'"):
        scan_data(f"hf:{hub}", ScanOptions(downloads=tmp_path / "downloads", label_columns=("sx",)))


def test_a_hub_data_set_that_is_not_there_is_told(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match=r"hf:.*nothing cannot be loaded \(.*\); expected hf:OWNER/NAME\[:CONFIG\]"):
        scan_data(f"hf:{tmp_path / 'nothing'}", ScanOptions(downloads=tmp_path / "downloads"))
