"""Several caches of one recipe taken as one table: which row stands where, and whether the caches agree.

Reads the small tables alone, and writes nothing; `cache.combine` makes a file of it, `cache.union` a reader.
Run: `softlabel cache merge A.h5 B.h5 -o OUT.h5`

Legend: N samples, R rows = (sample, view).
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import CacheMismatch
from cache.layout import KEY_BYTES, Dims, encode_name, sortable
from cache.manifest import SKIPPED, SKIPPED_FILES, Manifest
from cache.reader import CacheReader
from cache.recipes import apart
from cache.rows import EMBEDDING, FeatureShapes, in_words

MERGED_FROM = "merged_from"
"""The field of the provenance that counts the files whose rows stand in this one."""
# Two devices give two answers to one question; by the recipe's precision, in logits.
TOLERANCE_LOGITS = {"fp32": 1e-4, "fp16": 0.1, "bf16": 1.0}


@dataclass(frozen=True, eq=False)
class Survey:
    """The small tables of one source, one entry a row."""

    path: Path
    seal: bytes
    manifest: Manifest
    dims: Dims
    key_R: np.ndarray
    view_R: np.ndarray
    names: list[str] | None

    @classmethod
    def of(cls, path: Path, reader: CacheReader) -> "Survey":
        """Those of an open cache, which messages call `path`."""
        key_R = sortable(reader.keys)[reader.sample_of_row]
        return cls(path, reader.seal, reader.manifest, reader.dims, key_R, reader.view, reader.names)


@dataclass(frozen=True, eq=False)
class Plan:
    """The merged small tables, and for each source where its rows go and which of them are the first of their kind."""

    key: np.ndarray
    first_row: np.ndarray
    view: np.ndarray
    names: list[str] | None
    target_rows: list[np.ndarray]
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
            name_bytes=None if self.names is None else max(1, *(len(encode_name(name)) for name in self.names)),
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
    return Plan(
        key=key,
        first_row=np.r_[first_row, len(row_keys)].astype("<u8"),
        view=views[starts_row],
        names=_names(surveys, key),
        target_rows=np.split(target, ends),
        is_first=np.split(is_first, ends),
    )


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
        for key in plan.key:
            reasons.pop(bytes(key).hex(), None)
    listed = [{"key": key, "reason": reason} for key, reason in sorted(reasons.items())]
    return provenance | ({SKIPPED: listed} if listed else {}) | ({SKIPPED_FILES: counts} if counts else {})


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


def _names(surveys: Sequence[Survey], key: np.ndarray) -> list[str] | None:
    """One name a sample, the first source's; None unless every source has names."""
    found: dict[bytes, str] = {}
    for survey in reversed(surveys):
        if survey.names is None:
            return None
        unique = np.unique(survey.key_R).view(np.uint8).reshape(-1, KEY_BYTES)
        found.update(zip(map(bytes, unique), survey.names, strict=True))
    return [found[bytes(one)] for one in key]
