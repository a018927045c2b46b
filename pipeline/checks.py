"""What is compared and recorded before the teacher's long run: its pixels, and its first batch in float32.

Never changes a row.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cache import Manifest, SegmentedWriter
from data.errors import BadImage
from data.reading import read_sample
from data.views import CLEAN_ROW, render
from pipeline.errors import TeacherError
from pipeline.teachers.preprocessing import pixel_difference
from pipeline.teachers.teacher import Teacher
from pipeline.wanted import Wanted

log = logging.getLogger(__name__)


def record(writer: SegmentedWriter, **fields: Any) -> None:
    """Let the provenance of the segments from now on say so."""
    writer.manifest = Manifest(writer.manifest.identity, {**writer.manifest.provenance, **fields})


def tell_pixel_difference(
    writer: SegmentedWriter, teacher: Teacher, wanted: Wanted, geometry: str, n_images: int = 4
) -> None:
    """Measure and record how far the clean views are from the pixels of the checkpoint's own processor."""
    if teacher.image_processor is None or not wanted:
        return
    try:
        images = [read_sample(sample) for sample, _ in wanted[:n_images]]
    except BadImage:
        return  # gone since it was checked: the build itself lists all of them
    views = [render(image, CLEAN_ROW, teacher.size_px, geometry) for image in images]
    try:
        found = pixel_difference(teacher, images, views)
    except TeacherError as error:
        log.info("pixels  not compared with those of the checkpoint's own processor: %s", error)
        return
    log.info(
        "pixels  on average %.1f of 255 levels from those of the checkpoint's own processor, at most %.0f (%d images)",
        found.mean_levels, found.worst_levels, found.n_images,
    )  # fmt: skip
    record(writer, pixels_against_processor=asdict(found))


class FirstBatch:
    """Compares the first batch with float32, once, before the long run; says and records what it found."""

    def __init__(self, writer: SegmentedWriter, teacher: Teacher, *, speaks: bool = True) -> None:
        self._writer, self._teacher, self._speaks = writer, teacher, speaks
        self._is_checked = teacher.precision == "fp32"

    def check(self, pixels: Tensor, embedding: NDArray[np.float32]) -> None:
        """Do nothing but the first time."""
        if self._is_checked:
            return
        self._is_checked = True
        found = self._teacher.compare_with_fp32(pixels, embedding)
        precision = self._teacher.precision
        if self._speaks:
            log.info(
                "%s    against fp32, %d views: largest difference of a logit %.2g, the same class for %.0f %%",
                precision, found.n_rows, found.worst_logit, 100 * found.argmax_agreement,
            )  # fmt: skip
        if self._speaks and found.argmax_agreement < 0.9:
            log.warning("%s changes the teacher's answers: Ctrl-C, and try --precision fp32", precision)
        record(self._writer, first_batch_against_fp32=asdict(found))
