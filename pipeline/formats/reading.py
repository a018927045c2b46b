"""An exported file of any format, read into this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.card import StudentCard
from pipeline.formats import torchscript
from pipeline.formats.names import format_of


def load(path: Path, device: str = "cpu") -> tuple[Any, StudentCard, str]:
    """(module: normalised float32 [B, 3, S, S] -> logits [B, K], card, device it runs on); RunError where it cannot."""
    format_name = format_of(path)
    if format_name == "onnx":
        from pipeline.formats import onnx_file

        return (*onnx_file.load(path), "cpu")
    if format_name == "torch-export":
        from pipeline.formats import torch_export

        return (*torch_export.load(path, device), device)
    return (*torchscript.load(path, device), device)
