"""Which files of pixels a run reads and fills: as much as pays, fits its budget of disk, and can be written.

What a student learns does not depend on it. Reads and renders nothing (`data.pixels` does).
Run: softlabel train DATA t.h5 -o RUN --pixels auto
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache import CacheReader
from data.decode import n_pixels
from data.pixels.decoded import DecodedImages
from data.pixels.rendered import RenderedViews
from data.pixels.source import PixelSource, Siblings
from data.samples import Sample
from pipeline.errors import SettingError
from pipeline.targets import TeacherTargets
from pipeline.training.config import TrainConfig

CHOICES = ("auto", "jpeg", "decoded", "views")
_PAYS_AFTER_EPOCHS = 3
"""An image that is shown so often has paid for being kept."""
_N_LOOKED_AT = 200
"""Images whose headers say about how much disk all would take."""
_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class PixelOptions:
    """Where the pixels of a run come from; no setting of the run, as no number of it depends on it."""

    choice: str = "auto"
    """`views` as they were rendered, `decoded` images, `jpeg`: the images' own files; `auto`: the fastest that fits."""
    limit_gb: float = 8.0
    """The most disk that is taken, 1e9 bytes."""
    folder: Path | None = None
    """Where files of pixels are; None: beside the cache, as CACHE.pixels, or else in `fallback`."""
    fallback: Path | None = None
    """For a cache in a folder that cannot be written to; None: nothing is kept then."""

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise SettingError(f"pixels must be one of {', '.join(CHOICES)}, got {self.choice!r}")
        if not self.limit_gb >= 0:
            raise SettingError(f"--pixels-gb must be at least 0, got {self.limit_gb}")


@dataclass(frozen=True)
class ChosenPixels:
    """What was chosen, and the line that says so."""

    choice: str
    source: PixelSource
    line: str


def choose_pixels(options: PixelOptions, groups: Mapping[str, TeacherTargets], config: TrainConfig) -> ChosenPixels:
    """The source of all views of a run: those of `train`, and the clean ones of `val`.

    SettingError where what was asked for does not fit, or is of no use.
    """
    return _Choosing(options, groups, config).choose()


class _Choosing:
    """What the decision is made from."""

    def __init__(self, options: PixelOptions, groups: Mapping[str, TeacherTargets], config: TrainConfig) -> None:
        self._options, self._groups, self._config = options, groups, config
        self._train = groups["train"]
        self._folder = _folder(options, self._train.reader)
        self._pays = config.epochs > _PAYS_AFTER_EPOCHS
        self._refused = list[str]()

    def choose(self) -> ChosenPixels:
        wanted, is_auto = self._options.choice, self._options.choice == "auto"
        if wanted == "views" and self._config.fresh_views:
            raise SettingError("--pixels views: no fresh view is shown twice; take --pixels decoded, or auto")
        found = None
        if wanted in ("auto", "views") and not self._config.fresh_views:
            found = self._views()
        if found is None and wanted in ("auto", "decoded") and (self._pays or not is_auto):
            found = self._decoded()
        if found is None and not is_auto and wanted != "jpeg":
            raise SettingError(f"--pixels {wanted}: {'; '.join(self._refused)}")
        return found or self._jpeg()

    def _views(self) -> ChosenPixels | None:
        train, config = self._train, self._config
        if self._folder is None:
            self._refused.append("no folder for views can be written to: name one by --pixels-dir")
            return None
        reader, size_px = train.reader, config.student_size_px
        kept = RenderedViews(self._folder, reader.cache_id, reader.n_rows, size_px, train.geometry)
        rows = shown_rows(self._groups, config.n_views)
        needed, n_standing = len(rows) * kept.row_bytes, int(kept.file.stands()[rows].sum())
        if self._options.choice == "auto" and not self._pays and 2 * n_standing < len(rows):
            return None
        if not self._fits("views", needed, n_standing * kept.row_bytes):
            return None
        shown_often = config.epochs >= int(train.used_views(config.n_views).max())
        siblings = _siblings(train, config.n_views) if shown_often else None
        source = PixelSource(size_px, train.geometry, rendered=kept, siblings=siblings)
        n_views = f"{len(rows):,} rendered views at {size_px} px"
        return ChosenPixels("views", source, self._line(n_views, needed, n_standing / len(rows), kept.file.path))

    def _decoded(self) -> ChosenPixels | None:
        samples = [sample for group in self._groups.values() for sample in group.samples]
        if self._folder is None:
            self._refused.append("no folder for decoded images can be written to: name one by --pixels-dir")
            return None
        roughly = _estimated_bytes(samples)
        if self._options.choice == "auto" and roughly > 1.5 * self._options.limit_gb * _GB:
            self._refused.append(f"decoded images would take about {_gb(roughly)}")
            return None
        kept = DecodedImages(self._folder, samples)
        standing = kept.standing_bytes()
        if not self._fits("decoded images", kept.n_bytes, standing):
            return None
        source = PixelSource(self._config.student_size_px, self._train.geometry, decoded=kept)
        n_images = f"{len(samples):,} decoded images"
        line = self._line(n_images, kept.n_bytes, standing / max(1, kept.n_bytes), kept.file.path)
        return ChosenPixels("decoded", source, line)

    def _jpeg(self) -> ChosenPixels:
        source = PixelSource(self._config.student_size_px, self._train.geometry)
        why = f" ({'; '.join(self._refused)})" if self._refused else ""
        if self._options.choice == "auto" and not self._pays:
            why = f" (at most {_PAYS_AFTER_EPOCHS} epochs; --pixels views keeps the views for other runs)"
        return ChosenPixels("jpeg", source, f"images are decoded and views rendered in every epoch{why}")

    def _fits(self, what: str, needed_bytes: int, standing_bytes: int) -> bool:
        """Whether the budget and the disk have room for what is missing; the reason why not is kept."""
        assert self._folder is not None
        if needed_bytes > self._options.limit_gb * _GB:
            self._refused.append(
                f"{what} would take {_gb(needed_bytes)}, and --pixels-gb is {self._options.limit_gb:g}: "
                f"--pixels-gb {_allowing(needed_bytes)} allows them"
            )
            return False
        free_bytes, missing = shutil.disk_usage(_standing_parent(self._folder)).free, needed_bytes - standing_bytes
        if missing > free_bytes / 2 and missing > 0:
            self._refused.append(
                f"{what} would take another {_gb(missing)}, more than half of the {_gb(free_bytes)} that are free in "
                f"{self._folder}: free some, or name another folder by --pixels-dir"
            )
            return False
        return True

    def _line(self, what: str, n_bytes: int, share: float, path: Path) -> str:
        there = "all there already" if share >= 1 else f"{int(100 * share)}% there already"
        others = f" ({'; '.join(self._refused)})" if self._refused else ""
        return f"{what}, {_gb(n_bytes)} in {path}, {there}{others}; --pixels jpeg takes no disk"


