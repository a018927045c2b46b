"""The run folder of a training: what stands in it, written so that a kill leaves the old or the new, never half.

`last.pt` alone is the truth; `best.pt`, `metrics.csv`, `config.json` and `classes.json` follow from it. Both .pt
files hold tensors and plain values only (`torch.load(..., weights_only=True)`).
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import pickle
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cache import durable
from pipeline.card import StudentCard
from pipeline.errors import RunError, first_line

METRIC_COLUMNS = (
    "epoch", "lr", "temperature", "loss", "loss_hard", "loss_soft", "train_accuracy", "train_agreement",
    "val_accuracy", "val_balanced_accuracy", "val_macro_f1", "val_loss", "val_agreement", "val_kl",
    "images_per_s", "wall_s", "cpu_s",
)  # fmt: skip
"""Of a run with several tasks those of losses and scores are means over the tasks, and `task/column` follow."""
CHECKPOINT_FORMAT = 2
"""Of last.pt."""
_BEST_FORMAT = 1
_IN_BEST = ("ids", "learned_keys", "architecture")
_BEST_KINDS: dict[str, type] = {"model": dict, "card": str, "ids": dict}
_LAST_KINDS: dict[str, type] = {
    "model": dict, "ema": dict, "optimizer": dict, "config": dict, "best": dict, "metrics": list, "ids": dict,
    "epoch": int,
}  # fmt: skip
_FIELDS: tuple[tuple[str, str, type], ...] = (
    ("ids", "recipe_id", str), ("config", "epochs", int), ("best", "epoch", int),
)  # fmt: skip
_ANEW = "train this run anew"


class Best(NamedTuple):
    """What `best.pt` holds."""

    weights: dict[str, torch.Tensor]
    """Of the best epoch."""
    card: StudentCard
    ids: dict[str, str]
    """Of the cache that it learned from, and of what it is made by."""
    architecture: torch.Tensor | None
    """TorchScript of a user's own model, which nothing else says; see `pipeline.students.architecture`."""


