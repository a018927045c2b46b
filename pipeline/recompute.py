"""Compute some rows of a cache again with its teacher, and say how far the answers lie apart. Changes nothing.

Run: softlabel cache verify t.h5 DATA --teacher T --sample 32
B rows a forward pass, R rows of the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import CacheReader
from cache.errors import CacheMismatch
from cache.manifest import differences
from cache.survey import tolerance_logits
from data.decode import DECODER_VERSION
from data.errors import bullet_list
from data.loaders import StudentLoader, default_workers
from data.options import ScanOptions
from data.samples import Sample
from data.view_batches import ViewItem
from pipeline.bad_images import scan_like
from pipeline.errors import PipelineError
from pipeline.joining import join
from pipeline.process import resolve_device
from pipeline.repair.derived import refuse_derived
from pipeline.targets import TeacherTargets
from pipeline.tasks import Tasks
from pipeline.teachers.description import TeacherDescription
from pipeline.teachers.loading import open_teacher
from pipeline.teachers.prompts import stored_prompts
from pipeline.teachers.teacher import RESOLVED_PRECISIONS, Teacher

_DEFAULT_BATCH_SIZE = 16


class NotReproduced(PipelineError):
    """The teacher says something else than the cache, by more than its precision explains."""


@dataclass(frozen=True)
class Recomputed:
    """How far rows computed again lie from those in the cache."""

    n_rows: int
    worst_logit: float
    """Largest absolute difference of a logit."""
    worst_image: str
    """The image it belongs to."""
    tolerance: float
    """What the recipe's precision explains, in logits."""
    precision: str
    device: str

    def check(self) -> None:
        """Raise NotReproduced where the difference is beyond the tolerance."""
        if not self.worst_logit <= self.tolerance:
            raise NotReproduced(
                f"the teacher's answer differs by {self.worst_logit:.2g} logits at {self.worst_image}, expected at "
                f"most {self.tolerance:g} in {self.precision}: the cache comes from other code, or from a faulty "
                "device; build it anew, or ask whoever built it"
            )


def recompute_rows(
    cache: str | Path,
    data: str | Path,
    teacher: str,
    *,
    n_rows: int = 32,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    scan: ScanOptions = ScanOptions(),
) -> Recomputed:
    """Choose `n_rows` random rows among those of the images in `data`, and compute them as the build did.

    Raises CacheMismatch where the teacher is not the cache's, or a view is not the one that the teacher saw.
    """
    reader = CacheReader(cache, memory_map=False)
    refuse_derived(reader)
    images = scan_like(reader, data, scan)
    samples = images.samples
    rows, owners = _choose(reader, samples, str(data), n_rows, seed)
    chosen = [samples[owner] for owner in owners]
    # No label is needed: a cache may know other classes than the images, for the sake of its embeddings.
    targets = join(reader, {"chosen": chosen}, images.words, images.classes, answered=False)["chosen"]
    model = load_as_stored(reader, teacher, resolve_device(device))
    batch_size = stored_batch_size(reader)
    n_workers = default_workers(model.device) if workers is None else workers
    answers = [
        model.head.logits(model.embed(padded)[:count])
        for padded, count in _passes(targets, rows, model.size_px, n_workers, batch_size)
    ]
    columns = {name: number for number, name in enumerate(model.classes)}
    order = [columns[name] for name in Tasks(reader.tasks).outputs]
    stored = np.concatenate([reader.logits(rows, task) for task in reader.tasks], axis=1)
    away = np.abs(np.concatenate(answers)[:, order].astype(stored.dtype).astype(np.float64) - stored).max(axis=1)
    worst = int(away.argmax())
    tolerance = tolerance_logits(reader.manifest)
    if stored.dtype == np.float16:
        tolerance += float(np.spacing(np.abs(stored).max()))
    return Recomputed(len(rows), float(away[worst]), chosen[worst].path, tolerance, model.precision, model.device)


