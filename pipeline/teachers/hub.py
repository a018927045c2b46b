"""Where models come from: a folder, else the local Hugging Face cache, else the hub, with errors that say what to do.

Knows no kind of model.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from pipeline.errors import TeacherError, TeacherNotFound, first_line
from pipeline.network import check_network

DEFAULT_TEACHER = "google/medsiglip-448"
# What torch, transformers and timm raise for what is missing, not a model, damaged, or of other shapes.
LOADING_ERRORS = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, EOFError, SafetensorError,
    StrictDataclassError, pickle.UnpicklingError,
)  # fmt: skip
Model = TypeVar("Model")


def load_local_first(source: str, load: Callable[[bool], Model], expected: str) -> Model:
    """`load(True)` from files that are here, else `load(False)` from the hub; TeacherError says what is wrong.

    `expected` is what the source should have been, such as "a SigLIP or CLIP teacher".
    """
    is_folder = Path(source).is_dir()
    if not is_folder and (Path(source).is_absolute() or source.startswith((".", "~")) or source.count("/") != 1):
        raise TeacherNotFound(
            f"no such teacher folder or file: {source}; expected one, a hub name such as {DEFAULT_TEACHER}, "
            "torchvision:NAME or timm:NAME"
        )
    try:
        return load(True)
    except TeacherError:  # it is there, and wrong
        raise
    except LOADING_ERRORS as error:
        if is_folder:
            raise TeacherError(f"{source} is not {expected}: {first_line(error)}") from error
    try:
        check_network("huggingface.co")
        return load(False)
    except LOADING_ERRORS as error:
        raise TeacherNotFound(
            f"cannot load the teacher {source}: it is no folder here, and {first_line(error)}\n"
            f"If it is gated, accept its terms at https://huggingface.co/{source} and run `hf auth login`; "
            "without a network, pass a folder that holds it: --teacher DIR\n"
            "To see the whole pipeline without any download: softlabel demo"
        ) from error


def quiet_transformers() -> None:
    """No progress bars for local files, no remarks on settings that are the checkpoint's own."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
