"""Which samples belong together (one patient, one lesion), and folds that never tear a group apart.

Never looks at labels: whoever answers for a group must not depend on what the group is called.
Run: softlabel cache probe t.h5 DATA --cross-fit lesion_id --csv metadata.csv -o probe.h5
N samples.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import BadSamples, bullet_list
from data.samples import Sample
from data.sources.tables import ImageNames, read_table

EACH_IMAGE = "image"
"""The grouping in which every image is a group of its own."""


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
    `data.sources.tables.IMAGE_COLUMNS` there is). Images that are not `required` may have no row; they are absent then.
    """
    said, shared = _said(samples, file, column, image_column)
    found: dict[bytes, str] = {}
    problems = []
    for at, sample in enumerate(samples):
        groups = said.get(at, set())
        if len(groups) == 1 and at not in shared and found.setdefault(sample.key, *groups) in groups:
            continue
        if at in shared:
            problems.append(f"{sample.name}: its row fits {shared[at]} images: write relative paths in the table")
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


def _said(
    samples: Sequence[Sample], file: Path, column: str, image_column: str | None
) -> tuple[dict[int, set[str]], dict[int, int]]:
    """What the rows of each image say, and how many images these rows fit where that is more than one.

    Of the rows of an image those count that name it most exactly: relative path before file name before stem.
    """
    table = read_table(file)
    images = table.number(table.image_column(image_column))
    values = table.number(column)
    names = ImageNames([sample.name for sample in samples])
    rank_of, said, shared = dict[int, int](), dict[int, set[str]](), dict[int, int]()
    for row in table.rows:
        image, value = row.cells[images], row.cells[values]
        if not image or not value:
            continue
        rank, meant = names.find(image)
        n_images = len({samples[at].key for at in meant})
        for at in meant:
            if rank > rank_of.get(at, rank):
                continue
            if rank < rank_of.get(at, rank + 1):
                rank_of[at], said[at] = rank, set()
                shared.pop(at, None)
            said[at].add(value)
            if n_images > 1:
                shared[at] = n_images
    return said, shared


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
