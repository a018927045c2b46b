"""torch.export: the exported file of torch's newer format, `.pt2`, card inside.

The batch is free, the side of the images is the student's. Weights are float32.
"""

from __future__ import annotations

import copy
import io
import logging
import pickle
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from pipeline.card import CARD_NAME, StudentCard
from pipeline.errors import RunError, SettingError, first_line
from pipeline.formats.names import check_whole
from pipeline.formats.plain_archive import plain_archive, tensors_only

_ERRORS = (
    RuntimeError, ValueError, TypeError, LookupError, OSError, AttributeError, AssertionError, RecursionError,
    zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, NotImplementedError,
)  # fmt: skip
_OF_THE_SOURCE = {"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"}
"""What torch.export notes of each operation for whoever debugs it, with the paths of this machine."""


def to_bytes(module: Any, card: StudentCard) -> bytes:
    """The exported file of a student in evaluation mode; SettingError where torch.export does not take it."""
    if isinstance(module, torch.jit.ScriptModule):
        raise SettingError(
            f"{card.student} is a student of your own, of which the run has a TorchScript program alone, and these "
            "torch.export does not read: take --format torchscript or onnx"
        )
    noise = torch.zeros(2, 3, card.size_px, card.size_px)
    module = copy.deepcopy(module).eval().to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own parts that it will replace
        try:
            program = torch.export.export(module, (noise,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise SettingError(
                f"{card.student} cannot be written by torch.export ({first_line(error)}): take --format torchscript"
            ) from error
        program.example_inputs = None  # else the noise would be stored, too
        for node in program.graph.nodes:
            for name in _OF_THE_SOURCE & node.meta.keys():
                del node.meta[name]
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={CARD_NAME: card.to_json()})
    return buffer.getvalue()


def load(path: Path, device: str = "cpu") -> tuple[Any, StudentCard]:
    """(module, card) of an exported file; RunError where it is none."""
    extra = {CARD_NAME: ""}
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it logs what it then raises
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with tensors_only():
                program = torch.export.load(plain_archive(path), extra_files=extra)
        except _ERRORS as error:
            if zipfile.is_zipfile(path):
                check_whole(path)
            raise RunError(f"{path} is not a torch.export file: {first_line(error)}") from error
        finally:
            logger.setLevel(level)
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
    if not extra[CARD_NAME]:
        raise RunError(f"{path} has no {CARD_NAME} inside: it was not made by `softlabel export`")
    return program.module(), StudentCard.from_json(extra[CARD_NAME])
