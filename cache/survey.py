"""Several caches of one recipe taken as one table: which row stands where, and whether the caches agree.

Reads the small tables alone, and writes nothing; `cache.combine` makes a file of it, `cache.union` a reader.
Run: `softlabel cache merge A.h5 B.h5 -o OUT.h5`

Legend: N samples, R rows = (sample, view), E entries = (source, sample).
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import CacheMismatch
from cache.layout import KEY_BYTES, Dims, sortable
from cache.manifest import SKIPPED, SKIPPED_FILES, Manifest
from cache.reader import CacheReader
from cache.recipes import apart
from cache.rows import EMBEDDING, FeatureShapes, in_words
from cache.search import KeyColumn, as_keys, first_integers

MERGED_FROM = "merged_from"
"""The field of the provenance that counts the files whose rows stand in this one."""
# Two devices give two answers to one question; by the recipe's precision, in logits.
TOLERANCE_LOGITS = {"fp32": 1e-4, "fp16": 0.1, "bf16": 1.0}


@dataclass(frozen=True, eq=False)
class Survey:
    """The small tables of one source."""

    path: Path
    seal: bytes
    manifest: Manifest
    dims: Dims
    key: np.ndarray
    """uint8 (N,16)."""
    first_row: np.ndarray
    """uint64 (N+1,)."""
    view: np.ndarray
    """uint16 (R,)."""
    names: np.ndarray | None
    """Bytes of fixed width (N,), as stored."""

    @classmethod
    def of(cls, path: Path, reader: CacheReader) -> "Survey":
        """Those of an open cache, which messages call `path`."""
        names = reader.stored_names()
        return cls(path, reader.seal, reader.manifest, reader.dims, reader.keys, reader.first_row, reader.view, names)


@dataclass(frozen=True, eq=False)
class Plan:
    """The merged small tables, and for each source where its rows go and which of them are the first of their kind."""

    key: np.ndarray
    first_row: np.ndarray
    view: np.ndarray
    names: np.ndarray | None
    """Bytes of fixed width (N,), no wider than the longest."""
    target_rows: list[np.ndarray]
    """Ascending; int32, or int64 where that is too narrow."""
    is_first: list[np.ndarray]

    def dims(self, like: Dims, manifest: Manifest) -> Dims:
        """The sizes of the file that holds all of it, with the columns and features of a source."""
        return Dims(
            manifest_bytes=len(manifest.to_bytes()),
            n_samples=len(self.key),
            n_rows=len(self.view),
            n_params=like.n_params,
            class_counts=like.class_counts,
            features=like.features,
            name_bytes=None if self.names is None else self.names.dtype.itemsize,
        )


def tolerance_logits(manifest: Manifest) -> float:
    """How far two honest answers may lie apart, in logits."""
    precision = manifest.identity.get("precision")
    return TOLERANCE_LOGITS.get(precision, TOLERANCE_LOGITS["fp32"]) if isinstance(precision, str) else 1e-4


def check_recipes(surveys: Sequence[Survey]) -> None:
    """CacheMismatch where a source is of another recipe than the first one."""
    first = surveys[0]
    for other in surveys[1:]:
        names = str(first.path), str(other.path)
        found = apart(first.manifest.identity, other.manifest.identity, names, "the first against the second")
        if found is not None:
            remedy = ", or build it anew with the settings of the other" if found.fields else ""
            raise CacheMismatch(
                f"{first.path} and {other.path} are of other recipes{found.reason}: leave one of them out{remedy}"
                f"{found.fields}"
            )


def shared_features(surveys: Sequence[Survey]) -> FeatureShapes:
    """What a reader of several caches can give of every row: embeddings only where all have them.

    Nobody misses those who has logits; CacheMismatch where any other feature is not in all of them.
    """
    first = surveys[0]
    has_embeddings = all(one.dims.features.get(EMBEDDING) == first.dims.features.get(EMBEDDING) for one in surveys)
    left_out = () if has_embeddings else (EMBEDDING,)
    found = [{name: shape for name, shape in one.dims.features.items() if name not in left_out} for one in surveys]
    for other, features in zip(surveys, found, strict=True):
        if features != found[0]:
            raise CacheMismatch(f"{_features_of(first, other)}: leave one of them out")
    return found[0]


def check_features(surveys: Sequence[Survey]) -> None:
    """CacheMismatch where a source has other features than the first one: a file has them for all rows or for none."""
    first = surveys[0]
    for other in surveys[1:]:
        if other.dims.features == first.dims.features:
            continue
        shared_features([first, other])
        words = shlex.join(["softlabel", "train", "DATA", *(str(survey.path) for survey in surveys)])
        raise CacheMismatch(
            f"{_features_of(first, other)}: build both with --embedding or both with --no-embedding, or train on them "
            f"as they are, which needs none: {words} -o RUN"
        )


def _features_of(first: Survey, other: Survey) -> str:
    return " and ".join(f"{one.path} has {in_words(one.dims.features)}" for one in (first, other))


def planned(surveys: Sequence[Survey]) -> Plan:
    """Sort all samples by key, then source, and the rows of those that several sources have by view, then source.

    The first of each (key, view) gives the output row. Rows of a sample that one source alone has stay as they are:
    at ten million samples no array is wider than four bytes a row.
    """
    # An entry is a sample of a source. Sources are sorted by themselves, so that a stable sort only merges them.
    keys_E = np.concatenate([survey.key for survey in surveys])
    begin_E, count_E = _row_ranges(surveys)
    order_E = _order_of(keys_E)
    ids = sortable(keys_E)[order_E]
    starts = np.r_[True, ids[1:] != ids[:-1]]
    sample_E = np.empty(len(order_E), np.int64)
    sample_E[order_E] = np.cumsum(starts) - 1
    key = keys_E[order_E[starts]]
    is_shared_N = np.bincount(sample_E) > 1
    shared_E = order_E[is_shared_N[sample_E[order_E]]]
    shared = _Shared.of(surveys, sample_E[shared_E], begin_E[shared_E], count_E[shared_E])
    count_N = np.zeros(len(key), np.int64)
    count_N[sample_E] = count_E
    count_N[is_shared_N] = np.bincount(shared.sample_R[shared.is_first_R], minlength=len(key))[is_shared_N]
    first_row = np.r_[0, np.cumsum(count_N)]
    target_R, is_first_R = _targets(surveys, first_row[sample_E] - begin_E, count_E)
    # Where the rows of the shared samples would stand, if there were no others.
    alone_N = np.zeros(len(key), np.int64)
    alone_N[is_shared_N] = np.r_[0, np.cumsum(count_N[is_shared_N])[:-1]] if is_shared_N.any() else 0
    target_R[shared.row_R] = np.cumsum(shared.is_first_R) - 1 + (first_row[:-1] - alone_N)[shared.sample_R]
    is_first_R[shared.row_R] = shared.is_first_R
    ends = np.cumsum([len(survey.view) for survey in surveys])[:-1]
    target_rows, is_first = np.split(target_R, ends), np.split(is_first_R, ends)
    view = np.empty(first_row[-1], np.dtype("<u2"))
    for survey, targets, own in zip(surveys, target_rows, is_first, strict=True):
        view[targets[own]] = survey.view[own]
    names = _names(surveys, sample_E, len(key))
    return Plan(key, first_row.astype("<u8"), view, names, target_rows, is_first)


def _row_ranges(surveys: Sequence[Survey]) -> tuple[np.ndarray, np.ndarray]:
    """First row and number of rows of every sample of every source, as if the sources' rows stood one after another."""
    offsets = np.cumsum([0, *(len(survey.view) for survey in surveys)])
    firsts = [survey.first_row.astype(np.int64) for survey in surveys]
    begins = [first[:-1] + offset for first, offset in zip(firsts, offsets[:-1].tolist(), strict=True)]
    return np.concatenate(begins), np.concatenate([np.diff(first) for first in firsts])


