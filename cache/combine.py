"""Merge sealed files of one recipe into one sealed file, row by row, first source first.

Never recomputes, repairs or averages a row. Memory is bounded: one source is open at a time, and its rows are scattered
straight to their places. Run: `softlabel cache merge A.h5 B.h5 -o OUT.h5`

Legend: R rows = (sample, view), S sources.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache import durable
from cache.errors import CacheDamaged, CacheMismatch
from cache.fill import NewFile, put_names
from cache.layout import KEY_BYTES, Dims, encode_name, is_big, sortable
from cache.manifest import SKIPPED, SKIPPED_FILES, Manifest, differences
from cache.reader import CacheReader
from cache.workspace import SEGMENT_SUFFIX, Workspace, visible

log = logging.getLogger(__name__)

# Two devices give two answers to one question; by the recipe's precision, in logits.
TOLERANCE_LOGITS = {"fp32": 1e-4, "fp16": 0.1, "bf16": 1.0}
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, eq=False)
class _Survey:
    """The small tables of one source, one entry a row."""

    path: Path
    seal: bytes
    manifest: Manifest
    dims: Dims
    key_R: np.ndarray
    view_R: np.ndarray
    names: list[str] | None


@dataclass(frozen=True, eq=False)
class _Plan:
    """The merged small tables, and for each source where its rows go and which of them are the first of their kind."""

    key: np.ndarray
    first_row: np.ndarray
    view: np.ndarray
    names: list[str] | None
    target_rows: list[np.ndarray]
    is_first: list[np.ndarray]


def merge(sources: Sequence[str | Path], out: str | Path) -> CacheReader:
    """Merge caches into the new file `out` and open it; a folder among the sources stands for the caches in it.

    `out` exists whole and verified, or not at all; the sources stay as they are. Raises CacheBusy while another process
    makes the same `out`, and CacheMismatch for other recipes, and for rows in two sources that differ beyond the
    precision's tolerance.
    """
    workspace, paths = Workspace(Path(out)), _files(map(Path, sources))
    out = workspace.out
    if not paths:
        raise CacheMismatch(f"nothing to merge into {out}: name one cache or more")
    if out.exists():
        raise CacheMismatch(f"{out} exists already: choose another -o, or remove it first")
    with workspace:
        merge_locked(paths, out, workspace.folder, {"merged_from": len(paths)}, replace=False)
    return CacheReader(out)


def merge_locked(
    paths: Sequence[Path], out: Path, temp_folder: Path, provenance: Mapping[str, Any], *, replace: bool
) -> None:
    """The same for the holder of the lock of `out`, which with `replace` exists and is one of the sources.

    `temp_folder` (same disk) takes the unfinished file, `provenance` replaces fields of the sources'.
    """
    surveys = [_survey(path) for path in paths]
    _check_recipes(surveys)
    plan = _plan(surveys)
    manifest = Manifest(surveys[0].manifest.identity, {**_provenance(surveys, plan), **provenance})
    replaced = next(survey.seal for survey in surveys if survey.path == out) if replace else None
    nameless = [survey.path for survey in surveys if survey.names is None]
    if 0 < len(nameless) < len(surveys):
        log.warning("%s stores no names: %s has none, and they are for all samples or for none", out, nameless[0])
    temp = durable.temp_name(out, temp_folder)
    try:
        with NewFile(temp, _dims(plan, surveys[0].dims, manifest).specs()) as new:
            _put_small(new, plan)
            for index, survey in enumerate(surveys):
                _put_source(new, survey, plan.target_rows[index], plan.is_first[index])
            new.seal(manifest)
        with CacheReader(temp, memory_map=False) as written:
            written.verify()
        _publish(temp, out, replaced)
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)
    log.info("%s: %d rows of %d samples from %d files", out, len(plan.view), len(plan.key), len(paths))


def tolerance_logits(manifest: Manifest) -> float:
    """How far two honest answers may lie apart, in logits."""
    precision = manifest.identity.get("precision")
    return TOLERANCE_LOGITS.get(precision, TOLERANCE_LOGITS["fp32"]) if isinstance(precision, str) else 1e-4


def _files(sources: Iterable[Path]) -> list[Path]:
    """Each file once, in the order of the sources; in a folder by name."""
    found: dict[Path, Path] = {}
    for source in sources:
        inside = visible(source, SEGMENT_SUFFIX) if source.is_dir() else [source]
        if not inside:
            raise CacheMismatch(f"{source} is a folder without caches: expected files named *{SEGMENT_SUFFIX} in it")
        for path in inside:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _survey(path: Path) -> _Survey:
    reader = CacheReader(path, memory_map=False)
    key_R = sortable(reader.keys)[reader.sample_of_row]
    return _Survey(path, reader.seal, reader.manifest, reader.dims, key_R, reader.view, reader.names)


def _check_recipes(surveys: list[_Survey]) -> None:
    first = surveys[0]
    for other in surveys[1:]:
        if found := differences(first.manifest.identity, other.manifest.identity):
            raise CacheMismatch(f"{first.path} and {other.path} are of other recipes:\n  " + "\n  ".join(found))
        if other.dims.features != first.dims.features:
            raise CacheMismatch(
                f"{first.path} has the features {first.dims.features}, {other.path} has {other.dims.features}: "
                f"merge caches with the same features"
            )


def _plan(surveys: list[_Survey]) -> _Plan:
    """Sort all rows by key, view, source; the first of each (key, view) gives the output row."""
    keys = np.concatenate([survey.key_R for survey in surveys])
    views = np.concatenate([survey.view_R for survey in surveys])
    sources = np.repeat(np.arange(len(surveys)), [len(survey.view_R) for survey in surveys])
    order = np.lexsort((sources, views, keys))
    keys, views = keys[order], views[order]
    starts_sample = np.r_[True, keys[1:] != keys[:-1]]
    starts_row = starts_sample | np.r_[True, views[1:] != views[:-1]]
    target = np.empty(len(order), np.int64)
    target[order] = np.cumsum(starts_row) - 1
    is_first = np.empty(len(order), bool)
    is_first[order] = starts_row
    row_keys = keys[starts_row]
    first_row = np.flatnonzero(np.r_[True, row_keys[1:] != row_keys[:-1]])
    ends = np.cumsum([len(survey.view_R) for survey in surveys])[:-1]
    key = np.frombuffer(row_keys[first_row].tobytes(), np.uint8).reshape(-1, KEY_BYTES)
    return _Plan(
        key=key,
        first_row=np.r_[first_row, len(row_keys)].astype("<u8"),
        view=views[starts_row],
        names=_names(surveys, key),
        target_rows=np.split(target, ends),
        is_first=np.split(is_first, ends),
    )


def _names(surveys: list[_Survey], key: np.ndarray) -> list[str] | None:
    """One name a sample, the first source's; None unless every source has names."""
    found: dict[bytes, str] = {}
    for survey in reversed(surveys):
        if survey.names is None:
            return None
        unique = np.unique(survey.key_R).view(np.uint8).reshape(-1, KEY_BYTES)
        found.update(zip(map(bytes, unique), survey.names, strict=True))
    return [found[bytes(one)] for one in key]


