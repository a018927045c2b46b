"""What a checkpoint's own image processor says of its pixels: size, mean, standard deviation, and how far ours differ.

Our views are square crops of the original, resized once; a processor may pad, crop or interpolate otherwise. That
difference is measured and recorded, not imitated: the student must see the same view. S pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.errors import TeacherError
from pipeline.teachers.teacher import Teacher


@dataclass(frozen=True)
class PixelDifference:
    """Our clean views against the pixels of the checkpoint's own processor, in levels of 0..255."""

    n_images: int
    mean_levels: float
    worst_levels: float


def read_preprocessing(image_processor: Any) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """(pixels of the square's side, mean, standard deviation); TeacherError for what is no division by 255 and both."""
    height, width = _size(image_processor)
    if height != width:
        raise TeacherError(f"the teacher's processor makes {height} x {width} pixels, expected a square")
    if not (image_processor.do_rescale and image_processor.do_normalize) or not math.isclose(
        image_processor.rescale_factor, 1 / 255, rel_tol=1e-6
    ):
        raise TeacherError(
            "the teacher's processor does not divide pixels by 255 and normalise them, as every SigLIP does: found "
            f"do_rescale {image_processor.do_rescale}, rescale_factor {image_processor.rescale_factor}, "
            f"do_normalize {image_processor.do_normalize}"
        )
    mean, std = ([float(v) for v in values] for values in (image_processor.image_mean, image_processor.image_std))
    return height, tuple(mean), tuple(std)


def _size(image_processor: Any) -> tuple[int, int]:
    crops = getattr(image_processor, "do_center_crop", False) and getattr(image_processor, "crop_size", None)
    size = dict(image_processor.crop_size if crops else image_processor.size)
    if size.get("height") and size.get("width"):
        return int(size["height"]), int(size["width"])
    if size.get("shortest_edge"):
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    raise TeacherError(f"the teacher's processor resizes to {size}; expected height and width, or the shortest edge")


def pixel_difference(teacher: Teacher, images: Sequence[Tensor], clean_views: Sequence[Tensor]) -> PixelDifference:
    """Images uint8 [3, H, W] and their clean views uint8 [3, S, S] as the teacher gets them; at least one of each."""
    scale = np.array(teacher.std).reshape(3, 1, 1) * 255
    offset = np.array(teacher.mean).reshape(3, 1, 1) * 255
    away = []
    for image, view in zip(images, clean_views, strict=True):
        inputs = teacher.image_processor(images=image, return_tensors="np", input_data_format="channels_first")
        theirs = inputs["pixel_values"][0].astype(np.float64) * scale + offset
        away.append(np.abs(theirs - view.numpy()))
    return PixelDifference(len(away), float(np.mean(away)), float(np.max(away)))
