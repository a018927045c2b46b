"""The lines before the first step: the student beside its budget and its teacher, and what it is trained on.

Computes no score (`pipeline.gate.report` does) and trains nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cache.errors import printable
from cache.union import CacheUnion
from pipeline.students.budget import Artefact
from pipeline.targets import teacher_parameters
from pipeline.training.config import TrainConfig
from pipeline.training.lessons import Lessons
from pipeline.training.process_settings import ProcessSettings
from pipeline.training.verdicts import CAPACITY_GAP

_N_NAMED = 20
"""Classes that are counted in the banner."""
_N_CACHES = 8
"""Files that are named in it."""


def banner(
    lessons: Lessons, n_val: int, val_source: str, config: TrainConfig, *, n_parameters: int, artefact: Artefact,
    process: ProcessSettings, workers: int,
) -> Iterator[str]:  # fmt: skip
    """What this run is, a line each; the words of strangers' files made printable."""
    yield (
        f"student  {config.student} at {config.student_size_px} px: {n_parameters / 1e6:.2f} M parameters, "
        f"{artefact.share_of(config.budget_mb)}"
    )
    if isinstance(lessons.targets.reader, CacheUnion):
        yield printable(f"caches   {_caches(lessons.targets.reader)}")
    teacher_size = teacher_parameters(lessons.targets.reader)
    if teacher_size and config.teacher:
        ratio = n_parameters / teacher_size
        gap = f"; below {CAPACITY_GAP} is a known gap: a teacher assistant may help (docs/methods.md)"
        yield f"capacity {ratio:.2g} of the teacher's parameters{gap if ratio < CAPACITY_GAP else ''}"
    labelled = f" ({lessons.n_labelled:,} with a label)" if lessons.n_labelled < len(lessons.samples) else ""
    n_views = f"{lessons.mean_views:.3g}"
    shown = "fresh views" if config.fresh_views else f"{n_views} cached view{'s' * (n_views != '1')} each"
    yield (
        f"images   {len(lessons.samples):,} train{labelled}, {n_val:,} val ({val_source}); {shown}, "
        f"{_n_classes(lessons)}"
    )
    n_views_N = lessons.targets.n_views_N
    if not config.fresh_views and (n_fewer := int((n_views_N < n_views_N.max()).sum())):
        yield (
            f"views    {n_fewer:,} train images have fewer cached views than the others (was the split another one, or "
            "are they new?): `cache build` with DATA and options as here adds them"
        )
    for task, counted in lessons.class_counts().items():
        counts = [f"{name} {count:,}" for name, count in counted.items()]
        of_task = f"{task}: " if len(lessons.tasks) > 1 else ""
        listed = ", ".join(counts[:_N_NAMED]) + (", ..." if len(counts) > _N_NAMED else "")
        yield printable(f"classes  {of_task}{listed}")
    loaders = f", {workers} loader processes" if workers else ""
    yield f"runs on  {process.line()}; batches of {config.batch_size}{loaders}"


def _caches(union: CacheUnion) -> str:
    """Which rows are from which file."""
    shares = [
        f"{_shown(path)} ({n_rows:,} rows" + (f", {n_shared:,} of them in an earlier one)" if n_shared else ")")
        for path, n_rows, n_shared in union.shares
    ]
    more = [f"and {len(shares) - _N_CACHES:,} more"] if len(shares) > _N_CACHES else []
    bare = union.without_embeddings
    left_out = f"; embeddings are left out, as {_shown(bare[0])} has none, and training needs none" if bare else ""
    return ", ".join([*shares[:_N_CACHES], *more]) + left_out


def _shown(path: Path) -> str:
    """As it is called from here, if it is here or below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _n_classes(lessons: Lessons) -> str:
    tasks = lessons.tasks
    if len(tasks) == 1:
        return f"{len(tasks.outputs)} classes"
    return f"{len(tasks)} tasks of {' and '.join(str(len(names)) for names in tasks.values())} classes"