def _provenance(surveys: list[_Survey], plan: _Plan) -> dict[str, Any]:
    """The first source's, with the skipped samples of all sources that none of them has rows of.

    Files without bytes are known by number only: the largest one of each reason, as the sources may share them.
    """
    own = (SKIPPED, SKIPPED_FILES)
    provenance = {name: value for name, value in surveys[0].manifest.provenance.items() if name not in own}
    reasons: dict[str, str] = {}
    counts: dict[str, int] = {}
    for survey in surveys:
        reasons = survey.manifest.skipped | reasons
        counts |= {reason: max(n, counts.get(reason, 0)) for reason, n in survey.manifest.skipped_files.items()}
    if reasons:
        for key in plan.key:
            reasons.pop(bytes(key).hex(), None)
    listed = [{"key": key, "reason": reason} for key, reason in sorted(reasons.items())]
    return provenance | ({SKIPPED: listed} if listed else {}) | ({SKIPPED_FILES: counts} if counts else {})


def _dims(plan: _Plan, like: Dims, manifest: Manifest) -> Dims:
    return Dims(
        manifest_bytes=len(manifest.to_bytes()),
        n_samples=len(plan.key),
        n_rows=len(plan.view),
        n_params=like.n_params,
        class_counts=like.class_counts,
        features=like.features,
        name_bytes=None if plan.names is None else max(1, *(len(encode_name(name)) for name in plan.names)),
    )


