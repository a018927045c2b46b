"""Write a cache of the samples, views and witnesses of another one, with other logits and features.

Never computes them, and never changes the other file; what is copied goes through memory piece by piece.
Run: `softlabel cache rehead t.h5 --prompts new.yaml -o new.h5`

Legend: R rows = (sample, view), C classes.
"""

import dataclasses
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from cache import durable
from cache.errors import CacheMismatch
from cache.fill import NewFile, put_names
from cache.layout import FEATURE_NAME, Dims, Spec, encode_name, is_big
from cache.manifest import Manifest
from cache.reader import CacheReader
from cache.workspace import Workspace


def derive(
    parent: CacheReader,
    out: str | Path,
    manifest: Manifest,
    logits: Mapping[str, np.ndarray],
    *,
    keep: Collection[str],
    features: Mapping[str, np.ndarray] | None = None,
) -> CacheReader:
    """Write the new file `out` and open it: rows, samples and the features in `keep` are those of `parent`.

    logits: task -> (R,C), of the dtype of `layout.logits_dtype`; features: name -> float16 (R, ...). `out` exists whole
    and verified, or not at all. CacheDamaged where the parent does not verify, CacheMismatch where `out` exists.
    """
    workspace = Workspace(Path(out))
    out, features = workspace.out, dict(features or {})
    if out.exists():
        raise CacheMismatch(f"{out} exists already: choose another -o, or remove it first")
    new_objects = {f"logits/{index}": logits[task] for index, task in enumerate(manifest.tasks)}
    new_objects |= {f"features/{name}": values for name, values in features.items()}
    dims = _dims(parent, manifest, {name: parent.features[name] for name in keep} | _tails(features))
    _check(new_objects, dims.specs())
    parent.verify()
    with workspace:
        temp = durable.temp_name(out, workspace.folder)
        try:
            with NewFile(temp, dims.specs()) as new:
                fill_from(parent, new, new_objects, names=True)
                new.seal(manifest)
            with CacheReader(temp, memory_map=False) as written:
                written.verify()
            with durable.disk_errors(out, dims.n_bytes):
                published = durable.publish_new(temp, out)
        finally:
            with suppress(OSError):
                temp.unlink(missing_ok=True)
    if not published:
        raise CacheMismatch(f"{out} appeared meanwhile and was left alone: choose another -o")
    return CacheReader(out)


def _tails(features: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: values.shape[1:] for name, values in features.items()}


def _dims(parent: CacheReader, manifest: Manifest, features: dict[str, tuple[int, ...]]) -> Dims:
    if manifest.view_columns != parent.manifest.view_columns:
        raise CacheMismatch("a derived cache has the view columns of its parent")
    if bad := [name for name in features if not FEATURE_NAME.fullmatch(name)]:
        raise CacheMismatch(f"feature name {bad[0]!r}: use letters, digits and _")
    return dataclasses.replace(
        parent.dims,
        manifest_bytes=len(manifest.to_bytes()),
        class_counts=tuple(len(classes) for classes in manifest.tasks.values()),
        features=features,
        name_bytes=None if parent.names is None else max(1, *(len(encode_name(name)) for name in parent.names)),
    )


def _check(objects: Mapping[str, np.ndarray], specs: Mapping[str, Spec]) -> None:
    for name, values in objects.items():
        found = Spec(values.dtype, values.shape)
        if found != specs[name]:
            raise CacheMismatch(f"{name} is {found}, expected {specs[name]}")
        if not np.isfinite(values).all():
            rows = np.unique(np.nonzero(~np.isfinite(values))[0])
            raise CacheMismatch(f"{name} is not finite in {len(rows)} of {len(values)} rows (first: {rows[0]})")


def fill_from(parent: CacheReader, new: NewFile, objects: Mapping[str, np.ndarray], *, names: bool) -> None:
    """Put `objects` into a new file and copy the others from `parent`; its names only with `names`."""
    new.put("samples/key", parent.keys)
    new.put("samples/first_row", parent.first_row)
    new.put("rows/view", parent.view)
    if names and parent.names is not None:
        put_names(new, parent.names)
    for name, (spec, _) in new.extents.items():
        if name in objects:
            new.put(name, objects[name])
        elif is_big(name):
            for part in spec.stretches():
                new.put(name, parent.read_object(name, part), part.start)
