"""What stands in the files of caches, runs and disks, to be compared with what should."""

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from cache import CacheReader
from cache.workspace import Workspace
from pipeline.runs import METRIC_COLUMNS

Pair = tuple[bytes, int]
TIMES = ("images_per_s", "wall_s", "cpu_s")


def digest_of(path: Path) -> str:
    """Sha256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def finals(out: Path) -> list[Path]:
    """Every file that stands under a final name; looks without the lock, so anything may go meanwhile."""
    segments: list[Path] = []
    with suppress(FileNotFoundError):  # of the folder itself
        segments = Workspace(out).segments()
    return [path for path in (out, *segments) if path.exists()]


def identity_of(path: Path) -> tuple[str, int] | None:
    """Tells one file from the next one of its name; None if there is none."""
    try:
        return path.name, path.stat().st_ino
    except FileNotFoundError:
        return None


def digests(out: Path) -> dict[str, str]:
    """File name -> sha256 of the bytes, of what stands under final names."""
    return {path.name: digest_of(path) for path in finals(out)}


def rows_of(path: Path) -> dict[Pair, bytes]:
    """(key, view) -> all bytes of the row."""
    with CacheReader(path) as reader:
        every = slice(0, reader.n_rows)
        arrays = [reader.params(every), reader.witness(every)]
        arrays += [reader.logits(every, task) for task in reader.tasks]
        arrays += [reader.feature(every, name) for name in reader.features]
        table = np.concatenate([array.reshape(reader.n_rows, -1).view(np.uint8) for array in arrays], axis=1)
        owners = [bytes(reader.keys[sample]) for sample in reader.sample_of_row]
        views = reader.view.tolist()
    return {(key, view): row.tobytes() for key, view, row in zip(owners, views, table, strict=True)}


def content_of_cache(path: Path) -> str:
    """Every bit of every row."""
    with CacheReader(path) as reader:
        reader.verify()
        return reader.content_id


def content_of_run(path: Path) -> tuple[list[str], str]:
    """The rows of metrics.csv without times, and a hash of all weights."""
    columns = [number for number, name in enumerate(METRIC_COLUMNS) if name not in TIMES]
    lines = [line.split(",") for line in (path / "metrics.csv").read_text("utf-8").splitlines()]
    digest = hashlib.sha256()
    for name, part in (("last.pt", "model"), ("last.pt", "ema"), ("best.pt", "model")):
        weights = torch.load(path / name, weights_only=True)[part]
        for tensor in weights.values():
            digest.update(tensor.numpy().tobytes())
    return [",".join(line[number] for number in columns) for line in lines], digest.hexdigest()
