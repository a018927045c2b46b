"""Small caches with known content, for the tests and for the child processes that they kill."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache import CacheReader, Manifest, SegmentedWriter, Table
from cache.fill import write_table


def manifest(**changes: Any) -> Manifest:
    """Two tasks, three view columns; keyword arguments replace fields of the identity."""
    identity = {
        "tasks": [{"name": "class", "classes": ["mel", "nv", "bkl"]}, {"name": "sex/é", "classes": ["f", "m"]}],
        "view_columns": ["x", "y", "hflip"],
        "teacher": {"weights": "00ff", "scale": (112.5).hex()},
        "precision": "fp32",
    }
    return Manifest(identity | changes, {"host": "here", "wall_s": 1.5})


def table(seed: int = 0, n_samples: int = 5, max_views: int = 4, names: bool = True) -> Table:
    """Random rows of `manifest()`; keys share long prefixes and end in NULs now and then."""
    rng = np.random.default_rng(seed)
    key = rng.integers(0, 256, (n_samples, 16), dtype=np.uint8)
    key[:, 1:14] = 7
    key[::2, 13:] = 0
    key = np.unique(key, axis=0)
    views = [np.sort(rng.choice(2 * max_views, rng.integers(1, max_views + 1), replace=False)) for _ in key]
    n_rows = sum(map(len, views))
    return Table(
        key=key,
        first_row=np.cumsum([0, *map(len, views)]).astype("<u8"),
        view=np.concatenate(views).astype("<u2"),
        params=rng.random((n_rows, 3)).astype("<f4"),
        witness=rng.integers(0, 256, (n_rows, 12), dtype=np.uint8),
        logits={
            "class": rng.normal(size=(n_rows, 3)).astype("<f4"),
            "sex/é": rng.normal(size=(n_rows, 2)).astype("<f4"),
        },
        features={"embedding": rng.normal(size=(n_rows, 2, 3)).astype("<f2")},
        names=[f"mel/ä {index}.jpg" for index in range(len(key))] if names else None,
    )


def of_rows(rows: Table, chosen: Iterable[int]) -> Table:
    """The table of some rows, ascending; samples without any go."""
    kept = np.array(list(chosen), np.int64)
    owner = np.repeat(np.arange(len(rows.key)), np.diff(rows.first_row.astype(int)))[kept]
    samples, counts = np.unique(owner, return_counts=True)
    return Table(
        key=rows.key[samples],
        first_row=np.cumsum([0, *counts]).astype("<u8"),
        view=rows.view[kept],
        params=rows.params[kept],
        witness=rows.witness[kept],
        logits={task: values[kept] for task, values in rows.logits.items()},
        features={name: values[kept] for name, values in rows.features.items()},
        names=None if rows.names is None else [rows.names[at] for at in samples],
    )


def part(rows: Table, samples: Iterable[int]) -> Table:
    """The table of some samples."""
    return of_rows(rows, [row for at in samples for row in range(int(rows.first_row[at]), int(rows.first_row[at + 1]))])


def nudged(rows: Table, by: float) -> Table:
    """The same rows with other answers."""
    logits = rows.logits | {"class": rows.logits["class"] + np.float32(by)}
    return Table(**{**vars(rows), "logits": logits})


def write(path: Path, rows: Table, manifest_: Manifest | None = None) -> Path:
    """One sealed file."""
    write_table(path, manifest_ or manifest(), rows)
    return path


def rows_one_by_one(rows: Table) -> list[dict[str, Any]]:
    """The arguments of one `SegmentedWriter.add` per row."""
    found = []
    for sample in range(len(rows.key)):
        for row in range(int(rows.first_row[sample]), int(rows.first_row[sample + 1])):
            part = slice(row, row + 1)
            found.append(
                {
                    "key": bytes(rows.key[sample]),
                    "views": rows.view[part],
                    "params": rows.params[part],
                    "witness": rows.witness[part],
                    "logits": {task: values[part] for task, values in rows.logits.items()},
                    "features": {name: values[part] for name, values in rows.features.items()},
                    "name": rows.names[sample] if rows.names else None,
                }
            )
    return found


def add_missing(writer: SegmentedWriter, adds: Iterable[dict[str, Any]]) -> int:
    """Add what is not done yet; how many rows that were."""
    missing = [add for add in adds if (add["key"], int(add["views"][0])) not in writer.done]
    for add in missing:
        writer.add(**add)
    return len(missing)


def build(out: Path, rows: Table, segment_rows: int = 4, manifest_: Manifest | None = None) -> CacheReader:
    """A whole run of a writer over these rows."""
    with SegmentedWriter(out, manifest_ or manifest(), {"batch": 8}, segment_rows=segment_rows) as writer:
        add_missing(writer, rows_one_by_one(rows))
        return writer.finish()


def objects(path: Path) -> dict[str, np.ndarray]:
    """Every object of a file, by plain h5py."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(path, "r", locking=False) as h5:
        h5.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Object name -> first byte in the file, number of bytes, by plain h5py."""
    found: dict[str, tuple[int, int]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = (item.id.get_offset(), item.id.get_storage_size())

    with h5py.File(path, "r", locking=False) as h5:
        h5.visititems(visit)
    return found


def rewrite(source: Path, target: Path, change: Callable[[dict[str, Any]], Any], **dataset: Any) -> Path:
    """A copy by plain h5py with changed objects and the old seal and CRCs; `dataset` are options of `logits/0`."""
    arrays: dict[str, Any] = objects(source)
    change(arrays)
    with h5py.File(target, "x", libver=("v108", "v108")) as h5:
        for name, array in arrays.items():
            h5.create_dataset(name, data=array, **(dataset if name == "logits/0" else {}))
    return target


def flip(source: Path, target: Path, byte: int, bit: int) -> Path:
    """A copy with one bit flipped."""
    content = bytearray(source.read_bytes())
    content[byte] ^= 1 << bit
    target.write_bytes(content)
    return target


def assert_equal(a: Table, b: Table) -> None:
    """Every bit of every array, and the names."""
    left, right = a.objects(), b.objects()
    assert list(left) == list(right)
    assert list(a.logits) == list(b.logits)
    for name, array in left.items():
        assert array.dtype == right[name].dtype, name
        assert array.shape == right[name].shape, name
        assert array.tobytes() == right[name].tobytes(), name
    assert a.names == b.names
