"""All that can be found out about a data set by looking into its images once: facts, bad files, near-duplicates.

Judges nothing and prints nothing (`pipeline.data_check` does). Run: softlabel data check DATA
N images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.checks import checked
from data.errors import BadFile
from data.near_duplicates import PICTURE_PX, NearDuplicateConfig, gray_picture, near_duplicates
from data.options import ScanOptions
from data.samples import Sample
from data.scan import Survey, survey
from data.sources.resolve import described


@dataclass
class ImageFormats:
    """What the files say of the images in them, counted."""

    formats: Counter[str] = field(default_factory=Counter)
    """By content, as Pillow calls them."""
    modes: Counter[str] = field(default_factory=Counter)
    """As Pillow calls them: RGB, L, P, CMYK, I;16, ..."""
    sizes_px: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(width, height), upright."""
    n_turned: int = 0
    """Those that EXIF mirrors or turns."""
    several_frames: list[str] = field(default_factory=list)
    """Names of those with several frames or pages, of which the first is used."""

    def quantile_px(self, share: float) -> tuple[int, int]:
        """(width, height) of the image than which this share has fewer pixels."""
        by_area = sorted(self.sizes_px, key=lambda size: (size[0] * size[1], size))
        total = np.cumsum([self.sizes_px[size] for size in by_area])
        return by_area[int(np.searchsorted(total, share * (total[-1] - 1), side="right"))]


@dataclass(frozen=True)
class LookAlike:
    """Two images that look alike though their bytes differ."""

    one: Sample
    other: Sample
    hamming: int
    """Bits of their perceptual hashes that differ, of 64."""
    correlation: float
    is_turned: bool
    """Whether one of them is mirrored or turned by a multiple of 90 degrees."""


@dataclass(frozen=True)
class LookAlikes:
    """All of them that matter, the most alike first."""

    config: NearDuplicateConfig
    across_splits: tuple[LookAlike, ...]
    across_labels: tuple[LookAlike, ...]
    """In one split, with two classes of one task."""
    n_flat: int
    """Images of one colour, which were not compared."""


@dataclass(frozen=True)
class Inspection:
    """A data set and its images."""

    survey: Survey
    options: ScanOptions
    """Those of the command line and of a data set file."""
    bad: tuple[BadFile, ...]
    """Files that are missing or empty, and those that are no whole image; in path order."""
    formats: ImageFormats
    look_alikes: LookAlikes | None
    """None where nobody asked."""

    @property
    def n_files(self) -> int:
        """Images and bad files, but not those that repeat another one."""
        return len(self.survey.samples) + len(self.survey.bad)


def inspect(
    root: str | Path, options: ScanOptions = ScanOptions(), near: NearDuplicateConfig | None = None
) -> Inspection:
    """Survey DATA, then decode each image once, on all cores; with `near` also look for near-duplicates.

    Raises what `survey` does: where no samples can be made of DATA.
    """
    found = survey(root, options)
    samples = found.samples
    bad, formats = list(found.bad), ImageFormats()
    pictures_NHW = np.zeros((len(samples) if near else 0, PICTURE_PX, PICTURE_PX), np.uint8)
    decoded = tqdm(
        checked(samples, gray_picture if near else None),
        total=len(samples), desc="check images", unit="image", disable=None, leave=False,
    )  # fmt: skip
    for at, image in enumerate(decoded):
        if image.bad is not None:
            bad.append(image.bad)
        if image.facts is not None:
            formats.formats[image.facts.format] += 1
            formats.modes[image.facts.mode] += 1
            formats.sizes_px[image.facts.width_px, image.facts.height_px] += 1
            formats.n_turned += image.facts.orientation > 1
            formats.several_frames += [image.sample.name] * (image.n_frames > 1)
        if image.picture is not None:
            pictures_NHW[at] = image.picture
    return Inspection(
        found, described(root, options).options, tuple(sorted(bad, key=lambda file: file.path)), formats,
        _look_alikes(samples, pictures_NHW, {file.path for file in bad}, near) if near else None,
    )  # fmt: skip


def _look_alikes(
    samples: Sequence[Sample], pictures_NHW: NDArray[np.uint8], bad: set[str], config: NearDuplicateConfig
) -> LookAlikes:
    good = np.array([at for at, sample in enumerate(samples) if sample.path not in bad], np.int64)
    places = [(samples[at].split, *sorted(samples[at].labels.items())) for at in good]
    number_of = {place: number for number, place in enumerate(sorted(set(places)))}
    progress = tqdm(total=len(good), desc="compare images", unit="image", disable=None, leave=False, delay=1)
    with progress:
        found = near_duplicates(
            pictures_NHW[good], np.array([number_of[place] for place in places], np.int64), config, progress.update
        )
    across_splits, across_labels = list[LookAlike](), list[LookAlike]()
    columns = (found.one_P, found.other_P, found.hamming_P, found.correlation_P, found.is_turned_P)
    for one, other, hamming, correlation, is_turned in zip(*(column.tolist() for column in columns), strict=True):
        pair = LookAlike(samples[good[one]], samples[good[other]], hamming, correlation, is_turned)
        if pair.one.key == pair.other.key:
            continue  # the same bytes: that is a conflict of the survey
        if pair.one.split != pair.other.split:
            across_splits.append(pair)
        elif _contradict(pair.one.labels, pair.other.labels):
            across_labels.append(pair)
    return LookAlikes(config, tuple(across_splits), tuple(across_labels), found.n_flat)


def _contradict(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return any(other.get(task, label) != label for task, label in one.items())