def shown_rows(groups: Mapping[str, TeacherTargets], n_views: int) -> NDArray[np.int64]:
    """The rows of the cache that a run shows, each once, int64."""
    train = groups["train"]
    first_row, used = train.reader.first_row[train.index_N].astype(np.int64), train.used_views(n_views)
    starts = np.repeat(first_row - np.cumsum(used) + used, used)
    clean = [group.clean_rows() for name, group in groups.items() if name != "train"]
    return np.unique(np.concatenate([starts + np.arange(int(used.sum())), *clean]))


def _siblings(train: TeacherTargets, n_views: int) -> Siblings:
    """Of a row of a train image the rows that are going to be shown; of others none: they are shown clean alone."""
    reader = train.reader
    used = np.zeros(reader.n_samples, np.int64)
    used[train.index_N] = train.used_views(n_views)

    def siblings(row: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        sample = int(reader.sample_of_row[row])
        first = int(reader.first_row[sample])
        rows = np.arange(first, first + int(used[sample]))
        return rows, reader.params(rows)

    return siblings


def _folder(options: PixelOptions, reader: CacheReader) -> Path | None:
    """Where files of pixels are read and written; beside the cache they serve everybody who reads it."""
    if options.folder is not None:
        return options.folder
    first = reader.paths[0]
    beside = first.with_name(f"{first.name}.pixels")
    if beside.is_dir() or _can_write(first.parent):
        return beside
    return options.fallback


def _can_write(folder: Path) -> bool:
    """Only trying tells: on some network disks, and of some containers' users, the permissions do not say."""
    probe = folder / f".softlabel-{secrets.token_hex(8)}.tmp"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        probe.unlink()
    except OSError:
        return False
    return True


def _standing_parent(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _estimated_bytes(samples: list[Sample]) -> float:
    looked_at = samples[:: -(-len(samples) // _N_LOOKED_AT)]
    return 3 * len(samples) * sum(n_pixels(sample.path) for sample in looked_at) / len(looked_at)


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / _GB:,.2f} GB" if n_bytes >= 0.1 * _GB else f"{n_bytes / 1e6:,.1f} MB"


def _allowing(n_bytes: int) -> str:
    """The least budget of one decimal that is enough."""
    return f"{-(-n_bytes * 10 // int(_GB)) / 10:g}"