def _put_small(new: NewFile, plan: _Plan) -> None:
    new.put("samples/key", plan.key)
    new.put("samples/first_row", plan.first_row)
    new.put("rows/view", plan.view)
    if plan.names is not None:
        put_names(new, plan.names)


def _put_source(new: NewFile, survey: _Survey, target_rows: np.ndarray, is_first: np.ndarray) -> None:
    """Scatter a source's own rows; compare the others with what an earlier source put in their place."""
    with CacheReader(survey.path, memory_map=False) as reader:
        if reader.seal != survey.seal:
            raise CacheMismatch(f"{survey.path} changed during the merge: run it again")
        reader.verify()
        for name, spec in reader.dims.specs().items():
            if not is_big(name):
                continue
            step = max(1, _CHUNK_BYTES * spec.shape[0] // spec.n_bytes)
            for start in range(0, len(target_rows), step):
                part = slice(start, min(start + step, len(target_rows)))
                values, targets, first = reader.read_object(name, part), target_rows[part], is_first[part]
                if values.dtype.kind == "f" and not np.isfinite(values).all():
                    raise CacheDamaged(f"{survey.path} has numbers in {name} that are not finite: leave it out")
                new.scatter(name, values[first], targets[first])
                if not first.all():
                    _compare(new, name, values[~first], targets[~first], survey)


def _compare(new: NewFile, name: str, values: np.ndarray, targets: np.ndarray, survey: _Survey) -> None:
    """Refuse other params, and logits beyond the tolerance (widened by one step of float16 where that is stored)."""
    if name != "rows/params" and not name.startswith("logits/"):
        return
    kept = new.gather(name, targets)
    if name == "rows/params":
        bad, limit = (kept != values).any(axis=1), "equal params"
    else:
        tolerance = tolerance_logits(survey.manifest)
        step = np.spacing(np.maximum(np.abs(kept), np.abs(values))) if kept.dtype == np.float16 else 0
        away = np.abs(kept.astype(np.float64) - values.astype(np.float64))
        bad, limit = ~(away <= tolerance + step).all(axis=1), f"logits within {tolerance:g}"
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise CacheMismatch(
            f"{survey.path} and an earlier source disagree in {name} in {int(bad.sum())} of {len(bad)} shared rows, "
            f"expected {limit} (first: {values[row].tolist()[:4]} against {kept[row].tolist()[:4]}): "
            f"leave one of them out, or find out which one is wrong with `softlabel cache verify`"
        )


def _publish(temp: Path, out: Path, replaced: bytes | None) -> None:
    """Give the file its name: a new one, or that of the cache with the seal `replaced`, and of no other."""
    with durable.disk_errors(out, 4096):
        if replaced is not None:
            if CacheReader(out, memory_map=False).seal != replaced:
                raise CacheMismatch(
                    f"{out} was replaced during the merge and was left alone: run the same command again"
                )
            durable.publish_replace(temp, out)
        elif not durable.publish_new(temp, out):
            raise CacheMismatch(f"{out} appeared during the merge and was left alone: choose another -o")