def _order_of(keys: np.ndarray) -> np.ndarray:
    """The stable order of keys, int64 (M,): by their first eight bytes, and by all where these are not enough."""
    order = np.argsort(first_integers(keys), kind="stable")
    ids = sortable(keys)[order]
    return order if (ids[1:] >= ids[:-1]).all() else np.argsort(sortable(keys), kind="stable")


@dataclass(frozen=True, eq=False)
class _Shared:
    """The rows of samples that several sources have, sorted by sample, view, source."""

    row_R: np.ndarray
    """As if the sources' rows stood one after another."""
    sample_R: np.ndarray
    is_first_R: np.ndarray

    @classmethod
    def of(cls, surveys: Sequence[Survey], sample_E: np.ndarray, begin_E: np.ndarray, count_E: np.ndarray) -> "_Shared":
        if not len(sample_E):
            return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool))
        before_E = np.cumsum(count_E) - count_E
        row_R = np.repeat(begin_E - before_E, count_E) + np.arange(count_E.sum())
        view_R = np.concatenate([survey.view for survey in surveys])[row_R]
        code_R = np.repeat(sample_E, count_E) << 16 | view_R
        order = np.argsort(code_R, kind="stable")
        code_R = code_R[order]
        return cls(row_R[order], code_R >> 16, np.r_[True, code_R[1:] != code_R[:-1]])


