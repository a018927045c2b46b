"""Stage one: write a teacher's logits and embeddings for every (sample, view) into a cache. Never trains.

Train images get all V views, images of other splits the clean one. Every file is decoded once before the teacher
starts, to find the bad ones, and once for all its views; rows are sealed in segments as they come, so that an
interrupted build goes on where it stopped. Run: softlabel cache build DATA -o t.h5
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cache import SegmentedWriter
from cache.manifest import differences
from cache.rows import FeatureShapes
from cache.store import Pushed, Store
from cache.workspace import Workspace
from data.loaders import SampleViews, TeacherViews, default_workers, teacher_loader
from data.options import ScanOptions
from data.samples import SampleSet
from data.scan import scan_data
from pipeline.bad_images import BadFile, find_bad_files, good_ones, refuse_or_tell, skipped_field, without
from pipeline.checks import FirstBatch, record, tell_pixel_difference
from pipeline.errors import OutOfMemory, TeacherError
from pipeline.from_store import StoreOfRecipe
from pipeline.on_demand import TeacherOnDemand
from pipeline.outputs import check_output_file
from pipeline.passes import embed_in_passes, on_gpu
from pipeline.process import deferred_interrupts
from pipeline.ranks import ALONE, Ranks
from pipeline.recipe import BuildConfig, feature_shapes, manifest_of, stored_tasks
from pipeline.reuse import Reused, check_features, check_readable, check_reusable, take_rows
from pipeline.sharing import FirstPass, Outcome, of_share, shares, together
from pipeline.slices import Slice
from pipeline.targets import SEEN
from pipeline.teachers.known import KnownTeachers
from pipeline.teachers.teacher import Teacher
from pipeline.wanted import Wanted, planned_dims, wanted_rows, warn_of_a_full_disk

log = logging.getLogger(__name__)

Said = TypeVar("Said")
_FLOAT16_MAX = 65_504.0


@dataclass(frozen=True)
class BuildResult:
    """What a build did."""

    path: Path
    n_samples: int
    n_rows: int
    n_computed: int
    """Rows computed now; the others stood already, or were taken from other caches."""
    n_skipped: int
    """Files left out because they are no image."""
    n_recomputed: int
    """Rows that overflowed in half precision and were computed again in float32."""
    wall_s: float
    """Seconds from the first image to the last row, without loading and merging."""
    reused: tuple[Reused, ...] = ()
    """The caches that rows were taken from, those alone that had any."""
    n_pulled: int = 0
    """Rows that came from the store."""
    pushed: Pushed | None = None
    """What went to the store; None where it had every row, or was not to get any."""


def build_cache(
    data: str | Path,
    out: str | Path,
    config: BuildConfig,
    scan: ScanOptions = ScanOptions(),
    *,
    reuse: Sequence[str | Path] = (),
    part: Slice | None = None,
    store: Store | None = None,
    publish: bool = True,
    known_teachers: Path | None = None,
    ranks: Ranks = ALONE,
) -> BuildResult:
    """Build, resume or extend the cache `out` for the images in `data`.

    An existing `out` of the same recipe is extended by the rows it lacks; one of another recipe is refused untouched.
    Rows that stand in the caches `reuse` are copied, in their order, and only the others are computed. `part` is one
    of several shares of the images, and goes into a file of its own beside `out`; one without images writes none.
    What the `store` has of the other rows is pulled, and what it lacks is put there at the end, unless `publish` is
    False. A teacher that the folder `known_teachers` remembers is loaded only where rows are to be computed.
    A batch that does not fit into memory is halved, as long as no row is sealed (a row's bits depend on it).
    Each of several `ranks` computes its share of the rows; the first one alone reads and writes caches and stores.
    Raises DataError, CacheError or PipelineError. KeyboardInterrupt leaves every computed row sealed.
    """
    check_output_file(out)
    out = Path(out) if part is None else part.file(out)
    check_readable(reuse, out)
    with ranks.first_then_others():
        images = scan_data(data, replace(scan, collect_bad_files=True))
        found = _Found(len(images.samples) + len(images.bad), is_slice=part is not None)
        images = images if part is None else part.of(images)
        if part is not None and not images.samples:
            return _nothing(out, 0)
        teacher = TeacherOnDemand(images, config, KnownTeachers(known_teachers))
        ranks.use(teacher.device)
    if store is not None:
        manifest, features = manifest_of(images, teacher.facts, config), feature_shapes(teacher.facts, config)
        found.shared = StoreOfRecipe(store, manifest, features, may_make=publish)
        if not reuse and not Workspace(out).has_work():
            found.n_pulled = found.shared.pull_whole(out, wanted_rows(images, config.views, set()))
    batch_size = config.batch_size or default_batch_size(teacher.device)
    while True:
        writer = SegmentedWriter(
            out, manifest_of(images, teacher.facts, config), {"rows_per_forward": batch_size}, member=ranks.rank
        )
        try:
            built = _build(writer, images, teacher, config, found, reuse, ranks, skip_bad_images=scan.skip_bad_images)
            pushed = found.shared.publish(built.path) if found.shared and publish and built.n_rows else None
            return replace(built, n_pulled=found.n_pulled, pushed=pushed)
        except OutOfMemory as error:
            ranks.barrier()  # all have left the folder
            used = int(writer.compute_setting["rows_per_forward"])
            if writer.has_computed:
                raise OutOfMemory(
                    f"{error}. Rows are sealed that were computed {used} at a time, and so must be the others: free "
                    f"memory and repeat the same command, or delete {writer.parts} to start over with a smaller batch"
                ) from error
            if used == 1:
                raise OutOfMemory(f"{error}: this device is too small for the teacher") from error
            batch_size = used // 2
            with ranks.alike():
                log.warning("%s: going on with --batch-size %d", error, batch_size)


def default_batch_size(device: str) -> int:
    """Views in a forward pass."""
    return 16 if device == "cpu" else 64


@dataclass
class _Found:
    """What stays known however often a batch is halved."""

    n_images: int
    """Files of DATA, those of other slices and bad ones included."""
    is_slice: bool
    checked: dict[str, BadFile | None] = field(default_factory=dict)
    """Path -> what is wrong with it."""
    reused: list[Reused] = field(default_factory=list)
    shared: StoreOfRecipe | None = None
    n_pulled: int = 0


def _build(
    writer: SegmentedWriter, images: SampleSet, teacher: TeacherOnDemand, config: BuildConfig, found: _Found,
    reuse: Sequence[str | Path], ranks: Ranks, *, skip_bad_images: bool,
) -> BuildResult:  # fmt: skip
    asked = writer.compute_setting["rows_per_forward"]
    with contextlib.ExitStack() as opened:
        if ranks.is_first:
            opened.enter_context(writer)
            if (batch_size := writer.compute_setting["rows_per_forward"]) != asked:
                log.info(
                    "the sealed rows were computed %d at a time: so are the others (bits depend on it)", batch_size
                )
            told, wanted = _take_up(writer, images, teacher, config, found, reuse)
            before = _said(told, "recomputed_in_fp32", 0)
        if not ranks.is_alone:
            terms, before = ranks.broadcast((writer.terms, before) if ranks.is_first else ({}, 0))
            wanted = of_share(ranks.scatter(shares(wanted, ranks.world_size) if ranks.is_first else None), images)
            if not ranks.is_first:
                writer.follow(terms)
                opened.enter_context(writer)
        known_bad = ranks.gather(find_bad_files([sample for sample, _ in wanted], found.checked))
        bad = [*images.bad, *(file for of_rank in known_bad for file in of_rank)]
        with ranks.alike():
            refuse_or_tell(bad, found.n_images, "the teacher has not started", skip=skip_bad_images)
        of_all = _compute_share(without(bad, wanted), writer, images, teacher, config, before, ranks)
        with ranks.alike():
            refuse_or_tell(of_all.gone, found.n_images, "everything else is computed and sealed", skip=skip_bad_images)
        bad += of_all.gone
        if ranks.is_first:
            ranks.barrier()  # the others have left the folder
            writer.take_up(of_all.sealed)
            fields = _finished(writer, told, bad, of_all, before)
            return ranks.broadcast(_merged(writer, fields, found, bad, of_all))
    ranks.barrier()
    return ranks.broadcast(_nothing(writer.out, 0))


def _finished(
    writer: SegmentedWriter, told: Mapping[str, Any], bad: Sequence[BadFile], of_all: Outcome, before: int
) -> dict[str, Any]:
    """What the provenance of the whole cache says of its newest rows, and of what was left out."""
    said = of_all.provenance if of_all.n_computed else told
    if n_recomputed := before + of_all.n_recomputed:
        said = {**said, "recomputed_in_fp32": n_recomputed}
    return {**skipped_field(writer, bad), **{name: said[name] for name in _OF_NEW_ROWS if name in said}}


def _merged(
    writer: SegmentedWriter, fields: Mapping[str, Any], found: _Found, bad: Sequence[BadFile], of_all: Outcome
) -> BuildResult:
    if found.is_slice and not writer.done:
        return _nothing(writer.out, len(bad))
    reader = writer.finish(fields)
    return BuildResult(
        writer.out, reader.n_samples, reader.n_rows, of_all.n_computed, len(bad), of_all.n_recomputed, of_all.wall_s,
        tuple(found.reused),
    )  # fmt: skip


def _compute_share(
    wanted: Wanted, writer: SegmentedWriter, images: SampleSet, teacher: TeacherOnDemand, config: BuildConfig,
    recomputed_before: int, ranks: Ranks,
) -> Outcome:  # fmt: skip
    """Compute and seal this rank's rows, and wait for the others: what came of all of them."""
    is_at_work = ranks.gather(bool(wanted))
    n_computed, n_recomputed, wall_s, gone = 0, 0, 0.0, list[BadFile]()
    first_pass = FirstPass(ranks, None)
    if wanted:
        model = teacher.load()
        first_pass = FirstPass(ranks, model)
        speaks = not any(is_at_work[: ranks.rank])
        if speaks:
            tell_pixel_difference(writer, model, wanted, config.policy.geometry)
        started = time.perf_counter()
        model.n_recomputed = recomputed_before  # goes on counting, and forgets a batch that was too large
        n_computed, gone = _compute(wanted, model, writer, config, images, first_pass, ranks, speaks=speaks)
        n_recomputed, wall_s = model.n_recomputed - recomputed_before, time.perf_counter() - started
    if any(is_at_work):
        first_pass.settle()
    writer.seal()
    return together(ranks.gather(Outcome(
        n_computed=n_computed, n_recomputed=n_recomputed, wall_s=wall_s, gone=gone,
        provenance=writer.manifest.provenance, sealed=[] if ranks.is_first else writer.sealed,
    )))  # fmt: skip


def _nothing(out: Path, n_skipped: int) -> BuildResult:
    """Of a slice without images: no file."""
    return BuildResult(out, 0, 0, 0, n_skipped, 0, 0.0)


def _take_up(
    writer: SegmentedWriter, images: SampleSet, teacher: TeacherOnDemand, config: BuildConfig, found: _Found,
    reuse: Sequence[str | Path],
) -> tuple[Mapping[str, Any], Wanted]:  # fmt: skip
    """Take rows over from other caches; what the newest rows say of their making, and what is left to compute."""
    features = feature_shapes(teacher.facts, config)
    check_features(writer.out, writer.features, features)
    check_reusable(reuse, writer.manifest, features)
    told = writer.last_provenance()
    wanted = wanted_rows(images, config.views, writer.done)
    _tell_of_the_disk(writer, wanted, images, features, names=config.names)
    taken = take_rows(writer, reuse, wanted, names=config.names)
    found.reused += taken
    if found.shared is not None:
        found.n_pulled += found.shared.pull_parts(
            writer, wanted_rows(images, config.views, writer.done), names=config.names
        )
    setting = {
        "rows_per_forward": writer.compute_setting["rows_per_forward"], "device": teacher.device,
        "torch": str(torch.__version__),
    }  # fmt: skip
    record(writer, compute=setting)
    wanted = wanted_rows(images, config.views, writer.done)
    _announce(writer, wanted, images, teacher)
    if wanted:
        _tell_of_other_ways([told, *(one.provenance for one in taken)], setting)
    return told or writer.last_provenance(), wanted


_OF_NEW_ROWS = ("compute", "first_batch_against_fp32", "pixels_against_processor", "recomputed_in_fp32")
"""What the provenance says of the rows computed last; but of all rows, how many were recomputed."""


def _said(told: Mapping[str, Any], name: str, without: Said) -> Said:
    value = told.get(name)
    return value if isinstance(value, type(without)) else without


def _tell_of_other_ways(before: Sequence[Mapping[str, Any]], setting: Mapping[str, Any]) -> None:
    """Warn once for each other way in which rows that stand say that they were computed."""
    said = [_said(told, "compute", dict[str, Any]()) for told in before]
    for found in dict.fromkeys("; ".join(differences(way, setting)) for way in said if way):
        if found:
            log.warning(
                "the rows that stand were computed in another way, and last digits depend on it; the cache records "
                "the way of now (before against now): %s", found,
            )  # fmt: skip


def _tell_of_the_disk(
    writer: SegmentedWriter, wanted: Wanted, images: SampleSet, features: FeatureShapes, *, names: bool
) -> None:
    """Before any row is copied or computed."""
    total = sum(len(views) for _, views in wanted)
    new, every = (
        planned_dims(writer.manifest, images.samples, rows, features, names=names).n_bytes
        for rows in (total, total + len(writer.done))
    )
    warn_of_a_full_disk(writer.out, new if total else 0, every)


def _announce(writer: SegmentedWriter, wanted: Wanted, images: SampleSet, teacher: TeacherOnDemand) -> None:
    total = sum(len(views) for _, views in wanted)
    log.info(
        "%s images, %s views to compute, %s stand already; %s px, %s on %s, %d views a pass",
        f"{len(images.samples):,}", f"{total:,}", f"{len(writer.done):,}",
        teacher.size_px, teacher.precision, teacher.device, writer.compute_setting["rows_per_forward"],
    )  # fmt: skip


def _compute(
    wanted: Wanted, teacher: Teacher, writer: SegmentedWriter, config: BuildConfig, images: SampleSet,
    first_pass: FirstPass, ranks: Ranks, *, speaks: bool,
) -> tuple[int, list[BadFile]]:  # fmt: skip
    """Compute and seal all wanted rows: (how many, the files that went bad or away since they were checked)."""
    batch_size, columns = writer.compute_setting["rows_per_forward"], stored_tasks(images, teacher.classes)[1]
    dataset = TeacherViews(wanted, config.policy, config.seed, teacher.size_px)
    workers = ranks.workers(default_workers(teacher.device)) if config.workers is None else config.workers
    bad: list[BadFile] = []
    n_computed = 0
    progress = tqdm(
        total=sum(len(v) for _, v in wanted), unit="view", disable=None if ranks.is_first else True, smoothing=0.1,
        desc=None if ranks.is_alone else f"rank 0 of {ranks.world_size}",
    )  # fmt: skip
    with progress, deferred_interrupts(*ranks.stop_signals, notice=ranks.is_first) as check_interrupt:
        decoded = good_ones(teacher_loader(dataset, workers), bad)
        first_batch = FirstBatch(writer, teacher, speaks=speaks)

        def after_pass(pixels: Tensor, embedding: NDArray[np.float32]) -> None:
            first_batch.check(pixels, embedding)
            check_interrupt()

        try:
            with ranks.explained_by(check_interrupt):
                for item, embedding in embed_in_passes(
                    decoded, first_pass, batch_size, after_pass, ahead=on_gpu(teacher)
                ):
                    _add(writer, item, embedding, teacher, config, columns)
                    n_computed += len(item.view)
                    progress.update(len(item.view))
                check_interrupt()
            writer.seal()
        except KeyboardInterrupt:
            writer.seal()
            raise
    return n_computed, bad


def _add(
    writer: SegmentedWriter, item: SampleViews, embedding: NDArray[np.float32], teacher: Teacher, config: BuildConfig,
    columns: Mapping[str, list[int]],
) -> None:  # fmt: skip
    features: dict[str, NDArray[np.float16]] = {}
    if config.embedding and teacher.has_embedding:
        if (largest := float(np.abs(embedding).max())) > _FLOAT16_MAX:
            raise TeacherError(
                f"the teacher's embedding of {item.sample.path} has numbers up to {largest:.3g}, float16 ends at "
                f"{_FLOAT16_MAX:,.0f}: build with --no-embedding, in another -o or after deleting {writer.parts}"
            )
        features["embedding"] = embedding.astype(np.float16)
    if teacher.fitted_on is not None:
        features[SEEN] = np.full(len(item.view), item.sample.key in teacher.fitted_on, np.float16)
    if teacher.n_recomputed != writer.manifest.provenance.get("recomputed_in_fp32", 0):  # a manifest is dear to make
        record(writer, recomputed_in_fp32=teacher.n_recomputed)
    logits_VK = teacher.head.logits(embedding)
    writer.add(
        key=item.sample.key, views=item.view, params=item.params, witness=item.witness,
        logits={task: logits_VK[:, of_task] for task, of_task in columns.items()}, features=features,
        name=item.sample.name if config.names else None,
    )  # fmt: skip
