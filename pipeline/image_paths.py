"""Which image files somebody means who names files and folders, or pipes in a list of them. Opens no image.

Folders stand for all images below them; tables and models in the place of images are told apart by name.
Run: find photos -name '*.jpg' -newer last.txt | softlabel predict student_model.pt -
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.decode import IMAGE_SUFFIXES
from data.errors import BadFile, BadOption, DataNotFound, UnreadableImage
from data.files import images_below, notice_of_others, notice_of_outputs
from data.sources.resolve import is_data_set_file, is_download, is_table
from pipeline.arguments import is_cache, is_model
from pipeline.errors import RunError

log = logging.getLogger(__name__)

_ORDER = "softlabel predict MODEL IMAGE..."


@dataclass(frozen=True)
class ImagePaths:
    """The files that are meant, in order."""

    good: list[str]
    """Named one by one, or found below a folder in path order; what is named twice stands here twice."""
    bad: list[BadFile]
    """What is named like an image below a folder and is none."""

    def __len__(self) -> int:
        return len(self.good) + len(self.bad)


def image_paths(images: Sequence[str | Path]) -> ImagePaths:
    """Every image file that is named or lies below a folder that is, as a student is asked about it.

    DataNotFound for a folder without any, and for a table in the place of images.
    """
    good, bad = list[str](), list[BadFile]()
    ignored, outputs = Counter[str](), list[str]()
    for path in map(str, images):
        _check_no_table(path)
        if not os.path.isdir(path):
            good.append(path)
            continue
        found = images_below(path)
        if failed := [file for file in found.bad if file.is_system]:
            raise UnreadableImage(failed[0].reason, failed[0].path)
        if not found.paths and not found.bad:
            raise DataNotFound(_no_images(path, found.ignored))
        good += found.paths
        bad += found.bad
        ignored += found.ignored
        outputs += found.outputs
    for notice in (notice_of_others(ignored), notice_of_outputs(outputs)):
        if notice:
            log.info("notice   %s", notice)
    if not images:
        log.info("notice   the list names no image")
    return ImagePaths(good, bad)


def listed_paths(text: bytes, *, null: bool = False) -> list[str]:
    """The paths of a list: a line each, LF or CRLF, blank ones skipped; with `null` up to NUL each (`find -print0`)."""
    text = text.removeprefix(b"\xef\xbb\xbf")
    if null:
        return [os.fsdecode(path) for path in text.split(b"\0") if path]
    if b"\0" in text:
        raise BadOption(
            "the list of paths on standard input has NUL characters: pass --null if it is that of `find -print0`, "
            "else save it as UTF-8"
        )
    lines = (line.removesuffix(b"\r") for line in text.split(b"\n"))
    return [os.fsdecode(line) for line in lines if line.strip()]


def check_model_and_images(model: str | Path, images: Sequence[str | Path]) -> None:
    """RunError or DataNotFound where MODEL or an IMAGE is something else that has its place on the command line."""
    if is_cache(model):
        raise RunError(f"{model} is a cache, no student: name a run folder or an exported file")
    if _is_described(str(model)):
        raise RunError(f"{model} is no student: name a run folder or an exported file, then images: `{_ORDER}`")
    is_image = Path(model).suffix.lower() in IMAGE_SUFFIXES and Path(model).is_file()
    is_no_student = is_image or (Path(model).is_dir() and not is_model(model))
    others = [path for path in images if _is_student(path)]
    if is_no_student and others:
        raise RunError(f"{model} is no student, and {others[0]} is one: the order is `{_ORDER}`")
    if is_image:
        raise RunError(f"{model} is an image, no student: the order is `{_ORDER}`")
    if others:
        raise DataNotFound(f"{others[0]} is a student, no image: predict takes one MODEL, then image files and folders")


def _is_student(path: str | Path) -> bool:
    """Whether it is a run folder, or named like an exported file."""
    return is_model(path) if os.path.isdir(path) else Path(path).suffix.lower() in (".pt", ".pt2", ".onnx")


def _check_no_table(path: str) -> None:
    if not _is_described(path) and not (path.lower().endswith((".h5", ".hdf5")) and is_cache(path)):
        return
    what = "a cache" if is_cache(path) else "a data set" if is_download(path) else "a table"
    remedy = (
        "name the images' folder" if is_cache(path) else f"`softlabel evaluate MODEL {path}` measures on its images"
    )
    raise DataNotFound(f"{path} is {what}: predict takes image files and folders, or - for a list of them; {remedy}")


def _is_described(path: str) -> bool:
    return is_table(path) or is_data_set_file(path) or is_download(path)


def _no_images(folder: str, ignored: Counter[str]) -> str:
    tables = sorted(entry.path for entry in os.scandir(folder) if _is_described(entry.path))
    others = notice_of_others(ignored)
    said = f"no images below {folder}" + (f" ({others})" if others else "")
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    if tables:
        return f"{said}; there is {tables[0]}: `softlabel evaluate MODEL {tables[0]}` takes tables, predict image files"
    return f"{said}; expected files that end in {suffixes}"
