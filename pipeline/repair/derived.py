"""Caches whose logits were made anew from the embeddings of another one: what they say of themselves, how they begin.

Makes no logits (`pipeline.repair.probe` and `rehead` do).
R rows, N samples, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import CacheReader, Manifest
from cache.derive import derive
from cache.errors import CacheMismatch
from cache.layout import logits_dtype
from pipeline.errors import OutputExists
from pipeline.metrics import classification_metrics
from pipeline.outputs import check_output_file
from pipeline.repair.remedies import EMBEDDING, derived_by, without_embeddings
from pipeline.scores.table import imported_from
from pipeline.targets import SEEN, TeacherTargets
from pipeline.tasks import Tasks

_CHUNK_ROWS = 16_384
# What describes a head in the teacher part of an identity: a new head replaces all of it.
_OF_A_HEAD = (
    "head", "outputs", "prompts", "prompt_pooling", "prompt_tokens_sha256", "logit_scale", "logit_bias",
    "text_embeddings_sha256", "temperature", "probe", "parent_recipe_id",
)  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Old and new logits on the clean views of some images; `old` is None where the cache does not know the classes."""

    images: str
    n_images: int
    old: tuple[float, float] | None
    """Accuracy, macro F1."""
    new: tuple[float, float]

    def to_line(self) -> str:
        """One line of the table for people."""
        old = "other classes" if self.old is None else f"{self.old[0]:.3f} / {self.old[1]:.3f}"
        return f"{self.images:22} {self.n_images:>8,}  {old:>15}  {self.new[0]:.3f} / {self.new[1]:.3f}"


SCORE_TITLE = f"{'accuracy / macro F1':22} {'images':>8}  {'before':>15}  now"


def refuse_derived(reader: CacheReader) -> None:
    """CacheMismatch for a derived or imported cache: no teacher that could be loaded says again what stands in it."""
    if scores := imported_from(reader.manifest):
        raise CacheMismatch(
            f"{reader.path} was imported from {scores}: no teacher can be asked again here. Verify it without DATA and "
            "--teacher; importing the same table again compares the scores"
        )
    if head := derived_by(reader.manifest.identity):
        parent = str(reader.manifest.identity["teacher"].get("parent_recipe_id", "unknown"))[:12]
        raise CacheMismatch(
            f"{reader.path} was made by `softlabel cache {head}` from the embeddings of another cache (recipe_id "
            f"{parent}...), not by asking the teacher: verify that one with DATA and --teacher, and this one without"
        )


def check_new_file(out: str | Path) -> None:
    """OutputExists or SettingError where `out` cannot be written; asked before any work."""
    check_output_file(out)
    if Path(out).exists():
        raise OutputExists(f"{out} exists: choose another -o, or delete it")


def stored_embeddings(reader: CacheReader) -> NDArray[np.float16]:
    """The embedding of every row, float16 [R, D], once it is verified; CacheMismatch where the cache has none."""
    shape = reader.features.get(EMBEDDING)
    if shape is None:
        raise CacheMismatch(without_embeddings(reader))
    if len(shape) != 1:
        raise CacheMismatch(f"{reader.path} has embeddings of shape {shape}, expected one vector a view")
    reader.verify_objects([f"features/{EMBEDDING}"])
    return reader.feature(slice(0, reader.n_rows), EMBEDDING)


def chunks(n_rows: int) -> list[slice]:
    """Pieces of a table small enough for float64 in memory."""
    return [slice(start, start + _CHUNK_ROWS) for start in range(0, n_rows, _CHUNK_ROWS)]


def new_logits(n_rows: int, n_classes: int) -> NDArray[np.floating]:
    """An empty table of logits [R, C], as the file stores them."""
    return np.empty((n_rows, n_classes), logits_dtype(n_classes))


def derived_manifest(parent: Manifest, tasks: Tasks, head: Mapping[str, Any], facts: Mapping[str, Any]) -> Manifest:
    """The parent's with another head and other tasks; `facts` go into the provenance, beside what still holds.

    Tower, preprocessing, precision, views and decoder are the embeddings' own and stay. A teacher that its producer
    described in words of its own is kept as `tower`.
    """
    stored = parent.identity.get("teacher")
    tower = {k: v for k, v in stored.items() if k not in _OF_A_HEAD} if isinstance(stored, dict) else {"tower": stored}
    identity = {
        **parent.identity,
        "tasks": [{"name": task, "classes": list(names)} for task, names in tasks.items()],
        "teacher": {**tower, **head, "parent_recipe_id": parent.recipe_id},
    }
    provenance = {k: v for k, v in parent.provenance.items() if k not in ("created", "merged_from")}
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Manifest(identity, {**provenance, "created": created, "derived": dict(facts)})


def write_derived(
    parent: CacheReader,
    out: str | Path,
    manifest: Manifest,
    logits: Mapping[str, NDArray[np.floating]],
    seen_R: NDArray[np.float16] | None,
    *,
    embedding: bool,
) -> CacheReader:
    """Write the new cache: of each task the raw logits [R, C].

    `seen_R` adds to what the parent says: a sample that either has seen is seen. That is the safe side for the
    re-headed child of a probed cache, whose rows no longer come from the probe.
    """
    if SEEN in parent.features:
        stored_R = parent.feature(slice(0, parent.n_rows), SEEN)
        if stored_R.ndim != 1:
            raise CacheMismatch(f"{parent.path} has the feature {SEEN} of shape {stored_R.shape[1:]}, expected scalars")
        seen_R = stored_R if seen_R is None else np.maximum(stored_R, seen_R)
    keep = [name for name in parent.features if name != SEEN and (embedding or name != EMBEDDING)]
    features = {} if seen_R is None else {SEEN: seen_R}
    return derive(parent, out, manifest, logits, keep=keep, features=features)


def score(images: str, targets: TeacherTargets, logits_RC: NDArray[np.floating]) -> Score:
    """Compare new logits of the targets' clean views, of one task, with those in their cache where it has any."""
    rows, classes = targets.clean_rows(), targets.classes
    old = None
    if targets.tasks.only in targets.stored:
        old = _accuracy_and_f1(targets.teacher_logits(rows), targets.labels_N, classes)
    new = _accuracy_and_f1(logits_RC[rows], targets.labels_N, classes)
    return Score(images, len(rows), old, new)


def _accuracy_and_f1(
    logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], classes: tuple[str, ...]
) -> tuple[float, float]:
    found = classification_metrics(logits_NC, labels_N, classes)
    return found.accuracy, found.macro_f1


def provenance_of_scores(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """The scores as plain values."""
    return [
        {
            "images": one.images, "n_images": one.n_images,
            "before": None if one.old is None else {"accuracy": one.old[0], "macro_f1": one.old[1]},
            "now": {"accuracy": one.new[0], "macro_f1": one.new[1]},
        }
        for one in scores
    ]  # fmt: skip
