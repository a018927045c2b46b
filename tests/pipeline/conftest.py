"""What several tests of the stages do to a build, its world, a cache file or a disk."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from cache import CacheReader, Manifest, Table
from cache.fill import write_table
from data.options import ScanOptions
from data.samples import FOLDER_TASK, Sample
from data.scan import scan_data
from data.views import COLUMNS
from pipeline.build import BuildConfig, build_cache
from pipeline.demo.lesions import write_lesions
from pipeline.targets import SEEN, StoredTask, TeacherTargets
from pipeline.tasks import Tasks
from pipeline.teachers.prompts import Prompts, default_prompts
from pipeline.teachers.teacher import Teacher
from pipeline.train import TrainConfig, train

Rows = dict[tuple[str, int], bytes]


@dataclasses.dataclass(frozen=True)
class TwoTasks:
    """The tiny images by a table with two label columns, their cache, and a student of both."""

    scan: ScanOptions
    cache: Path
    run: Path

    @property
    def words(self) -> tuple[str, ...]:
        """The options of the command line."""
        return self.scan.words()


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`stop_at(n, error)`: from now on the teacher's n-th forward pass raises `error`, once."""
    embed = Teacher.embed

    def stop_at(n_passes: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        passes = 0

        def stopping(self: Teacher, pixels: torch.Tensor) -> np.ndarray:
            nonlocal passes
            passes += 1
            if passes == n_passes:
                raise error
            return embed(self, pixels)

        monkeypatch.setattr(Teacher, "embed", stopping)

    return stop_at


@pytest.fixture
def forward_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Views in each forward pass from now on, without the padding."""
    rows: list[int] = []
    embed = Teacher.embed

    def counting(self: Teacher, pixels: torch.Tensor) -> np.ndarray:
        rows.append(int((pixels != 0).flatten(1).any(1).sum()))
        return embed(self, pixels)

    monkeypatch.setattr(Teacher, "embed", counting)
    return rows


@pytest.fixture(scope="session")
def two_tasks_scan(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> ScanOptions:
    """A table of the tiny images: `dx` is the class of the folder, `tone` follows from it; every tenth lacks each.

    Two train images have no label at all.
    """
    path = tmp_path_factory.mktemp("two tasks") / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "dx", "tone", "split", "patient"])
        for number, sample in enumerate(scan_data(tiny_data).samples):
            dx = sample.labels[FOLDER_TASK]
            tone = "dark" if dx.startswith("mel") else "pale"
            is_bare = sample.split == "train" and number < 2
            table.writerow([
                sample.name, "" if is_bare or number % 10 == 3 else dx, "" if is_bare or number % 10 == 7 else tone,
                sample.split, f"{sample.split}-{number // 2}",
            ])  # fmt: skip
    return ScanOptions(csv=path, image_column="path", label_columns=("dx", "tone"), split_column="split")


@pytest.fixture(scope="session")
def two_tasks(
    tiny_data: Path, two_tasks_scan: ScanOptions, tiny_build: BuildConfig, tmp_path_factory: pytest.TempPathFactory
) -> TwoTasks:
    """Through both stages."""
    folder = tmp_path_factory.mktemp("of two tasks")
    build = dataclasses.replace(tiny_build, views=2)
    cache = build_cache(tiny_data, folder / "t.h5", build, two_tasks_scan).path
    config = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=2, batch_size=8)
    run = train(tiny_data, cache, folder / "run", config, workers=0, scan=two_tasks_scan, anyway=True).path
    return TwoTasks(two_tasks_scan, cache, run)


@pytest.fixture(scope="session")
def prompts(tiny_data: Path) -> Prompts:
    """The default prompts of the tiny data."""
    return default_prompts(scan_data(tiny_data).classes[FOLDER_TASK])


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], Rows]:
    """Every bit of every row of a cache: (key in hex, view) -> params, witness, logits and features."""

    def rows_of(path: Path) -> Rows:
        with CacheReader(path) as reader:
            table = reader.table()
        keys = np.repeat(table.key, np.diff(table.first_row.astype(int)), axis=0)
        arrays = [table.params, table.witness, *table.logits.values(), *table.features.values()]
        return {
            (key.tobytes().hex(), int(view)): b"".join(array[row].tobytes() for array in arrays)
            for row, (key, view) in enumerate(zip(keys, table.view, strict=True))
        }

    return rows_of


@pytest.fixture
def resealed(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a cache with other rows, identity or provenance, and a seal that fits them."""

    def resealed(
        source: Path,
        change: Callable[[Table], Table | None] | None = None,
        *,
        identity: dict[str, Any] | None = None,
        provenance: dict[str, Any] | None = None,
        name: str = "resealed.h5",
    ) -> Path:
        with CacheReader(source) as reader:
            table, stored = reader.table(), reader.manifest
        changed = change(table) if change else None
        manifest = Manifest({**stored.identity, **(identity or {})}, {**stored.provenance, **(provenance or {})})
        write_table(tmp_path / name, manifest, changed or table)
        return tmp_path / name

    return resealed


@pytest.fixture(scope="session")
def without_row() -> Callable[[Table, int], Table]:
    """A table without one row of a sample that has others."""

    def without_row(table: Table, row: int) -> Table:
        def rest(values: np.ndarray) -> np.ndarray:
            return np.delete(values, row, axis=0)

        return dataclasses.replace(
            table,
            first_row=table.first_row - (table.first_row > row).astype("<u8"),
            view=rest(table.view),
            params=rest(table.params),
            witness=rest(table.witness),
            logits={task: rest(values) for task, values in table.logits.items()},
            features={name: rest(values) for name, values in table.features.items()},
        )

    return without_row


@pytest.fixture
def flipped(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a cache with one bit of one object flipped."""

    def flipped(source: Path, name: str, byte: int = 0) -> Path:
        with h5py.File(source, "r", locking=False) as h5:
            at = h5[name].id.get_offset() + byte
        content = bytearray(source.read_bytes())
        content[at] ^= 4
        (tmp_path / "flipped.h5").write_bytes(content)
        return tmp_path / "flipped.h5"

    return flipped


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., TeacherTargets]:
    """`told(labels, logits)`: samples of these classes, and a cache in which a teacher said that of their views.

    Logits are [N * views, C]; `seen` says for each sample whether the teacher was fitted on it. `teacher` is what the
    identity says of it, `embedding` whether the cache has embeddings (zeros).
    """

    def told(
        labels: Sequence[int], logits: np.ndarray, *, views: int = 1, seen: Sequence[float] | None = None,
        name: str = "told.h5", teacher: dict[str, Any] | None = None, embedding: bool = False,
    ) -> TeacherTargets:  # fmt: skip
        labels_N, classes = np.array(labels), [f"class {c}" for c in range(logits.shape[1])]
        n_samples, n_rows = len(labels_N), len(logits)
        features = {} if seen is None else {SEEN: np.repeat(seen, views).astype("<f2")}
        features |= {"embedding": np.zeros((n_rows, 2), "<f2")} if embedding else {}
        table = Table(
            key=np.arange(n_samples, dtype=">u4").view(np.uint8).reshape(-1, 4).repeat(4, axis=1),
            first_row=np.arange(0, n_rows + 1, views).astype("<u8"),
            view=np.tile(np.arange(views), n_samples).astype("<u2"),
            params=np.zeros((n_rows, len(COLUMNS)), "<f4"),
            witness=np.zeros((n_rows, 12), np.uint8),
            logits={FOLDER_TASK: logits.astype("<f4" if len(classes) <= 256 else "<f2")},
            features=features,
        )
        identity = {"tasks": [{"name": FOLDER_TASK, "classes": classes}], "view_columns": list(COLUMNS)}
        identity |= {"teacher": teacher} if teacher else {}
        write_table(tmp_path / name, Manifest(identity, {}), table)
        samples = [
            Sample(key.tobytes(), "", "", "val", {FOLDER_TASK: classes[label]})
            for key, label in zip(table.key, labels_N, strict=True)
        ]
        columns = {FOLDER_TASK: StoredTask(FOLDER_TASK, tuple(range(len(classes))))}
        return TeacherTargets(
            CacheReader(tmp_path / name), samples, np.arange(n_samples), labels_N[:, None],
            Tasks({FOLDER_TASK: classes}), columns,
        )  # fmt: skip

    return told


class World:
    """What one build is given. A change edits its own copy of it; the ids then come from a real build."""

    def __init__(self, folder: Path, data: Path, config: BuildConfig, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.data, self.config, self.patch = folder, data, config, patch
        self.scan = ScanOptions()

    def own_teacher(self) -> Path:
        """The teacher in a folder that may be changed."""
        folder = self.folder / "other teacher"
        if not folder.exists():
            shutil.copytree(self.config.teacher, folder)
            self.set(teacher=str(folder))
        return folder

    def own_images(self) -> Path:
        """The images in a folder that may be changed."""
        if self.data.parent != self.folder:
            self.data = shutil.copytree(self.data, self.folder / "other images")
        return self.data

    def set(self, **changes: Any) -> None:
        """Another BuildConfig."""
        self.config = dataclasses.replace(self.config, **changes)

    def write_prompts(self, **changes: str | list[str]) -> None:
        """A prompt file: the default prompts, and others for some classes (in whose names _ stands for a space)."""
        classes = scan_data(self.data).classes[FOLDER_TASK]
        texts: dict[str, Any] = {name: text for name, (text,) in default_prompts(classes).items()}
        changed = {name.replace("_", " "): text for name, text in changes.items()}
        assert changed.keys() <= texts.keys()
        path = self.folder / "prompts.yaml"
        path.write_text(json.dumps(dict(reversed((texts | changed).items()))))
        self.set(prompts=path)

    def patch_constant(self, name: str, value: Any) -> None:
        """Another value of a constant, in each of our modules that knows it."""
        ours = [module for word, module in sys.modules.items() if word.split(".")[0] in ("cache", "data", "pipeline")]
        holders = [module for module in ours if hasattr(module, name)]
        assert holders
        for module in holders:
            self.patch.setattr(module, name, value)

    def build(self) -> CacheReader:
        """The cache of all that."""
        return CacheReader(build_cache(self.data, self.folder / "t.h5", self.config, self.scan).path)


@pytest.fixture(scope="session")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 images of the classes of `tiny_data`: the tables of the ids build a cache of them for each row."""
    root = tmp_path_factory.mktemp("few") / "images"
    write_lesions(root, {"train": 2, "val": 2, "test": 1}, size_px=48)
    return root


@pytest.fixture(scope="session")
def base(few_images: Path, tiny_build: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    """The cache of the unchanged world."""
    return CacheReader(build_cache(few_images, tmp_path_factory.mktemp("base") / "t.h5", tiny_build).path)


@pytest.fixture
def world(
    tmp_path: Path, few_images: Path, tiny_build: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """The world of `base`, to be changed."""
    threads = torch.get_num_threads()
    yield World(tmp_path, few_images, tiny_build, monkeypatch)
    torch.set_num_threads(threads)