class RunFolder:
    """The files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.last, self.best = self.path / "last.pt", self.path / "best.pt"
        self._lock = self.path / "lock"

    def exists(self) -> bool:
        """True where there is anything that a new run would mix with; what a killed start left is nothing."""
        if not self.path.is_dir():
            return self.path.exists()
        return any(path != self._lock and path.suffix != durable.TEMP_SUFFIX for path in self.path.iterdir())

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, this process alone writes the run; CacheBusy where another one does.

        What a killed process left half-written is removed.
        """
        lock = durable.Lock.acquire(self._lock)
        try:
            for unfinished in self.path.glob(f"*{durable.TEMP_SUFFIX}"):
                durable.remove(unfinished)
            yield
        finally:
            durable.remove(self._lock)
            lock.release()
            if not any(self.path.iterdir()):  # not even the first state could be written
                self.path.rmdir()

    def save(self, checkpoint: dict[str, Any], card: StudentCard) -> None:
        """Write `last.pt`, then everything that follows from it; inside `held`."""
        with durable.disk_errors(self.last, 4096):
            self.path.mkdir(parents=True, exist_ok=True)
        _write(self.last, checkpoint)
        self.follow(checkpoint, card)

    def follow(self, checkpoint: dict[str, Any], card: StudentCard) -> None:
        """Bring the other files up to date with a checkpoint: done after each save and, for a killed one, at resume."""
        best_epoch = checkpoint["best"]["epoch"]
        if best_epoch and (best_epoch == checkpoint["epoch"] or not self.best.exists()):
            best = {"format": _BEST_FORMAT, "model": checkpoint["best_model"], "card": card.to_json()}
            best |= {name: checkpoint[name] for name in _IN_BEST if name in checkpoint}
            _write(self.best, {**best, "epoch": best_epoch})
        table = io.StringIO()
        rows = checkpoint["metrics"]
        of_tasks = [name for name in (rows[0] if rows else ()) if name not in METRIC_COLUMNS]
        writer = csv.DictWriter(table, [*METRIC_COLUMNS, *of_tasks], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        durable.write_atomic(self.path / "metrics.csv", table.getvalue().encode())
        durable.write_atomic(self.path / "config.json", _json(checkpoint["config"]))
        durable.write_atomic(self.path / "classes.json", _json(_class_names(card)))

    def load_last(self) -> dict[str, Any]:
        """The checkpoint to go on from; RunError where there is none."""
        if not self.last.is_file():
            if any((run / "last.pt").exists() for run in seed_runs(self.path)):
                raise RunError(f"{self.path} holds the runs of several seeds: pass --seeds as well")
            raise RunError(f"{self.path} holds no interrupted run: start one without --resume")
        last = _read(self.last)
        if last["format"] != CHECKPOINT_FORMAT:
            raise RunError(f"{self.path} was begun by an older version of softlabel: go on with that, or start anew")
        return last

    def load_best(self) -> Best:
        """The best student; RunError where no epoch has ended."""
        if not self.best.is_file():
            if seeds := seed_runs(self.path):
                raise RunError(f"{self.path} holds {len(seeds)} runs: name one of them, such as {seeds[0]}")
            if self.last.is_file():
                raise RunError(f"no epoch of {self.path} has ended yet: {self._go_on()} writes {self.best.name}")
            raise RunError(
                f"{self.path} is not a run folder: expected one that `softlabel train ... -o RUN` wrote, "
                f"with {self.best.name} in it"
            )
        best = self._read_best()
        card = StudentCard.from_json(best["card"])
        return Best(best["model"], card, best["ids"], best.get("architecture"))

    def check_finished(self) -> None:
        """RunError where the run was interrupted; a run of which only the best student was handed on is finished."""
        if not self.last.is_file():
            return
        last = _read(self.last)
        if not is_finished(last):
            raise RunError(
                f"{self.path} stopped after epoch {last['epoch']} of {last['config']['epochs']}: go on with it by "
                f"{self._go_on()}"
            )

    def learned_keys(self) -> frozenset[bytes] | None:
        """Content keys of the images that the best student learned from; None of runs that did not write them."""
        keys = self._read_best().get("learned_keys")
        return None if keys is None else frozenset(row.tobytes() for row in keys.numpy())

    def cache_paths(self) -> tuple[Path, ...]:
        """Where the cache of this run was when it was trained, or each of several; none where nobody knows."""
        try:
            config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
            named = config["cache"]
            return tuple(Path(path) for path in (named if isinstance(named, list) else [named]))
        except (OSError, ValueError, KeyError, TypeError):
            return ()

    def _read_best(self) -> dict[str, Any]:
        rebuilt = f"delete it, and {self._go_on()} writes it again" if self.last.is_file() else ""
        return _read(self.best, rebuilt)

    def _go_on(self) -> str:
        return f"`softlabel train DATA CACHE -o {shlex.quote(str(self.path))} --resume`"


def seed_runs(folder: str | Path) -> list[Path]:
    """The runs of a folder that `train --seeds` made, by seed; empty for anything else."""
    if (Path(folder) / "best.pt").exists():
        return []
    named = [(path.name.removeprefix("seed-"), path) for path in Path(folder).glob("seed-*") if path.is_dir()]
    return [path for number, path in sorted((int(seed), path) for seed, path in named if seed.isdecimal())]


def is_finished(checkpoint: dict[str, Any]) -> bool:
    """Whether a run is at its last epoch, or stopped early by its own rule."""
    return bool(checkpoint["epoch"] >= checkpoint["config"]["epochs"] or checkpoint.get("stopped_early", False))


def _class_names(card: StudentCard) -> Any:
    """A list; of several tasks a list for each."""
    lists = {task: list(names) for task, names in card.tasks.items()}
    return lists if len(lists) > 1 else lists[card.every_task.only]


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    durable.write_atomic(path, buffer.getvalue())


def _read(path: Path, remedy: str = "") -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError,
    ) as error:  # fmt: skip
        # torch's own words on pickles advise to load it in a way that would run a stranger's code.
        is_pickle = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors and plain values, or less" if is_pickle else first_line(error)
        raise RunError(f"{path} is damaged ({reason}); {remedy or _ANEW}") from error
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(content, dict) or type(version) is not int or version not in (_BEST_FORMAT, CHECKPOINT_FORMAT):
        raise RunError(f"{path} is not a checkpoint of format {CHECKPOINT_FORMAT}")
    if "model" not in content:  # a fit has files of the same names
        raise RunError(f"{path} is no student's: expected one that `softlabel train` wrote, not `teacher fit`")
    kinds = _LAST_KINDS if "config" in content else _BEST_KINDS
    wrong = [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]
    wrong = wrong or [name for name, field, kind in _FIELDS if name in kinds and not _has(content[name], field, kind)]
    if wrong:
        raise RunError(f"{path} is damaged ({wrong[0]} is not what `softlabel train` writes); {remedy or _ANEW}")
    return content


def _has(values: dict[str, Any], field: str, kind: type) -> bool:
    return all(isinstance(name, str) for name in values) and isinstance(values.get(field), kind)
