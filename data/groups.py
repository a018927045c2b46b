"""Which samples belong together (one patient, one lesion), and folds that never tear a group apart.

Never looks at labels: whoever answers for a group must not depend on what the group is called.
Run: softlabel cache probe t.h5 DATA --cross-fit lesion_id --csv metadata.csv -o probe.h5
N samples.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from data.decode import IMAGE_SUFFIXES
from data.errors import BadSamples, DataNotFound, bullet_list
from data.samples import Sample

EACH_IMAGE = "image"
"""The grouping in which every image is a group of its own."""
IMAGE_COLUMNS = ("image_id", "image", "filename", "path", "name")
_PLACES: tuple[Callable[[str], str], ...] = (str, lambda name: PurePosixPath(name).name, lambda name: _stem(name))
"""What of an image's relative path may stand in the table, the most telling first."""


def read_groups(
    samples: Sequence[Sample],
    file: Path,
    column: str,
    image_column: str | None = None,
    *,
    required: Callable[[Sample], bool] = lambda sample: True,
) -> dict[bytes, str]:
    """Content key -> group, from a CSV with a row an image; BadSamples lists every image whose group is not certain.

    An image's row has its relative path, file name or file name without suffix in `image_column` (None: the first of
    `IMAGE_COLUMNS` there is). Images that are not `required` may have no row; they are absent then.
    """
    groups_of = _table(file, column, image_column, {sample.name for sample in samples})
    owners = [_owners(samples, place) for place in _PLACES]
    found: dict[bytes, str] = {}
    problems = []
    for sample in samples:
        groups, shared = _look_up(sample, groups_of, owners)
        if len(groups) == 1 and not shared and found.setdefault(sample.key, *groups) in groups:
            continue
        if shared:
            problems.append(f"{sample.name}: its row fits {shared} images: write relative paths in the table")
        elif groups:
            both = sorted({*groups, *([found[sample.key]] if sample.key in found else [])})
            problems.append(f"{sample.name}: rows say {' and '.join(both)}")
        elif required(sample):
            problems.append(f"{sample.name}: no row, or an empty {column}")
    if problems:
        raise BadSamples(
            f"{file} does not give one {column} to each of {len(problems):,} of {len(samples):,} images "
            f"(an image is found by relative path, file name or file name without suffix):\n{bullet_list(problems)}"
        )
    return found


def group_folds(groups: Sequence[str], n_folds: int, seed: int = 0) -> NDArray[np.int64]:
    """The fold of each sample, int64 [N]: whole groups, largest first, each to the fold with the fewest samples.

    Depends on the groups and the seed alone. BadSamples where there are fewer groups than folds.
    """
    sizes = Counter(groups)
    if len(sizes) < n_folds:
        raise BadSamples(f"{len(sizes)} groups cannot fill {n_folds} folds: choose fewer --folds, or another grouping")
    fold_of, n_samples = dict[str, int](), [0] * n_folds
    for group in sorted(sizes, key=lambda group: (-sizes[group], _shuffled(group, seed), group)):
        fold = n_samples.index(min(n_samples))
        fold_of[group] = fold
        n_samples[fold] += sizes[group]
    return np.array([fold_of[group] for group in groups], np.int64)


def _shuffled(group: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{group}".encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def _owners(samples: Sequence[Sample], place: Callable[[str], str]) -> dict[str, set[bytes]]:
    """What stands in the table -> the keys of the images that are called so."""
    found = defaultdict[str, set[bytes]](set)
    for sample in samples:
        found[place(sample.name)].add(sample.key)
    return found


def _look_up(
    sample: Sample, groups_of: dict[str, set[str]], owners: Sequence[dict[str, set[bytes]]]
) -> tuple[set[str], int]:
    """The groups of the rows of an image, and how many images these rows fit where that is more than this one."""
    for place, keys_of in zip(_PLACES, owners, strict=True):
        name = place(sample.name)
        if groups := groups_of.get(name):
            n_owners = len(keys_of[name])
            return groups, n_owners if n_owners > 1 else 0
    return set(), 0


def _table(file: Path, column: str, image_column: str | None, paths: Set[str]) -> dict[str, set[str]]:
    """What a row calls its image -> the groups of such rows.

    A row with one of the relative `paths` is about that image alone, any other about all of its file name.
    """
    found = defaultdict[str, set[str]](set)
    for image, group in _rows(file, column, image_column):
        if image and group:
            written = image.replace("\\", "/")
            for name in {written} if written in paths else {place(written) for place in _PLACES}:
                found[name].add(group)
    return found


def _rows(file: Path, column: str, image_column: str | None) -> Iterator[tuple[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
            reader = csv.DictReader(opened)
            columns = list(reader.fieldnames or ())
            images = image_column or next((name for name in IMAGE_COLUMNS if name in columns), None)
            if images is None:
                raise BadSamples(
                    f"{file} has no column {', '.join(IMAGE_COLUMNS)}; it has {', '.join(columns) or 'none'}: "
                    "name the one of the images with --image-column"
                )
            if unknown := [name for name in (column, images) if name not in columns]:
                raise BadSamples(f"{file} has no column {unknown[0]}; it has {', '.join(columns) or 'none'}")
            if repeated := [name for name in (column, images) if columns.count(name) > 1]:
                raise BadSamples(f"{file} has {columns.count(repeated[0])} columns {repeated[0]}: keep one of them")
            for row in reader:
                yield (row[images] or "").strip(), (row[column] or "").strip()
    except OSError as error:
        raise DataNotFound(f"cannot read {file} ({error.strerror}): --csv names a table with a row an image") from error
    except csv.Error as error:
        raise BadSamples(f"{file} is no CSV table: {error}") from error
