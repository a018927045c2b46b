"""The folder of a fit: an unfinished one holds what it goes on from, a finished one is a teacher.

Written so that a kill leaves the old or the new: `last.pt` alone is the truth of an unfinished fit, `best.pt`,
`fit_metrics.csv` and `fit_config.json` follow from it. The model file comes last of all, so that an unfinished folder
never loads as a teacher; then both .pt files, several times as large as the model, are removed.
Run: softlabel teacher fit DATA --from MODEL -o DIR
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from cache import durable
from cache.errors import CacheDiskFull
from pipeline.errors import OutputExists, RunError, TeacherError, first_line

METRIC_COLUMNS = (
    "epoch", "lr", "loss", "val_accuracy", "val_balanced_accuracy", "val_macro_f1", "images_per_s", "wall_s",
)  # fmt: skip
CHECKPOINT_FORMAT = 1
FITTED_ON = "fitted_on.json"
FITTED_ON_FORMAT = 1


class FitFolder:
    """The files of one fit."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.last, self.best = self.path / "last.pt", self.path / "best.pt"
        self.model, self.config = self.path / "model.safetensors", self.path / "fit_config.json"
        self._stage = self.path / f"teacher{durable.TEMP_SUFFIX}"

    def check_new(self) -> None:
        """OutputExists, with the remedies, where there is anything that a new fit would mix with."""
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        go_on = "go on with it by --resume, or " if self.last.exists() and not self.is_finished() else ""
        raise OutputExists(f"{self.path} is not empty: {go_on}choose another -o")

    def is_finished(self) -> bool:
        """Whether a teacher stands here."""
        return self.model.exists()

    def is_unfinished(self) -> bool:
        """Whether a fit that was interrupted stands here."""
        return self.config.exists() and not self.is_finished()

    def save(self, checkpoint: Mapping[str, Any]) -> None:
        """Write `last.pt`, then everything that follows from it."""
        with durable.disk_errors(self.last, 4096):
            self.path.mkdir(parents=True, exist_ok=True)
        _write(self.last, checkpoint)
        self.follow(checkpoint)

    def follow(self, checkpoint: Mapping[str, Any]) -> None:
        """Bring the other files up to date with a checkpoint: done after each save and, for a killed one, at resume."""
        if checkpoint["best"]["epoch"] == checkpoint["epoch"]:
            best = {name: checkpoint[name] for name in ("format", "epoch", "weights")}
            _write(self.best, best)
        table = io.StringIO()
        writer = csv.DictWriter(table, METRIC_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(checkpoint["metrics"])
        durable.write_atomic(self.path / "fit_metrics.csv", table.getvalue().encode())
        told = {name: checkpoint[name] for name in ("config", "prompts", "start", "best", "ids", "run_on")}
        durable.write_atomic(self.config, _json(told))

    def load_last(self, *, memory_map: bool = False) -> dict[str, Any]:
        """The checkpoint to go on from; RunError where there is none."""
        if not self.last.is_file():
            raise RunError(f"{self.path} holds no interrupted fit: start one without --resume")
        return _read(self.last, memory_map)

    def load_best(self) -> dict[str, Tensor]:
        """The weights of the best epoch, of what learnt."""
        weights: dict[str, Tensor] = _read(self.best, memory_map=False)["weights"]
        return weights

    def finished_config(self) -> dict[str, Any]:
        """What `fit_config.json` of a finished fit says; RunError where the teacher here was not fitted here."""
        try:
            told: dict[str, Any] = json.loads(self.config.read_text(encoding="utf-8"))
            if not isinstance(told, dict) or not {"config", "best", "start"} <= told.keys():
                raise ValueError("it tells of no fit")
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path} holds a teacher that was not fitted there: choose another -o") from error
        return told

    def publish(self, write_teacher: Callable[[Path], None], fitted_on: Iterable[bytes]) -> None:
        """Put the teacher that `write_teacher` writes into the folder, its model file last; then drop the .pt files."""
        stage = self._stage
        shutil.rmtree(stage, ignore_errors=True)  # of a kill in here
        try:
            with durable.disk_errors(self.model, 0):
                stage.mkdir()
                write_teacher(stage)
                for path in stage.iterdir():
                    shutil.copymode(self.config, path)  # safetensors makes its files for their owner only
                    with path.open("rb+") as file:
                        durable.fsync_file(file.fileno())
        except SafetensorError as error:
            raise CacheDiskFull(
                f"cannot write {self.model} ({first_line(error)}): every epoch stays in {self.last.name}; "
                "free some space, then go on"
            ) from error
        keys = {"format": FITTED_ON_FORMAT, "keys": sorted(key.hex() for key in fitted_on)}
        durable.write_atomic(self.path / FITTED_ON, _json(keys))
        with durable.disk_errors(self.model, 0):
            for path in sorted(stage.iterdir(), key=lambda path: (path.name == self.model.name, path.name)):
                durable.publish_replace(path, self.path / path.name)
            self.tidy()

    def tidy(self) -> None:
        """Remove what only an unfinished fit needs."""
        for path in (self.best, self.last):
            path.unlink(missing_ok=True)
        self.drop_leftovers()

    def drop_leftovers(self) -> None:
        """Remove what a kill left half written."""
        for file in (self.best, self.last):
            for path in self.path.glob(f"{file.name}.*{durable.TEMP_SUFFIX}"):
                path.unlink(missing_ok=True)
        shutil.rmtree(self._stage, ignore_errors=True)

    def check_room(self, learning_bytes: int, model_bytes: int) -> None:
        """CacheDiskFull where the disk has less room than the fit will take, before its first step.

        A checkpoint is the weights that learn and two moments of each; while one is replaced both stand there.
        """
        needed = max(8 * learning_bytes, 4 * learning_bytes + model_bytes)
        around = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(around).free
        if free < needed:
            raise CacheDiskFull(
                f"{self.path} will take up to {needed:,} bytes until the fit is finished, {free:,} are free: free some "
                "space, choose another -o, or let fewer layers learn by --last-layers"
            )


