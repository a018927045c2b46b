"""The formats of an exported file, and which one a file has. Loads nothing."""

from __future__ import annotations

import contextlib
import shlex
import zipfile
import zlib
from pathlib import Path

from pipeline.card import CARD_NAME
from pipeline.errors import RunError, first_line

FORMATS = ("torchscript", "onnx", "torch-export")
NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""The variable that keeps ONNX Runtime from writing and sending who runs what."""
SUFFIXES = {"torchscript": ".pt", "onnx": ".onnx", "torch-export": ".pt2"}


def format_of(path: Path) -> str:
    """One of FORMATS, by what the file begins with and holds; RunError for a file that has none of them."""
    if not path.is_file():
        raise RunError(f"no such model file: {path}; make one with `softlabel export RUN -o {shlex.quote(str(path))}`")
    if zipfile.is_zipfile(path):
        try:
            names = _members(path)
        except zipfile.BadZipFile as error:
            raise RunError(
                f"{path} is damaged ({first_line(error)}): write it anew with `softlabel export RUN -o FILE`"
            ) from error
        if "data.pkl" in names and not names & {"constants.pkl", "archive_format"}:
            raise RunError(f"{path} is a checkpoint, no exported model: name its run folder, or export that")
        return "torch-export" if "archive_format" in names else "torchscript"
    if path.suffix == SUFFIXES["onnx"]:
        return "onnx"
    raise RunError(
        f"{path} is not an exported model, or not all of one: fetch it again, or make one with "
        "`softlabel export RUN -o student_model.pt`"
    )


def is_export(path: Path) -> bool:
    """Whether a file was made by `softlabel export`, going by its card; anything else that stands there is not."""
    if not path.is_file():
        return False
    if zipfile.is_zipfile(path):
        with contextlib.suppress(zipfile.BadZipFile):
            return f"extra/{CARD_NAME}" in _members(path)
    return path.suffix == SUFFIXES["onnx"] and CARD_NAME.encode() in path.read_bytes()


def check_whole(path: Path) -> None:
    """RunError where the bytes of an archive's members are not those that were written, by its CRC-32 of each."""
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        changed = first_line(error)
    if changed is not None:
        raise RunError(f"{path} is damaged ({changed}): fetch it again, or export it anew")


def _members(path: Path) -> set[str]:
    """Their names, without that of the archive, which stands before each."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2] for name in archive.namelist()}
