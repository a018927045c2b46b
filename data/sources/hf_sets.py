"""The labelled images of data sets of the Hugging Face hub, or of a local folder that `datasets` reads.

Writes no folder (`data.sources.downloads` does).
Run: softlabel cache build hf:OWNER/NAME --label-column dx -o t.h5
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import BadOption, DataError, did_you_mean
from data.sources.downloads import Item, Splits, first_line, suffix_of
from data.sources.found import SPLIT_NAMES, split_of

if TYPE_CHECKING:
    from data.options import ScanOptions

_LABELS = ("label", "labels")


def splits_of(name: str, raw: Path, options: ScanOptions) -> Splits:
    """The splits of `NAME[:CONFIG]`; a data set of one split has none. DataError where it cannot be had."""
    if len(options.label_columns) > 1:
        raise BadOption(f"hf:{name} is read for one task: name one --label-column, got {len(options.label_columns)}")
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"hf:{name} needs the package datasets: pip install '.[hf]'") from error
    repository, _, config = name.partition(":")
    try:
        with _quiet():
            loaded = datasets.load_dataset(repository, config or None, cache_dir=str(raw / "hf"))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"hf:{name} cannot be loaded ({first_line(error)}); expected hf:OWNER/NAME[:CONFIG] of the hub, reachable "
            "from here, or hf:FOLDER"
        ) from error
    parts = {split_of(split): part for split, part in loaded.items()}
    if "" in parts or len(parts) < len(loaded):
        raise DataError(f"hf:{name} has the splits {', '.join(loaded)}; expected some of {', '.join(SPLIT_NAMES)}")
    if len(parts) == 1:
        parts = {"": next(iter(parts.values()))}
    features = next(iter(parts.values())).features
    images = _image_column(name, features, options.image_column)
    labels = _label_column(name, features, options.label_columns, images)
    with _quiet():
        encoded = {split: part.cast_column(images, datasets.Image(decode=False)) for split, part in parts.items()}
    return {split: functools.partial(_items, part, images, labels) for split, part in encoded.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of the pickling by which `datasets` names its own temporary files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _image_column(name: str, features: Any, named: str | None) -> str:
    found = [column for column, kind in features.items() if type(kind).__name__ == "Image"]
    return _one(name, "images", "--image-column", found, named, list(features))


def _label_column(name: str, features: Any, named: Sequence[str], images: str) -> str:
    columns = [column for column in features if column != images]
    found = [column for column in columns if type(features[column]).__name__ == "ClassLabel"]
    found = found or [column for column in columns if column in _LABELS]
    return _one(name, "labels", "--label-column", found, named[0] if named else None, columns)


def _one(name: str, what: str, flag: str, found: Sequence[str], named: str | None, columns: Sequence[str]) -> str:
    """The column that is named, or the only one there is."""
    if named is not None and named not in columns:
        raise DataError(f"hf:{name} has no column {named}; it has {', '.join(columns)}{did_you_mean(named, columns)}")
    if named is None and len(found) != 1:
        several = f"several columns of {what} ({', '.join(found)})" if found else f"no column of {what}"
        raise DataError(f"hf:{name} has {several}; it has {', '.join(columns)}: name one with {flag}")
    return named if named is not None else found[0]


def _items(part: Any, images: str, labels: str) -> Iterator[Item]:
    """The files as they were published; -1 and nothing at all are no labels."""
    kind = part.features[labels]
    for row in part:
        image, label = row[images], row[labels]
        encoded = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        if label is None or (type(label) is int and label < 0):
            yield encoded, suffix_of(encoded), None
        else:
            yield encoded, suffix_of(encoded), kind.int2str(label) if hasattr(kind, "int2str") else str(label)
