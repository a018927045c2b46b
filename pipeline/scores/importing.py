"""A cache from the scores of a teacher that cannot be loaded here: an API, another framework, a spreadsheet.

Runs no model: each view is rendered for its witness alone. Rows are sealed as those of a build are, and repeating the
command resumes. Run: softlabel cache import scores.csv DATA -o t.h5 --as probabilities
R rows of the table, V views of a sample, C classes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cache import CacheReader, Manifest, SegmentedWriter
from cache.errors import CacheMismatch
from cache.survey import tolerance_logits
from data.loaders import TeacherViews, default_workers, teacher_loader
from data.options import ScanOptions
from data.samples import SampleSet
from data.scan import scan_data
from data.views import ViewPolicy
from pipeline.bad_images import BadFile, find_bad_files, good_ones, refuse_or_tell, skipped_field, without
from pipeline.errors import SettingError
from pipeline.outputs import check_output_file
from pipeline.process import MAX_SEED, deferred_interrupts
from pipeline.recipe import IDENTITY_VERSION, asked_as, origin, stored_tasks, view_identity
from pipeline.scores.matching import MatchedScores, check_classes, match_images
from pipeline.scores.table import IMPORTED, KINDS, PROBABILITY_FLOOR, ScoreTable, read_scores
from pipeline.tasks import Tasks
from pipeline.wanted import Wanted, planned_dims, wanted_rows, warn_of_a_full_disk

TaskLogits = Mapping[str, NDArray[np.float32]]
"""Task -> raw logits of the rows of a table, float32 [R, C]."""

log = logging.getLogger(__name__)

DEFAULT_VIEWS = 8
SIZE_PX = 224
"""The views are rendered at this size for their witness: that of the usual student."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What the numbers of a table are, and the views that they are for."""

    kind: str
    """logits or probabilities; part of the identity, and never guessed."""
    views: int | None = None
    """Views of each train image, the clean one included, 1 to 65,535; None is 8, or as many as the table has."""
    seed: int = 0
    """Seed of the views; part of the cache's identity."""
    name: str | None = None
    """What people call the teacher; None is the name of the table's file without suffix."""
    partial: bool = False
    """Leave out images without scores and scores without an image, instead of stopping."""
    workers: int | None = None
    """Processes that decode and render; None is none for fewer than 1,000 views, else all cores but one."""
    policy: ViewPolicy = ViewPolicy()
    names: bool = True
    """Store relative paths, for people."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingError(f"the scores must be {' or '.join(KINDS)}, got '{self.kind}'")
        if self.views is not None and not 1 <= self.views <= 65_535:
            raise SettingError(f"views must be in 1..65535, got {self.views}")
        if not 0 <= self.seed <= MAX_SEED:
            raise SettingError(f"seed must be in 0..2**63-1, got {self.seed}")
        if self.workers is not None and self.workers < 0:
            raise SettingError(f"workers must not be negative, got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """What an import did."""

    path: Path
    n_samples: int
    n_rows: int
    n_imported: int
    """Rows imported now; the others stood already."""
    n_skipped: int
    """Images left out because they cannot be decoded."""
    wall_s: float
    """Seconds from the first image to the last row, without merging."""
    views: int
    """Views of a train image."""
    is_fixed: bool
    """Whether several views have the scores of the clean one."""


def import_scores(
    scores: str | Path, data: str | Path, out: str | Path, config: ImportConfig, scan: ScanOptions = ScanOptions()
) -> ImportResult:
    """Make, resume or extend the cache `out`: the scores in `scores` for the images in `data`.

    Raises ScoresError, which lists all that does not fit, DataError, CacheError or PipelineError; `out` is then as it
    was. KeyboardInterrupt leaves every finished row sealed.
    """
    check_output_file(out)
    table = read_scores(scores)
    images = scan_data(data, replace(scan, collect_bad_files=True))
    check_classes(table, images)
    tasks, columns = stored_tasks(images, table.classes)
    logits, n_raised = _logits(table, columns, config.kind)
    views = config.views or (int(table.views_R.max()) + 1 if table.has_views else DEFAULT_VIEWS)
    matched = match_images(table, images, views, partial=config.partial, skip_bad_images=scan.skip_bad_images)
    images = matched.images
    if n_raised:
        log.info("%s probabilities below %g count as that", f"{n_raised:,}", PROBABILITY_FLOOR)
    with SegmentedWriter(Path(out), _manifest(table, images, tasks, config, n_raised), {}) as writer:
        _check_standing(writer, matched, logits, table.path)
        wanted = wanted_rows(images, views, writer.done)
        n_rows = sum(len(missing) for _, missing in wanted)
        new, every = (
            planned_dims(writer.manifest, images.samples, rows, {}, names=config.names).n_bytes
            for rows in (n_rows, n_rows + len(writer.done))
        )
        warn_of_a_full_disk(writer.out, new if n_rows else 0, every)
        bad = [*images.bad, *find_bad_files([sample for sample, _ in wanted])]
        n_images = len(images.samples) + len(images.bad)
        refuse_or_tell(bad, n_images, "nothing has been imported now", skip=scan.skip_bad_images)
        started = time.perf_counter()
        n_imported, gone = _write(without(bad, wanted), writer, matched, logits, config)
        wall_s = time.perf_counter() - started
        writer.seal()
        refuse_or_tell(gone, n_images, "everything else is imported and sealed", skip=scan.skip_bad_images)
        bad += gone
        reader = writer.finish(skipped_field(writer, bad))
    return ImportResult(
        path=Path(out), n_samples=reader.n_samples, n_rows=reader.n_rows, n_imported=n_imported, n_skipped=len(bad),
        wall_s=wall_s, views=views, is_fixed=matched.is_fixed and views > 1,
    )  # fmt: skip


def _logits(table: ScoreTable, columns: Mapping[str, list[int]], kind: str) -> tuple[TaskLogits, int]:
    """(task -> raw logits, float32 [R, C]; how many probabilities were raised)."""
    found = {task: table.of_columns(of_task).logits(kind) for task, of_task in columns.items()}
    return {task: logits_RC for task, (logits_RC, _) in found.items()}, sum(n for _, n in found.values())


def _manifest(table: ScoreTable, images: SampleSet, tasks: Tasks, config: ImportConfig, n_raised: int) -> Manifest:
    identity = {
        "identity_version": IDENTITY_VERSION,
        "tasks": [{"name": task, "classes": list(classes)} for task, classes in tasks.items()],
        "teacher": {
            "kind": IMPORTED,
            "scores_sha256": table.sha256(),
            "as": config.kind,
            "of": "each view" if table.has_views else "the clean image",
        },
        "preprocessing": {"size_px": SIZE_PX},
        "precision": "fp32",
        **view_identity(config.policy, config.seed),
    }
    provenance = {
        "teacher": config.name or table.path.stem,
        "scores": table.path.name,
        "raised_probabilities": n_raised,
        **asked_as(images),
        **origin("numpy", "torch", "torchvision"),
    }
    return Manifest(identity, provenance)


def _check_standing(writer: SegmentedWriter, matched: MatchedScores, logits: TaskLogits, scores: Path) -> None:
    """CacheMismatch where rows that stand say otherwise: the identity knows the table, not which images it meant."""
    n_other = 0
    for path in [*([writer.out] if writer.out.exists() else []), *sorted(writer.parts.glob("*.h5"))]:
        with CacheReader(path, memory_map=False) as reader:
            rows = [
                row for at, key in enumerate(reader) for row in matched.rows(key, reader.views_of(at).tolist())
            ]  # in the order of the cache's rows
            stored, meant = np.flatnonzero(np.array(rows) >= 0), [row for row in rows if row >= 0]
            is_other = np.zeros(len(meant), bool)
            for task, logits_RC in logits.items():
                said = reader.logits(stored, task)
                away = np.abs(logits_RC[meant].astype(said.dtype) - said)
                is_other |= (away > tolerance_logits(reader.manifest)).any(axis=1)
            n_other += int(is_other.sum())
    if n_other:
        raise CacheMismatch(
            f"{n_other:,} rows of {writer.out} have other scores than {scores} gives these images: image files were "
            "renamed or exchanged since. Choose another -o"
        )


def _write(
    wanted: Wanted, writer: SegmentedWriter, matched: MatchedScores, logits: TaskLogits, config: ImportConfig
) -> tuple[int, list[BadFile]]:
    """Render and seal all wanted rows: (how many, the files that went bad or away since they were checked)."""
    if not wanted:
        return 0, []
    total = sum(len(views) for _, views in wanted)
    dataset = TeacherViews(wanted, config.policy, config.seed, SIZE_PX)
    # No model fills the cores: as many as beside a GPU, where there is more to do than to start them (seconds each).
    workers = config.workers if config.workers is not None else default_workers("cuda" if total >= 1_000 else "cpu")
    bad: list[BadFile] = []
    n_imported = 0
    progress = tqdm(total=total, unit="view", disable=None, smoothing=0.1)
    with progress, deferred_interrupts() as check_interrupt:
        try:
            for item in good_ones(teacher_loader(dataset, workers), bad):
                rows = matched.rows(item.sample.key, item.view.tolist())
                writer.add(
                    key=item.sample.key, views=item.view, params=item.params, witness=item.witness,
                    logits={task: logits_RC[rows] for task, logits_RC in logits.items()},
                    name=item.sample.name if config.names else None,
                )  # fmt: skip
                n_imported += len(item.view)
                progress.update(len(item.view))
                check_interrupt()
            check_interrupt()
        except KeyboardInterrupt:
            writer.seal()
            raise
    return n_imported, bad
