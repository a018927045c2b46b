"""Rows on their way to a segment: checked, converted to the file's dtypes, sorted into a table.

Never touches a file and knows nothing of what is done. Run: `softlabel cache build DATA -o t.h5`.

Legend: R rows = (sample, view), V views of one sample, P view columns, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.errors import CacheMismatch
from cache.layout import FEATURE_NAME, KEY_BYTES, WITNESS_COLUMNS, Table, encode_name, logits_dtype, sortable
from cache.manifest import Manifest

Pair = tuple[bytes, int]
FeatureShapes = dict[str, tuple[int, ...]]
EMBEDDING = "embedding"
"""The feature that logits were made from."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SampleRows:
    """Some views of one sample, as they will be stored: arrays of V rows each, owned by nobody else."""

    key: bytes
    views: list[int]
    params: np.ndarray
    witness: np.ndarray
    logits: list[np.ndarray]
    features: dict[str, np.ndarray]
    name: str | None

    @property
    def pairs(self) -> list[Pair]:
        """(key, view) of each row."""
        return [(self.key, view) for view in self.views]

    @property
    def feature_shapes(self) -> FeatureShapes:
        """Feature name -> shape of one row's value."""
        return {name: value.shape[1:] for name, value in self.features.items()}


def checked_rows(
    manifest: Manifest,
    key: bytes,
    views: Any,
    params: Any,
    witness: Any,
    logits: Mapping[str, Any],
    features: Mapping[str, Any],
    name: str | None,
) -> SampleRows:
    """Convert one sample's arrays, copying them; CacheMismatch names what does not fit or is not finite."""
    key = bytes(key)
    if len(key) != KEY_BYTES:
        raise CacheMismatch(f"a key has {KEY_BYTES} bytes, got {len(key)}")
    if name is not None:
        encode_name(name)
    if set(logits) != set(manifest.tasks):
        raise CacheMismatch(f"logits of the tasks {sorted(logits)}, expected {sorted(manifest.tasks)}")
    if bad := [feature for feature in features if not FEATURE_NAME.fullmatch(feature)]:
        raise CacheMismatch(f"feature name {bad[0]!r}: use letters, digits and _")
    checked_views = _views(views)
    n_views = len(checked_views)
    return SampleRows(
        key=key,
        views=checked_views,
        params=_as("params", params, "<f4", (n_views, len(manifest.view_columns))),
        witness=_as("witness", witness, "|u1", (n_views, WITNESS_COLUMNS)),
        logits=[
            _as(f"logits of {task!r}", logits[task], logits_dtype(len(classes)).str, (n_views, len(classes)))
            for task, classes in manifest.tasks.items()
        ],
        features={
            feature: _as(f"feature {feature!r}", value, "<f2", (n_views, *np.shape(value)[1:]))
            for feature, value in features.items()
        },
        name=name,
    )


def in_words(features: Mapping[str, tuple[int, ...]]) -> str:
    """ "embeddings (32 numbers)", or "no embeddings"; with "and the feature seen", if there are others."""
    shape = features.get(EMBEDDING)
    found = "no embeddings" if shape is None else f"embeddings ({' x '.join(map(str, shape)) or 'one'} numbers)"
    others = ", ".join(name for name in features if name != EMBEDDING)
    return f"{found} and the feature{'s' * (len(features) - (shape is not None) > 1)} {others}" if others else found


class RowBuffer:
    """Rows that wait for their segment."""

    def __init__(self) -> None:
        self.pairs: dict[Pair, tuple[SampleRows, int]] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def add(self, sample: SampleRows) -> None:
        """Take rows in, none of which may be there yet."""
        assert self.pairs.keys().isdisjoint(sample.pairs)
        self.pairs.update((pair, (sample, at)) for at, pair in enumerate(sample.pairs))

    def table(self, tasks: list[str]) -> Table:
        """The rows, sorted by key, then view; names only if every sample has one."""
        rows = [self.pairs[pair] for pair in sorted(self.pairs)]
        names = {sample.key: sample.name for sample, _ in rows if sample.name is not None}
        row_keys = np.frombuffer(b"".join(sample.key for sample, _ in rows), np.uint8).reshape(-1, KEY_BYTES)
        key = np.unique(sortable(row_keys)).view(np.uint8).reshape(-1, KEY_BYTES)
        keys = [bytes(one) for one in key]
        first_row = np.append(np.searchsorted(sortable(row_keys), sortable(key)), len(rows))
        return Table(
            key=key,
            first_row=first_row.astype("<u8"),
            view=np.array([sample.views[at] for sample, at in rows], "<u2"),
            params=np.stack([sample.params[at] for sample, at in rows]),
            witness=np.stack([sample.witness[at] for sample, at in rows]),
            logits={
                task: np.stack([sample.logits[index][at] for sample, at in rows]) for index, task in enumerate(tasks)
            },
            features={
                name: np.stack([sample.features[name][at] for sample, at in rows]) for name in rows[0][0].features
            },
            names=[names[one] for one in keys] if len(names) == len(keys) else None,
        )


def _views(views: Any) -> list[int]:
    array = np.asarray(views)
    if array.ndim != 1 or array.dtype.kind not in "iu" or len(array) == 0:
        raise CacheMismatch(f"views are {array.dtype} {array.shape}, expected one or more integers")
    if len(np.unique(array)) < len(array) or array.min() < 0 or array.max() > 0xFFFF:
        raise CacheMismatch(f"views {array.tolist()[:8]} must be distinct and within 0..65535")
    return array.tolist()


def _as(what: str, value: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A fresh array of this dtype and shape, finite as stored."""
    array = np.asarray(value)
    if array.shape != shape:
        raise CacheMismatch(f"{what}: shape {array.shape}, expected {shape}")
    if array.dtype.kind not in ("u" if dtype == "|u1" else "fiu") or (dtype == "|u1" and array.dtype != np.uint8):
        raise CacheMismatch(f"{what}: {array.dtype}, expected {np.dtype(dtype)}")
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    if not np.isfinite(stored).all():
        raise CacheMismatch(f"{what}: not finite as {np.dtype(dtype)} (largest before: {np.abs(array).max()})")
    return stored
