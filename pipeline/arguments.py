"""Whether the words of a command stand in their places: DATA, a cache and a model are easily exchanged.

Looks at names and first bytes, and opens none of them. Run: softlabel evaluate RUN DATA
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cache.errors import CacheMismatch
from data.errors import DataNotFound
from data.sources.resolve import is_data_set_file, is_table
from pipeline.errors import RunError
from pipeline.runs import seed_runs


def check_model_and_data(model: str | Path, data: str | Path, verb: str = "evaluate") -> None:
    """RunError or DataNotFound where MODEL or DATA is something else that has its place on the command line."""
    if is_cache(model):
        raise RunError(f"{model} is a cache, no student: name a run folder or an exported file; the cache is --cache's")
    if is_cache(data):
        raise DataNotFound(f"{data} is a cache, no folder of images: the order is MODEL DATA, the cache is --cache's")
    is_no_student = _is_described(model) or (Path(model).is_dir() and not is_model(model))
    if is_no_student and is_model(data):
        raise RunError(f"{model} is no student, and {data} is one: the order is `softlabel {verb} MODEL DATA`")
    if _is_described(model):
        raise RunError(f"{model} is no student: name a run folder or an exported file before DATA")


def check_data_and_cache(data: str | Path, caches: Sequence[str | Path], order: str) -> None:
    """DataNotFound or CacheMismatch where one stands in the place of another; `order` is the right one."""
    if is_cache(data):
        raise DataNotFound(f"{data} is a cache: the order is `softlabel {order}`")
    for cache in caches:
        if _is_described(cache):
            raise CacheMismatch(f"{cache} is no cache but describes a data set: the order is `softlabel {order}`")
        if Path(cache).is_dir() and Path(caches[0]).is_file():
            raise CacheMismatch(f"{cache} is a folder, no cache: name the .h5 file itself")
        if len(caches) > 1 and Path(cache).is_dir():
            raise CacheMismatch(f"{cache} is a folder, no cache: the order is `softlabel {order}`")


def is_cache(path: str | Path) -> bool:
    """Whether it is an HDF5 file, by its first bytes."""
    try:
        with Path(path).open("rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return False


def _is_described(path: str | Path) -> bool:
    return is_table(path) or is_data_set_file(path)


def is_model(path: str | Path) -> bool:
    """Whether it is a run folder, a folder of several, or a file that may be an exported one."""
    folder = Path(path)
    if _is_described(path):
        return False
    return folder.is_file() or any((folder / name).exists() for name in ("best.pt", "last.pt")) or bool(seed_runs(path))
