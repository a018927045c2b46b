"""INT8 arithmetic by ONNX Runtime: weights and activations of 8 bits, ranges of the activations from real images.

Faster where the processor has instructions for it (VNNI and the like), and less exact than weights stored in 8 bits
(`pipeline.formats.stored`). Static quantisation with a scale for each output channel of a layer; the smallest and the
largest activation seen are the range (onnxruntime.ai, "Quantize ONNX Models"). B batch, S pixels.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.card import StudentCard
from pipeline.formats import onnx_file


def to_bytes(module: Any, card: StudentCard, batches: Iterable[NDArray[np.float32]]) -> bytes:
    """The exported file of a student; `batches` of normalised images [B, 3, S, S] show the ranges of activations."""
    model = onnx_file.to_model(module, card)
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Shown(quantization.CalibrationDataReader):  # its base class is known only here
        """Hands the batches over as ONNX Runtime asks for them."""

        def __init__(self) -> None:
            self._batches: Iterator[NDArray[np.float32]] = iter(batches)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {onnx_file.INPUT: batch}

    logger = logging.getLogger()
    level = logger.level
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, small = (str(Path(folder, name)) for name in ("plain.onnx", "ready.onnx", "int8.onnx"))
        Path(plain).write_bytes(model.SerializeToString())
        try:
            logger.setLevel(logging.ERROR)  # it tells the root logger what it is about to do
            quant_pre_process(plain, ready)
            quantization.quantize_static(
                ready, small, Shown(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
        finally:
            logger.setLevel(level)
        return onnx_file.with_card(Path(small).read_bytes(), card)
