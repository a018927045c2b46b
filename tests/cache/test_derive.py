"""A derived cache has its parent's samples and views, other logits, and comes whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cache import CacheReader, Manifest, layout
from cache import derive as module
from cache.derive import derive
from cache.errors import CacheDamaged, CacheDiskFull, CacheMismatch

TASKS = [{"name": "class", "classes": ["x", "y"]}]


@pytest.fixture
def parent(make: ModuleType, tmp_path: Path) -> CacheReader:
    """Nine samples, two tasks, three columns of numbers a view."""
    return CacheReader(make.write(tmp_path / "parent.h5", make.table(n_samples=9)), memory_map=False)


@pytest.fixture
def other(make: ModuleType) -> Manifest:
    """One task of two classes."""
    return Manifest({**make.manifest().identity, "tasks": TASKS}, {"made": "here"})


def logits(parent: CacheReader) -> dict[str, np.ndarray]:
    return {"class": np.arange(2 * parent.n_rows, dtype="<f4").reshape(-1, 2)}


@pytest.mark.parametrize("stretch_bytes", [1, 100, 8 << 20])
def test_all_but_logits_and_features_is_the_parents(
    stretch_bytes: int, parent: CacheReader, other: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_STRETCH_BYTES", stretch_bytes)
    seen = np.ones(parent.n_rows, "<f2")
    made = derive(parent, tmp_path / "c.h5", other, logits(parent), keep=["embedding"], features={"seen": seen})
    old, new = parent.table(), made.table()
    for name in ("key", "first_row", "view", "params", "witness"):
        assert getattr(old, name).tobytes() == getattr(new, name).tobytes(), name
    assert new.names == old.names
    assert {name: values.tobytes() for name, values in new.features.items()} == {
        "embedding": old.features["embedding"].tobytes(), "seen": seen.tobytes(),
    }  # fmt: skip
    np.testing.assert_array_equal(new.logits["class"], logits(parent)["class"])
    assert made.manifest.to_bytes() == other.to_bytes()
    made.verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.h5", "parent.h5"]


def test_features_can_be_left_out(parent: CacheReader, other: Manifest, tmp_path: Path) -> None:
    assert derive(parent, tmp_path / "c.h5", other, logits(parent), keep=[]).features == {}


def test_nothing_is_overwritten(parent: CacheReader, other: Manifest, tmp_path: Path) -> None:
    before = (tmp_path / "parent.h5").read_bytes()
    with pytest.raises(CacheMismatch, match=r"parent\.h5 exists already: choose another -o"):
        derive(parent, tmp_path / "parent.h5", other, logits(parent), keep=[])
    assert (tmp_path / "parent.h5").read_bytes() == before


def test_a_damaged_parent_has_no_children(
    make: ModuleType, parent: CacheReader, other: Manifest, tmp_path: Path
) -> None:
    at, _ = make.offsets(parent.path)["rows/params"]
    flipped = CacheReader(make.flip(parent.path, tmp_path / "flipped.h5", at, 3), memory_map=False)
    with pytest.raises(CacheDamaged, match="rows/params"):
        derive(flipped, tmp_path / "c.h5", other, logits(parent), keep=[])
    assert not (tmp_path / "c.h5").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values[:-1], r"logits/0 is <f4 \(\d+, 2\), expected <f4"),
        (lambda values: values.astype("<f8"), "logits/0 is <f8"),
        (lambda values: np.where(values == 3, np.nan, values).astype("<f4"), r"not finite in 1 of \d+ rows \(first: 1"),
    ],
)
def test_logits_that_no_cache_may_hold_are_refused(
    change: Callable[[np.ndarray], np.ndarray], said: str, parent: CacheReader, other: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(CacheMismatch, match=said):
        derive(parent, tmp_path / "c.h5", other, {"class": change(logits(parent)["class"])}, keep=[])
    assert [path.name for path in tmp_path.iterdir()] == ["parent.h5"]


def test_an_interrupt_or_a_full_disk_leaves_nothing(
    parent: CacheReader, other: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    file_limit: Callable[[int], AbstractContextManager[None]],
) -> None:  # fmt: skip
    with file_limit(2_000), pytest.raises(CacheDiskFull):
        derive(parent, tmp_path / "c.h5", other, logits(parent), keep=["embedding"])
    assert [path.name for path in tmp_path.iterdir()] == ["parent.h5"]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.durable, "publish_new", interrupt)
    with pytest.raises(KeyboardInterrupt):
        derive(parent, tmp_path / "c.h5", other, logits(parent), keep=["embedding"])
    assert [path.name for path in tmp_path.iterdir()] == ["parent.h5"]
