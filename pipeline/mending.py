"""Compute the damaged blocks of a cache again, as its build did, and put the whole file in its place.

A block is 512 rows of one object, of which nobody can tell which are damaged: all are computed again, and compared with
what else of these rows is sound. Run: softlabel cache repair t.h5 DATA --teacher T
R rows of the damaged blocks, V views of a sample, D embedding, K columns of all tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cache import CacheReader
from cache.errors import CacheDamaged, CacheMismatch
from cache.mend import as_sealed, mend
from cache.survey import beyond, tolerance_logits
from cache.verify import UNUSED, Block, block_name
from cache.workspace import Workspace
from data.errors import BadFile, BadImage, bullet_list
from data.files import listed
from data.loaders import TeacherViews, default_workers, teacher_loader
from data.options import ScanOptions
from data.samples import Sample
from data.views import WITNESS_LIMIT, draw, witness_tolerance
from pipeline.bad_images import good_ones, scan_like
from pipeline.passes import embed_in_passes
from pipeline.process import deferred_interrupts, resolve_device
from pipeline.recompute import load_as_stored, stored_batch_size
from pipeline.repair.remedies import EMBEDDING, PROBE, derived_by
from pipeline.scores.table import imported_from
from pipeline.targets import SEEN, view_policy
from pipeline.tasks import Tasks
from pipeline.teachers.teacher import Teacher
from pipeline.wanted import Wanted

log = logging.getLogger(__name__)

PARAMS, WITNESS = "rows/params", "rows/witness"
REPAIRED = "repaired"
"""The field of the provenance that lists blocks which are not, bit for bit, what was sealed once."""
# Of an embedding as float16, by its length: float32 sums in another order, half precision, and the rounding itself.
_TOLERANCE_EMBEDDING = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 1e-1}

Computed = dict[str, NDArray[Any]]
"""Object name -> its values in some rows."""


@dataclass(frozen=True)
class Repaired:
    """What a repair did."""

    path: Path
    blocks: tuple[Block, ...]
    """That were damaged; none in a sound file."""
    n_rows: int
    """Computed again: not those whose drawn numbers alone were damaged."""
    is_exact: bool
    """Whether the file is the one that was sealed, bit for bit."""
    asked: str
    """Precision and device of the teacher, for people; empty where it was not asked."""

    def line(self) -> str:
        """For people."""
        if not self.blocks:
            return f"{self.path}: nothing to repair, every byte is as it was sealed"
        names = ", ".join(map(block_name, self.blocks))
        done = f"{len(self.blocks)} block{'s' * (len(self.blocks) > 1)} repaired ({names})"
        rows = f", {self.n_rows:,} rows computed again {self.asked}" if self.n_rows else ""
        exact = "every byte is as it was sealed" if self.is_exact else (
            "within the tolerance of what is sound, but not bit for bit what was sealed: its content_id is new"
        )  # fmt: skip
        return f"{self.path}: {done}{rows}; {exact}"


def repair_cache(
    cache: str | Path,
    data: str | Path,
    teacher: str,
    *,
    device: str = "auto",
    workers: int | None = None,
    scan: ScanOptions = ScanOptions(),
) -> Repaired:
    """Compute again what is damaged in a cache whose small tables are sound; the teacher is asked only if need be.

    The repaired file takes the place of the damaged one whole and verified, or not at all. Raises CacheDamaged where
    the seal does not hold; CacheMismatch for another teacher, for images that `data` lacks, for a derived or imported
    cache, and where what is computed differs from what is sound.
    """
    workspace = Workspace(Path(cache))
    if not _damaged_blocks(workspace.out):
        return Repaired(Path(cache), (), 0, True, "")
    with workspace:
        with CacheReader(workspace.out, memory_map=False) as reader:
            blocks = tuple(reader.damaged_blocks())
            of_rows = [block for block in blocks if block[0] != UNUSED]
            _refuse_others(reader, of_rows)
            job = _Job(reader, of_rows)
            again = job.drawn_again()
            if len(rows_R := job.rows_to_ask()):
                wanted = _wanted(reader, rows_R, data, scan)
                model = load_as_stored(reader, teacher, resolve_device(device))
                again = job.asked_again(again, rows_R, _compute(reader, model, wanted, workers), model)
            exact = as_sealed(workspace.out, again.values)
            record = _record(reader, exact, again.setting)
        mend(workspace, again.values, record).close()
    return Repaired(Path(cache), blocks, len(rows_R), all(exact.values()), again.asked)


def _damaged_blocks(path: Path) -> list[Block]:
    try:
        with CacheReader(path, memory_map=False) as reader:
            return reader.damaged_blocks()
    except CacheDamaged as error:
        raise CacheDamaged(f"{error}: neither `cache repair` nor `cache build --reuse` can read it") from error


def _refuse_others(reader: CacheReader, blocks: Sequence[Block]) -> None:
    """CacheMismatch where no teacher can say again what is damaged."""
    if not blocks:
        return
    what = f"{reader.path} is damaged in {block_name(blocks[0])}, and no teacher said what stood there: "
    if scores := imported_from(reader.manifest):
        raise CacheMismatch(f"{what}import the scores anew by `softlabel cache import {scores} DATA -o OTHER.h5`")
    if head := derived_by(reader.manifest.identity):
        data = "PARENT.h5 DATA" if head == PROBE else "PARENT.h5 --prompts FILE"
        raise CacheMismatch(f"{what}make it anew by `softlabel cache {head} {data} -o OTHER.h5`")
    known = (PARAMS, WITNESS, f"features/{EMBEDDING}", f"features/{SEEN}")
    if others := [block for block in blocks if block[0] not in known and not block[0].startswith("logits/")]:
        raise CacheMismatch(
            f"{reader.path} is damaged in {block_name(others[0])}, which no build of this version computes: build it "
            "anew with the program that made it"
        )


@dataclass(frozen=True)
class _Again:
    """What is to stand in the damaged blocks."""

    values: dict[Block, NDArray[Any]]
    setting: dict[str, Any] = field(default_factory=dict)
    """How the teacher was asked, as in the provenance of a build."""
    asked: str = ""
    """The same for people."""


class _Job:
    """The damaged blocks of one cache, and which rows of it are sound."""

    def __init__(self, reader: CacheReader, blocks: Sequence[Block]) -> None:
        self._reader, self._blocks = reader, blocks

    def drawn_again(self) -> _Again:
        """The damaged blocks of drawn numbers; CacheMismatch where they are not those that were sealed."""
        return _Again({block: self._drawn(block) for block in self._blocks if block[0] == PARAMS})

    def _drawn(self, block: Block) -> NDArray[np.float32]:
        rows = np.arange(block[1], block[2] + 1)
        policy, seed = view_policy(self._reader), _seed(self._reader)
        keys, views = self._reader.keys[self._reader.sample_of_row[rows]], self._reader.view[rows].tolist()
        found = np.stack([draw(policy, bytes(key), view, seed) for key, view in zip(keys, views, strict=True)])
        if not as_sealed(self._reader.path, {block: found})[block]:
            raise CacheMismatch(
                f"{self._reader.path}: the numbers that this version draws for {block_name(block)} are not those that "
                f"were sealed. {_REBUILD}"
            )
        return found

    def asked_again(self, drawn: _Again, rows_R: NDArray[np.int64], computed: Computed, teacher: Teacher) -> _Again:
        """All damaged blocks; CacheMismatch where what is sound of these rows differs from what was computed."""
        self._compare(rows_R, computed, teacher)
        values = {block: self._of_block(block, rows_R, computed) for block in self._blocks if block[0] != PARAMS}
        setting = {
            "rows_per_forward": stored_batch_size(self._reader), "device": teacher.device,
            "torch": str(torch.__version__),
        }  # fmt: skip
        return _Again({**drawn.values, **values}, setting, f"in {teacher.precision} on {teacher.device}")

    def rows_to_ask(self) -> NDArray[np.int64]:
        """Of the blocks that take an image and the teacher, ascending."""
        parts = [np.arange(first, last + 1) for name, first, last in self._blocks if name != PARAMS]
        return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)

    def _of_block(self, block: Block, rows_R: NDArray[np.int64], computed: Computed) -> NDArray[Any]:
        """What was computed for the rows of a block."""
        name, first, last = block
        values = computed[name][np.searchsorted(rows_R, first) : np.searchsorted(rows_R, last) + 1]
        assert len(values) == last - first + 1
        return np.ascontiguousarray(values)

    def _compare(self, rows_R: NDArray[np.int64], computed: Computed, teacher: Teacher) -> None:
        """CacheMismatch where sound numbers of these rows are others than those that were computed."""
        for name, values in computed.items():
            is_sound = np.ones(len(rows_R), bool)
            for named, first, last in self._blocks:
                if named == name:
                    is_sound &= (rows_R < first) | (rows_R > last)
            if not is_sound.any():
                continue
            kept = self._reader.read_object(name, rows_R[is_sound])
            differs = self._differs(name, values[is_sound], kept, teacher)
            if differs.any():
                raise CacheMismatch(
                    f"{self._reader.path}: {int(differs.sum()):,} of {len(kept):,} sound rows of {name} differ from "
                    f"what is computed now, by more than {teacher.precision} explains. {_REBUILD}"
                )

    def _differs(self, name: str, values: NDArray[Any], kept: NDArray[Any], teacher: Teacher) -> NDArray[np.bool_]:
        """Which rows do."""
        if name == WITNESS:
            away = np.abs(values.astype(int) - kept.astype(int)).max(axis=1)
            n_off = int((away > witness_tolerance(teacher.size_px)).sum())
            # Rendered by another version, a few views of some images may be off by more levels than most.
            few = int(away.max()) <= WITNESS_LIMIT and n_off <= max(2, len(away) // 10)
            return np.zeros(len(away), bool) if few else np.asarray(away > witness_tolerance(teacher.size_px))
        if name.startswith("logits/"):
            return np.asarray(beyond(values, kept, tolerance_logits(self._reader.manifest)).any(axis=1))
        if name == f"features/{EMBEDDING}":
            one, other = values.astype(np.float64), kept.astype(np.float64)
            limit = _TOLERANCE_EMBEDDING[teacher.precision] * np.linalg.norm(other, axis=1)
            return np.asarray(~(np.linalg.norm(one - other, axis=1) <= limit))
        return np.asarray((values != kept).reshape(len(kept), -1).any(axis=1))


_REBUILD = (
    "Other code, or a faulty device: nothing was changed; rebuild it with `softlabel cache build DATA -o OTHER.h5`"
)


def _wanted(reader: CacheReader, rows_R: NDArray[np.int64], data: str | Path, scan: ScanOptions) -> Wanted:
    """The samples and views of some rows, in order; CacheMismatch names the images that DATA lacks."""
    images = scan_like(reader, data, scan)
    sample_of: dict[bytes, Sample] = {sample.key: sample for sample in images.samples}
    owners_R = reader.sample_of_row[rows_R]
    owners = np.unique(owners_R)
    lacking = [owner for owner in owners.tolist() if bytes(reader.keys[owner]) not in sample_of]
    if lacking:
        named = [reader.keys[at].tobytes().hex() if reader.names is None else reader.names[at] for at in lacking]
        raise CacheMismatch(
            f"{data} lacks {len(lacking):,} of the {len(owners):,} images whose rows are damaged in {reader.path}, or "
            f"has them with other bytes; nothing was changed. Name the folder that has them:\n"
            f"{bullet_list(named)}"
        )
    return [
        (sample_of[bytes(reader.keys[owner])], reader.view[rows_R[owners_R == owner]].tolist())
        for owner in owners.tolist()
    ]  # fmt: skip


def _compute(reader: CacheReader, teacher: Teacher, wanted: Wanted, workers: int | None) -> Computed:
    """Everything that a build writes of these rows, by object, in their order."""
    dataset = TeacherViews(wanted, view_policy(reader), _seed(reader), teacher.size_px)
    loaded = teacher_loader(dataset, default_workers(teacher.device) if workers is None else workers)
    bad: list[BadFile] = []
    found: dict[str, list[Any]] = {}
    n_rows = sum(len(views) for _, views in wanted)
    with tqdm(total=n_rows, unit="view", disable=None) as progress, deferred_interrupts() as check_interrupt:
        decoded = good_ones(loaded, bad)
        for item, embedding in embed_in_passes(
            decoded, teacher, stored_batch_size(reader), lambda pixels, embedding: check_interrupt()
        ):
            rows: Computed = {
                PARAMS: item.params,
                WITNESS: item.witness,
                **_said(reader, teacher, item.sample, embedding),
            }
            for name, values in rows.items():
                found.setdefault(name, []).append(values)
            progress.update(len(item.view))
        check_interrupt()
    if bad:
        raise BadImage(
            f"{len(bad):,} of {len(wanted):,} images whose rows are damaged cannot be read or decoded; nothing was "
            f"changed:\n{listed(bad)}"
        )
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _said(reader: CacheReader, teacher: Teacher, sample: Sample, embedding_VD: NDArray[np.float32]) -> Computed:
    """What the teacher says of the views of a sample, as the file stores it."""
    columns = {name: number for number, name in enumerate(teacher.classes)}
    tasks = Tasks(reader.tasks)
    logits_VK = teacher.head.logits(embedding_VD)[:, [columns[name] for name in tasks.outputs]]
    said: Computed = {f"logits/{number}": logits_VK[:, where] for number, where in enumerate(tasks.columns.values())}
    if EMBEDDING in reader.features:
        said[f"features/{EMBEDDING}"] = embedding_VD
    if SEEN in reader.features:
        if teacher.fitted_on is None:
            raise CacheMismatch(
                f"{reader.path} says which images its teacher was fitted on, and this copy of the teacher does not: "
                "name the folder that `softlabel teacher fit` or `softlabel train` wrote"
            )
        said[f"features/{SEEN}"] = np.full(len(embedding_VD), sample.key in teacher.fitted_on)
    specs = reader.dims.specs()
    return {name: values.astype(specs[name].dtype) for name, values in said.items()}


def _seed(reader: CacheReader) -> int:
    """Of the views."""
    try:
        return int(reader.manifest.identity["views"]["seed"])
    except (LookupError, TypeError, ValueError) as error:
        raise CacheMismatch(f"{reader.path} does not say which seed its views were drawn with. {_REBUILD}") from error


def _record(reader: CacheReader, exact: Mapping[Block, bool], setting: Mapping[str, Any]) -> dict[str, Any]:
    """What the provenance says of blocks that are not what was sealed, now and in earlier repairs."""
    before = reader.manifest.provenance.get(REPAIRED)
    now = [
        {"object": name, "rows": [first, last], "compute": dict(setting)}
        for (name, first, last), is_exact in exact.items() if not is_exact
    ]  # fmt: skip
    return {REPAIRED: [*(before if isinstance(before, list) else []), *now]}
