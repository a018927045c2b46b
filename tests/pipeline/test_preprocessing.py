"""What a checkpoint's own image processor says is tried, and one that cannot be compared ends no build."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cache import CacheReader
from data.samples import FOLDER_TASK
from data.scan import scan_data
from pipeline.build import BuildConfig, build_cache
from pipeline.errors import TeacherError
from pipeline.teachers.preprocessing import read_preprocessing

from . import other_teachers as make

SQUARE = {"height": 32, "width": 32}


def test_what_ordinary_processors_say_is_what_they_do() -> None:
    clip = transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE)
    assert read_preprocessing(clip) == (32, tuple(clip.image_mean), tuple(clip.image_std))
    vit = transformers.ViTImageProcessor(size=SQUARE, image_mean=0.5, image_std=[0.25] * 3)
    assert read_preprocessing(vit) == (32, (0.5,) * 3, (0.25,) * 3)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "one that normalises twice": ("EfficientNetImageProcessor", {"size": SQUARE}, "does more than to divide"),
    "one that gives blue first": ("PPLCNetImageProcessor", {"size": SQUARE}, "does more than to divide"),
    "one that resizes what it cropped": (
        "PerceiverImageProcessor", {"size": {"height": 24, "width": 24}, "crop_size": SQUARE}, "says 32 x 32 .* makes",
    ),
    "one of another kind": ("ImageGPTImageProcessor", {"size": SQUARE}, "cannot take 32 x 32 pixels"),
    "one without a size": ("Siglip2ImageProcessor", {}, "does not say its size"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_processor_whose_pixels_are_not_what_it_says_is_refused(case: str) -> None:
    name, options, message = REFUSED[case]
    with pytest.raises(TeacherError, match=f"the teacher's {name} {message}"):
        read_preprocessing(getattr(transformers, name)(**options))


def save_resnet(folder: Path, classes: tuple[str, ...], **size: int) -> Path:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
        id2label=dict(enumerate(classes)), label2id={name: i for i, name in enumerate(classes)},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size=size or SQUARE).save_pretrained(folder)
    return folder


def test_a_size_of_the_users_own_ends_no_build(
    few_images: Path, tiny_build: BuildConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_resnet(tmp_path / "hf", scan_data(few_images).classes[FOLDER_TASK])
    described = make.write_description(tmp_path / "teacher.yaml", size_px=40)
    config = dataclasses.replace(tiny_build, teacher=str(folder), teacher_config=described, views=1, batch_size=16)
    with caplog.at_level(logging.INFO):
        reader = CacheReader(build_cache(few_images, tmp_path / "t.h5", config).path)
    assert "not compared with those of the checkpoint's own processor: " in caplog.text
    assert "pixels_against_processor" not in reader.manifest.provenance
    with caplog.at_level(logging.INFO):
        reader = CacheReader(
            build_cache(few_images, tmp_path / "u.h5", dataclasses.replace(config, teacher_config=None)).path
        )
    assert reader.manifest.provenance["pixels_against_processor"]["n_images"] == 4
