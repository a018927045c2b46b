"""Which rows a cache of some images is to have, and how many bytes they take on disk. Computes none of them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence, Set
from pathlib import Path

from cache.layout import Dims
from cache.manifest import Manifest
from data.samples import Sample, SampleSet

log = logging.getLogger(__name__)

Wanted = list[tuple[Sample, list[int]]]
"""Samples in key order, each with the views that are wanted of it."""


def wanted_rows(images: SampleSet, views: int, done: Set[tuple[bytes, int]]) -> Wanted:
    """Each sample once, with the views that are not `done`: all of a train image, the clean one of others."""
    views_of: dict[bytes, int] = {}
    sample_of: dict[bytes, Sample] = {}
    for sample in images.samples:
        sample_of[sample.key] = sample
        views_of[sample.key] = max(views_of.get(sample.key, 1), views if sample.split == "train" else 1)
    missing = {key: [v for v in range(views_of[key]) if (key, v) not in done] for key in sorted(sample_of)}
    return [(sample_of[key], wanted) for key, wanted in missing.items() if wanted]


def planned_dims(manifest: Manifest, samples: Sequence[Sample], n_rows: int, features: dict[str, tuple[int, ...]],
                 *, names: bool) -> Dims:  # fmt: skip
    """The sizes of a cache of so many rows."""
    return Dims(
        manifest_bytes=len(manifest.to_bytes()),
        n_samples=len(samples),
        n_rows=n_rows,
        n_params=len(manifest.view_columns),
        class_counts=tuple(len(classes) for classes in manifest.tasks.values()),
        features=features,
        name_bytes=max((len(sample.name.encode(errors="surrogateescape")) for sample in samples), default=1)
        if names
        else None,
    )


def warn_of_a_full_disk(out: Path, n_bytes_new: int, n_bytes_all: int) -> None:
    """The sealed segments and the merged file stand side by side for a moment: say so before the teacher runs."""
    free = shutil.disk_usage(out.absolute().parent).free
    if n_bytes_new and free < n_bytes_new + n_bytes_all:
        log.warning(
            "the disk may fill up: this build needs up to %s bytes in %s, %s are free. What is sealed stays; "
            "make room before it ends",
            f"{n_bytes_new + n_bytes_all:,}", out.absolute().parent, f"{free:,}",
        )  # fmt: skip
