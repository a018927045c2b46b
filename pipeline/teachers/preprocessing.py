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
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import TeacherError, first_line
from pipeline.teachers.hub import LOADING_ERRORS
from pipeline.teachers.teacher import Teacher


@dataclass(frozen=True)
class PixelDifference:
    """Our clean views against the pixels of the checkpoint's own processor, in levels of 0..255."""

    n_images: int
    mean_levels: float
    worst_levels: float


def read_preprocessing(image_processor: Any) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """(pixels of the square's side, mean, standard deviation); TeacherError for what is no division by 255 and both.

    What the processor says is tried on a picture of one colour: some normalise twice or give blue first.
    """
    kind = type(image_processor).__name__
    try:
        size_px, mean, std = _stated(image_processor)
    except TeacherError:
        raise
    except LOADING_ERRORS as error:
        raise TeacherError(f"the teacher's {kind} does not say its size, mean and std: {first_line(error)}") from error
    colour = np.array([40, 120, 220], np.uint8).reshape(3, 1, 1)
    found = _processed(image_processor, torch.from_numpy(colour).expand(3, size_px, size_px).contiguous())
    if found.shape != (3, size_px, size_px):
        raise TeacherError(f"the teacher's {kind} says {size_px} x {size_px} pixels and makes {found.shape[1:]}")
    expected = (colour / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    if not np.allclose(found, expected, rtol=0, atol=0.02):  # a level is 1 / 255 / std, about 0.02
        raise TeacherError(
            f"the teacher's {kind} does more than to divide pixels by 255 and normalise them: it makes "
            f"{found[:, 0, 0].round(3).tolist()} of the colour {colour.ravel().tolist()}, expected "
            f"{expected.ravel().round(3).tolist()}"
        )
    return size_px, mean, std


def _stated(image_processor: Any) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
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
    mean, std = (
        tuple(float(value) for value in np.broadcast_to(values, 3))
        for values in (image_processor.image_mean, image_processor.image_std)
    )
    return height, mean, std


def _processed(image_processor: Any, image: Tensor) -> NDArray[np.float64]:
    """What the processor makes of an image, uint8 [3, H, W] -> float64 [3, h, w]; TeacherError where it cannot."""
    try:
        inputs = image_processor(images=image, return_tensors="np", input_data_format="channels_first")
        pixels = np.asarray(inputs["pixel_values"][0], np.float64)
    except (*LOADING_ERRORS, AssertionError) as error:
        height, width = image.shape[1:]
        kind = type(image_processor).__name__
        raise TeacherError(
            f"the teacher's {kind} cannot take {width} x {height} pixels: {first_line(error)}"
        ) from error
    if pixels.ndim != 3:
        raise TeacherError(f"the teacher's processor makes no square of an image, but {list(pixels.shape)} numbers")
    return pixels


def _size(image_processor: Any) -> tuple[int, int]:
    crops = getattr(image_processor, "do_center_crop", False) and getattr(image_processor, "crop_size", None)
    size = dict(image_processor.crop_size if crops else image_processor.size)
    if size.get("height") and size.get("width"):
        return int(size["height"]), int(size["width"])
    if size.get("shortest_edge"):
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    raise TeacherError(f"the teacher's processor resizes to {size}; expected height and width, or the shortest edge")


def pixel_difference(teacher: Teacher, images: Sequence[Tensor], clean_views: Sequence[Tensor]) -> PixelDifference:
    """Images uint8 [3, H, W] and their clean views uint8 [3, S, S] as the teacher gets them; at least one of each.

    TeacherError where the processor makes no such square of one of them.
    """
    scale = np.array(teacher.std).reshape(3, 1, 1) * 255
    offset = np.array(teacher.mean).reshape(3, 1, 1) * 255
    away = []
    for image, view in zip(images, clean_views, strict=True):
        theirs = _processed(teacher.image_processor, image) * scale + offset
        if theirs.shape != view.shape:
            raise TeacherError(f"the teacher's processor makes {list(theirs.shape)}, the view is {list(view.shape)}")
        away.append(np.abs(theirs - view.numpy()))
    return PixelDifference(len(away), float(np.mean(away)), float(np.max(away)))
