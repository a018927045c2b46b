"""What a cache holds, in words and as JSON. Reads the file only. Run: softlabel cache info t.h5"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from cache import CacheReader
from cache.errors import printable
from cache.manifest import Manifest
from pipeline.repair.remedies import REHEAD, derived_by
from pipeline.scores.table import imported_from
from pipeline.teachers.prompts import stored_prompts

if TYPE_CHECKING:
    from pipeline.gate.report import TeacherReport

NO_REPORTS: Mapping[str, TeacherReport] = MappingProxyType({})

_N_REASONS, _REASON_LENGTH = 10, 100
"""Of images left out, that people are told; a cache from strangers may hold any number and text."""


def skipped_by_reason(manifest: Manifest) -> dict[str, int]:
    """Why images were left out -> how many, most first; numbers in a reason, such as missing bytes, stand as N."""
    reasons = Counter(re.sub(r"\d+", "N", reason) for reason in manifest.skipped.values())
    reasons += Counter(manifest.skipped_files)
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def describe_cache(path: str | Path, reports: Mapping[str, TeacherReport] = NO_REPORTS) -> dict[str, Any]:
    """Counts, ids, identity, provenance and the report, as plain values; CacheError for what is not a cache."""
    reader = CacheReader(path)
    views_of_sample = np.diff(reader.first_row.astype(np.int64))
    skipped = skipped_by_reason(reader.manifest)
    counts, n_samples = np.unique(views_of_sample, return_counts=True)
    return {
        "path": str(path),
        "bytes": Path(path).stat().st_size,
        "samples": reader.n_samples,
        "rows": reader.n_rows,
        "skipped": sum(skipped.values()),
        "skipped_by_reason": skipped,
        "samples_by_number_of_views": {int(v): int(n) for v, n in zip(counts, n_samples, strict=True)},
        "features": {name: list(shape) for name, shape in reader.features.items()},
        "recipe_id": reader.recipe_id,
        "cache_id": reader.cache_id,
        "content_id": reader.content_id,
        "imported_from": imported_from(reader.manifest),
        "identity": reader.manifest.identity,
        "provenance": reader.manifest.provenance,
        **_described_reports(reports),
    }


def _described_reports(reports: Mapping[str, TeacherReport]) -> dict[str, Any]:
    """`report`, or with several tasks `reports` by task."""
    described = {task: report.to_dict() for task, report in reports.items()}
    if len(described) > 1:
        return {"reports": described}
    return {"report": next(iter(described.values()))} if described else {}


def _head_lines(identity: Mapping[str, Any]) -> list[str]:
    """What is special about the logits of a derived cache."""
    head = derived_by(identity)
    if head is None:
        return []
    teacher = identity["teacher"]
    what = "zero-shot, with new prompts" if head == REHEAD else "linear probe on the embeddings"
    probe = teacher.get("probe")
    if isinstance(probe, dict) and "cross_fit" in probe:
        what += f", train rows out of fold by {probe['cross_fit']} in {probe.get('folds')} folds"
    if "temperature" in teacher or (isinstance(probe, dict) and "temperature" in probe):
        what += ", calibrated"
    return [f"head        {what}", f"parent      {teacher.get('parent_recipe_id', 'unknown')} (its recipe_id)"]


def describe_cache_as_text(path: str | Path, reports: Mapping[str, TeacherReport] = NO_REPORTS) -> str:
    """The same for people."""
    found = describe_cache(path)
    identity, provenance = found["identity"], found["provenance"]
    by_views = ", ".join(f"{n:,} with {v}" for v, n in found["samples_by_number_of_views"].items())
    lines = [
        f"{path}: {found['bytes'] / 1e6:.1f} MB, {found['rows']:,} views of {found['samples']:,} images ({by_views}), "
        f"{found['bytes'] / found['rows']:,.0f} bytes a view"
    ]
    if found["skipped"]:
        lines.append(f"left out    {found['skipped']:,} images that could not be read or decoded")
        reasons = list(found["skipped_by_reason"].items())
        lines += [f"            {n:,}: {reason[:_REASON_LENGTH]}" for reason, n in reasons[:_N_REASONS]]
        if rest := sum(n for _, n in reasons[_N_REASONS:]):
            lines.append(f"            {rest:,}: other reasons (--json lists them)")
    for task in identity["tasks"]:
        lines.append(f"task        {task['name']}: {len(task['classes'])} classes: {', '.join(task['classes'])}")
    how, teacher, source = (
        identity.get("precision", "unknown precision"),
        identity.get("teacher"),
        found["imported_from"],
    )
    if source:
        how = f"imported from {source} as {teacher.get('as')} of {teacher.get('of')}"
    lines.append(f"teacher     {provenance.get('teacher', 'unknown')}, {how}")
    for name, texts in stored_prompts(identity).items():
        lines.append(f"prompt      {name}: {' | '.join(texts)}")
    lines += _head_lines(identity)
    for name, shape in found["features"].items():
        lines.append(f"feature     {name}: {' x '.join(str(n) for n in shape) or 'one number'}, float16")
    lines += [f"{name:11} {found[name]}" for name in ("recipe_id", "cache_id", "content_id")]
    lines.append(f"built       {provenance.get('created', 'unknown')}")
    for task, report in reports.items():
        from pipeline.gate.check import long_lines  # loads torch, for which nobody waits who asks about the file alone

        lines += [f"of task     {task}"] if len(reports) > 1 else []
        lines += long_lines(report)
    return "\n".join(map(printable, lines))