def _targets(surveys: Sequence[Survey], shift_E: np.ndarray, count_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(target row, whether it is the first) of every row, if every sample had one source; a source at a time."""
    n_rows = int(count_E.sum())
    target_R: np.ndarray = np.arange(n_rows, dtype=np.int32 if n_rows < 1 << 31 else np.int64)
    row, entry = 0, 0
    for survey in surveys:
        more = entry + len(survey.key)
        target_R[row : row + len(survey.view)] += np.repeat(
            shift_E[entry:more].astype(target_R.dtype), count_E[entry:more]
        )
        row, entry = row + len(survey.view), more
    return target_R, np.ones(n_rows, bool)


def merged_provenance(surveys: Sequence[Survey], plan: Plan) -> dict[str, Any]:
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
        reasons = _not_among(plan.key, reasons)
    listed = [{"key": key, "reason": reason} for key, reason in sorted(reasons.items())]
    return provenance | ({SKIPPED: listed} if listed else {}) | ({SKIPPED_FILES: counts} if counts else {})


def _not_among(keys: np.ndarray, reasons: dict[str, str]) -> dict[str, str]:
    """Those whose key in hex is none of these keys; what is no key at all stays."""
    is_key = re.compile(f"[0-9a-f]{{{2 * KEY_BYTES}}}").fullmatch
    asked = [key for key in reasons if is_key(key)]
    found = KeyColumn(keys).find(as_keys(map(bytes.fromhex, asked)))
    gone = {key for key, at in zip(asked, found.tolist(), strict=True) if at >= 0}
    return {key: reason for key, reason in reasons.items() if key not in gone}


def must_agree(name: str) -> bool:
    """Whether two sources may not differ in this object of a row that both have."""
    return name == "rows/params" or name.startswith("logits/")


def check_agreement(name: str, values: np.ndarray, kept: np.ndarray, survey: Survey) -> None:
    """CacheMismatch for other params, and logits beyond the tolerance, than those that an earlier source has."""
    if name == "rows/params":
        bad, limit = (kept != values).any(axis=1), "equal params"
    else:
        tolerance = tolerance_logits(survey.manifest)
        bad, limit = beyond(values, kept, tolerance).any(axis=1), f"logits within {tolerance:g}"
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise CacheMismatch(
            f"{survey.path} and an earlier source disagree in {name} in {int(bad.sum())} of {len(bad)} shared rows, "
            f"expected {limit} (first: {values[row].tolist()[:4]} against {kept[row].tolist()[:4]}): "
            f"leave one of them out, or find out which one is wrong with `softlabel cache verify`"
        )


def beyond(values: np.ndarray, kept: np.ndarray, tolerance: float) -> np.ndarray:
    """Which numbers lie further apart than the tolerance, and one step of float16 where that is stored."""
    with np.errstate(invalid="ignore"):  # of rows that nobody has verified yet, any bits may come
        step = np.spacing(np.maximum(np.abs(kept), np.abs(values))) if kept.dtype == np.float16 else 0
        away = np.abs(kept.astype(np.float64) - values.astype(np.float64))
    return ~(away <= tolerance + step)


def _names(surveys: Sequence[Survey], sample_E: np.ndarray, n_samples: int) -> np.ndarray | None:
    """One name a sample, the first source's; None unless every source has names."""
    stored = [survey.names for survey in surveys if survey.names is not None]
    if len(stored) < len(surveys):
        return None
    found = np.empty(n_samples, f"S{max(names.itemsize for names in stored)}")
    end = len(sample_E)
    for names in reversed(stored):
        found[sample_E[end - len(names) : end]] = names
        end -= len(names)
    return found.astype(f"S{max(1, int(np.char.str_len(found).max()))}", copy=False)