def fitted_on(source: str | Path) -> frozenset[bytes] | None:
    """The content keys of the images that a teacher folder says it was fitted on; None where it says nothing."""
    path = Path(source) / FITTED_ON
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        keys = frozenset(bytes.fromhex(key) for key in told["keys"])
        if told["format"] != FITTED_ON_FORMAT or any(len(key) != 16 for key in keys):
            raise ValueError(f"expected format {FITTED_ON_FORMAT} and keys of 32 hex digits")
        return keys
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TeacherError(f"{path} is damaged ({first_line(error)}): restore it") from error


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


class _Sink(io.RawIOBase):
    """A file for torch.save that keeps a disk's refusal to itself: torch's writer would end the process on it."""

    def __init__(self, file: io.FileIO) -> None:
        self._file, self.n_bytes = file, 0
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write all of it, or after an error only count."""
        rest = memoryview(content).cast("B")
        n_bytes = len(rest)
        self.n_bytes += n_bytes
        try:
            while rest and self.error is None:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
        return n_bytes

    def writable(self) -> bool:
        """True."""
        return True


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint of gigabytes without a second copy in memory: whole and on the disk, or not at all."""
    temp = durable.temp_name(path)
    try:
        with durable.disk_errors(path, 4096), open(temp, "xb", buffering=0) as file:
            sink = _Sink(file)
            torch.save(content, cast("IO[bytes]", sink))
            with durable.disk_errors(path, sink.n_bytes):
                if sink.error is not None:
                    raise sink.error
                durable.fsync_file(file.fileno())
        with durable.disk_errors(path, sink.n_bytes):
            durable.publish_replace(temp, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temp)


def _read(path: Path, memory_map: bool) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=memory_map)
    except (
        OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError,
    ) as error:  # fmt: skip
        # torch's own words on pickles advise to load it in a way that would run a stranger's code.
        is_pickle = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors and plain values, or less" if is_pickle else first_line(error)
        raise RunError(f"{path} is damaged ({reason}); fit this teacher anew") from error
    if isinstance(content, dict) and "weights" not in content and "model" in content:  # a training has the same files
        raise RunError(f"{path} is no fit's: expected one that `softlabel teacher fit` wrote, not `train`")
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise RunError(f"{path} is not a checkpoint of format {CHECKPOINT_FORMAT}")
    return content