def _choose(
    reader: CacheReader, samples: Sequence[Sample], data: str, n_rows: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers and, for each, the number of its sample: up to `n_rows` of those that the samples have, at least one.

    CacheMismatch where they have none.
    """
    index_N = reader.find([sample.key for sample in samples])
    owner_of = {int(index): number for number, index in enumerate(index_N) if index >= 0}
    if not owner_of:
        raise CacheMismatch(
            f"{reader.path} knows none of the {len(samples):,} images of {data}: this is another data set, your copy "
            "of the images has other bytes (re-encoded or resized?), or the build left all of them out"
        )
    rows_R = np.flatnonzero(np.isin(reader.sample_of_row, list(owner_of)))
    rows = np.sort(np.random.default_rng(seed).permutation(rows_R)[:n_rows])
    return rows, np.array([owner_of[int(index)] for index in reader.sample_of_row[rows]], np.int64)


def load_as_stored(reader: CacheReader, source: str, device: str) -> Teacher:
    """The teacher with the cache's prompts or outputs, and precision; CacheMismatch lists what it differs in."""
    identity = reader.manifest.identity
    prompts, outputs, precision = stored_prompts(identity), _stored_outputs(identity), identity.get("precision")
    if not (prompts or outputs) or precision not in RESOLVED_PRECISIONS:
        raise CacheMismatch(f"{reader.path} does not say how its teacher was asked: this version cannot compute its "
                            "rows again")  # fmt: skip
    classes = tuple(prompts) if prompts else outputs
    model = open_teacher(
        source, classes, prompts, description=_description(identity, outputs), device=device, precision=precision
    )
    ours = {"teacher": model.identity, "preprocessing": model.preprocessing, "decoder_version": DECODER_VERSION}
    if found := differences({name: identity.get(name) for name in ours}, ours):
        listed = bullet_list(found)
        raise CacheMismatch(f"{source} is not the teacher of {reader.path} (stored against found):\n{listed}")
    return model


def _stored_outputs(identity: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a classifier's outputs, in their order; empty where the teacher is none."""
    teacher = identity.get("teacher")
    outputs = teacher.get("outputs") if isinstance(teacher, dict) else None
    return tuple(outputs) if isinstance(outputs, list) and all(isinstance(name, str) for name in outputs) else ()


def _description(identity: Mapping[str, Any], outputs: tuple[str, ...]) -> TeacherDescription:
    """What the builder may have said of a classifier by --teacher-config."""
    if not outputs:
        return TeacherDescription()
    try:
        stored = identity["preprocessing"]
        mean, std = (tuple(float.fromhex(value) for value in stored[name]) for name in ("mean", "std"))
        return TeacherDescription(classes=outputs, size_px=int(stored["size_px"]), mean=mean, std=std)
    except (LookupError, TypeError, ValueError) as error:
        raise CacheMismatch(f"the cache's preprocessing cannot be understood: {error}") from error


def stored_batch_size(reader: CacheReader) -> int:
    """Rows a forward pass, as in the build where it is known: the bits depend on it."""
    compute = reader.manifest.provenance.get("compute")
    found = compute.get("rows_per_forward") if isinstance(compute, dict) else None
    return found if isinstance(found, int) and 1 <= found <= 4096 else _DEFAULT_BATCH_SIZE


def _passes(
    targets: TeacherTargets, rows: NDArray[np.int64], size_px: int, workers: int, batch_size: int
) -> Iterator[tuple[Tensor, int]]:
    """(uint8 [B, 3, S, S], how many of its views are not padding), each view checked against its witness."""
    params = targets.reader.params(rows)
    items = [ViewItem(sample, row, i) for i, (sample, row) in enumerate(zip(targets.samples, params, strict=True))]
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    for pixels, numbers in StudentLoader(size_px, targets.geometry, workers)(batches):
        targets.check_pixels(pixels, numbers.numpy(), rows[numbers.numpy()])
        padding = torch.zeros(batch_size - len(pixels), *pixels.shape[1:], dtype=pixels.dtype)
        yield torch.cat([pixels, padding]), len(pixels)
