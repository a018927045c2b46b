"""The labelled images of torchvision's data sets. Writes no folder (`data.sources.downloads` does).

Run: softlabel cache build torchvision:CIFAR10 -o t.h5
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import BadOption, DataError, did_you_mean
from data.sources.downloads import Item, Splits, bmp, first_line

if TYPE_CHECKING:
    from data.options import ScanOptions

_TRAIN_AND_TEST = {"train": {"train": True}, "test": {"train": False}}
_BY_NAME = {"train": {"split": "train"}, "test": {"split": "test"}}
_WITH_VAL = {**_BY_NAME, "val": {"split": "val"}}
KNOWN: dict[str, dict[str, dict[str, Any]]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"), _TRAIN_AND_TEST),
    **dict.fromkeys(("SVHN", "STL10", "GTSRB", "Food101"), _BY_NAME),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102"), _WITH_VAL),
    "Country211": {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
    "Imagenette": {"train": {"split": "train"}, "val": {"split": "val"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "EuroSAT": {"": {}},
    "Caltech101": {"": {}},
    "FakeData": {"": {"size": 80, "image_size": (3, 32, 32), "num_classes": 4}},
}
"""Name -> split ("" where the data set has none) -> arguments of torchvision's class."""


def splits_of(name: str, raw: Path, options: ScanOptions) -> Splits:
    """The splits of a data set, downloaded into `raw` where it is not there; DataError where it cannot be had."""
    if options.label_columns or options.image_column:
        raise BadOption(f"torchvision:{name} has no columns: --label-column and --image-column are for hf: and tables")
    if name not in KNOWN:
        raise DataError(
            f"torchvision:{name} is not a data set of images with one label each{did_you_mean(name, KNOWN)}; known: "
            f"{', '.join(KNOWN)}"
        )
    return {split: _opened(name, raw, arguments) for split, arguments in KNOWN[name].items()}


def _opened(name: str, raw: Path, arguments: dict[str, Any]) -> Callable[[], Iterator[Item]]:
    from torchvision import datasets

    make = getattr(datasets, name)
    if name == "FakeData":
        return functools.partial(_items, make(**arguments))
    try:
        return functools.partial(_items, make(raw, download=False, **arguments))
    except (RuntimeError, OSError, ValueError):  # not there, or not whole
        pass
    try:
        return functools.partial(_items, make(raw, download=True, **arguments))
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(f"torchvision:{name} cannot be downloaded: {first_line(error)}") from error


def _items(dataset: Any) -> Iterator[Item]:
    """The files of a data set as they were published, or else its pixels as BMP."""
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    files = _files(dataset)
    for at in range(len(dataset)):
        if files is None:
            image, label = dataset[at]
            yield bmp(np.asarray(image.convert("RGB"))), ".bmp", _named(names, label)
        else:
            path, label = files[at]
            yield Path(path).read_bytes(), Path(path).suffix.lower(), _named(names, label)


def _files(dataset: Any) -> list[tuple[str | Path, int]] | None:
    """(path, label) of each image, where the data set is made of image files."""
    for name in ("samples", "_samples"):
        if (found := getattr(dataset, name, None)) is not None:
            return list(found)
    paths, labels = getattr(dataset, "_image_files", None), getattr(dataset, "_labels", None)
    paths = getattr(dataset, "_images", None) if paths is None else paths
    return None if paths is None or labels is None else list(zip(paths, labels, strict=True))


def _named(names: Any, label: Any) -> str:
    return str(names[int(label)]) if names else str(int(label))
