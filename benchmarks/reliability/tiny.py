"""Make everything small that a campaign builds with: the teacher, and the segments of a cache on its way."""

from pathlib import Path
from typing import Any

import torch

from cache import SegmentedWriter
from data.samples import FOLDER_TASK, scan_folder
from pipeline.teachers.prompts import default_prompts
from pipeline.teachers.small import SmallSiglip, new_siglip

SEGMENT_ROWS = 16


def write_teacher(folder: Path, images: Path, width: int = 32) -> Path:
    """A SigLIP model of a few thousand weights for these images."""
    prompts = default_prompts(scan_folder(images).classes[FOLDER_TASK])
    texts = [text for class_texts in prompts.values() for text in class_texts]
    model = new_siglip(SmallSiglip(size_px=32, patch_px=8, width=width, layers=2, heads=2), texts, folder)
    with torch.no_grad():  # a fresh model's answers are nearly constant, and wrong rows must not look right
        model.vision_model.head.probe.normal_(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    return folder


def shrink_segments() -> None:
    """From now on, in this process and those forked from it."""
    defaults: dict[str, Any] = SegmentedWriter.__init__.__kwdefaults__ or {}
    assert "segment_rows" in defaults
    defaults["segment_rows"] = SEGMENT_ROWS
