"""Read a sealed cache: find samples by key or image, copy out their rows at the speed of a memory map.

Never writes, never holds an HDF5 handle. Checks CRCs only when asked (`verify`). Pickles as path + seal, for loaders.
Run: `softlabel cache info FILE.h5`.

Legend: N samples, R rows = (sample, view), M asked for, P view columns, C classes.
"""

import difflib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cache import manifest as ids
from cache.access import RowFile, RowSource, Tables, changed_message
from cache.errors import CacheDamaged, CacheError, CacheMismatch, RowAbsent
from cache.guard import Inspected, inspect, opened
from cache.layout import KEY_BYTES, Dims, Table, decode_name, is_big
from cache.manifest import Manifest
from cache.search import KeyColumn, as_keys, find_rows, owners
from cache.verify import Block, refuse_damaged

Rows = int | slice | range | Sequence[int] | np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class CachedSample:
    """What the teacher said of one sample: V views, in the order of `views`; every array is the caller's own."""

    key: bytes
    """BLAKE2b-128 of the image file's bytes."""
    name: str | None
    """Relative path that the image had when the cache was built; for people."""
    views: np.ndarray
    """View indices, uint16 (V,), ascending; 0 is the clean image."""
    params: np.ndarray
    """Drawn numbers, float32 (V,P); the columns are `manifest.view_columns`."""
    logits: dict[str, np.ndarray]
    """Task -> raw logits, float32 or float16 (V,C)."""
    features: dict[str, np.ndarray]
    """Feature name -> float16 (V,...)."""


class CacheReader:
    """One sealed cache file, opened and checked: a mapping from samples to what the teacher said of them.

    `cache["mel/12.jpg"]` hashes that image file, or takes the name for the one stored when there is no such file;
    `cache[key]` takes the 16 bytes of a key. `len()` counts samples, iteration gives their keys.

    Row methods take row numbers (int array, slice, range or int) and return fresh, writable copies. The file is opened
    at the first of them in each process, and refused there if it is no longer the one that was inspected. With
    `memory_map=False` rows are read instead of mapped: slower by a microsecond a row, and safe for a long run beside
    people who copy other files over this one (see `cache.access`).
    """

    def __init__(self, path: str | Path, *, memory_map: bool = True) -> None:
        self.path = Path(os.path.abspath(path))
        self._memory_map = memory_map
        self._seal: bytes | None = None
        self._seal = self._inspected.seal

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file, or each of several."""
        return (self.path,)

    @property
    def seal(self) -> bytes:
        """The file's seal, 32 bytes: which file this is."""
        assert self._seal is not None
        return self._seal

    @property
    def manifest(self) -> Manifest:
        """What the cache claims about itself."""
        return self._tables.manifest

    @property
    def dims(self) -> Dims:
        """Sizes and feature shapes."""
        return self._tables.dims

    @property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """Task name -> class names, in the order of the logits' columns."""
        return self.manifest.tasks

    @property
    def features(self) -> dict[str, tuple[int, ...]]:
        """Feature name -> shape of one row's value."""
        return dict(self.dims.features)

    @property
    def recipe_id(self) -> str:
        """Which teacher, classes and views, hex."""
        return self.manifest.recipe_id

    @cached_property
    def cache_id(self) -> str:
        """Which question: the recipe and the (key, view) pairs, hex."""
        return ids.cache_id(self.recipe_id, self.keys, self.first_row, self.view)

    @cached_property
    def content_id(self) -> str:
        """Which answer: every bit of every row, hex; reads the whole file. CacheDamaged where it does not verify."""
        specs = self.dims.specs()
        self.verify_objects(filter(is_big, specs))
        small = self._tables.small
        rows: dict[str, tuple[np.dtype, tuple[int, ...], Iterable[bytes | memoryview]]] = {}
        for name, spec in specs.items():
            if name in ("samples/key", "samples/first_row", "rows/view"):
                rows[name] = (*spec, [small[name].tobytes()])
            elif is_big(name):
                rows[name] = (*spec, self._rows_file.chunks(name))
        found = ids.content_id(rows)
        self._rows_file.damaged_blocks(())  # nothing was written over what was read
        return found

    @property
    def keys(self) -> np.ndarray:
        """uint8 (N,16), sorted, read-only."""
        return self._tables.small["samples/key"]

    @cached_property
    def names(self) -> list[str] | None:
        """Relative paths for people, N of them, or None; of ten million take `stored_names`, a third of the memory."""
        stored = self.stored_names()
        return None if stored is None else [decode_name(name) for name in stored.tolist()]

    def stored_names(self, samples: slice | np.ndarray | None = None) -> np.ndarray | None:
        """The names of some samples, or of all, as the file has them: bytes of fixed width (M,), or None."""
        if self.dims.name_bytes is None:
            return None
        return self._rows_file.take("samples/name", slice(0, self.n_samples) if samples is None else samples)

    @property
    def first_row(self) -> np.ndarray:
        """uint64 (N+1,): the rows of sample i are `first_row[i] .. first_row[i+1]`; read-only."""
        return self._tables.small["samples/first_row"]

    @property
    def view(self) -> np.ndarray:
        """uint16 (R,): the view index of each row; read-only."""
        return self._tables.small["rows/view"]

    @cached_property
    def sample_of_row(self) -> np.ndarray:
        """int64 (R,): the sample index of each row."""
        first = self.first_row.view(np.int64)
        return np.repeat(np.arange(self.n_samples, dtype=np.int64), first[1:] - first[:-1])

    def owners(self, rows: np.ndarray) -> np.ndarray:
        """The sample index of some rows, int64 (M,) -> int64 (M,): `sample_of_row` without its table of all rows."""
        return owners(self.first_row, rows)

    @property
    def n_samples(self) -> int:
        """N."""
        return self.dims.n_samples

    @property
    def n_rows(self) -> int:
        """R."""
        return self.dims.n_rows

    def __len__(self) -> int:
        return self.n_samples

    def __iter__(self) -> Iterator[bytes]:
        return (bytes(key) for key in self.keys)

    def __contains__(self, sample: str | Path | bytes) -> bool:
        return self._sample_index(sample) >= 0

    def __getitem__(self, sample: str | Path | bytes) -> CachedSample:
        """All views of one sample; RowAbsent (a LookupError) where the cache does not have it."""
        index = self._sample_index(sample)
        if index < 0:
            shown = sample.hex() if isinstance(sample, bytes) else sample
            raise RowAbsent(
                f"{self.path} has no {shown}: neither an image file with these bytes nor, where no such file stands, "
                f"a stored name; `softlabel cache build` adds images"
            )
        rows, named = self.rows_of(index), self.stored_names(slice(index, index + 1))
        return CachedSample(
            key=bytes(self.keys[index]),
            name=None if named is None else decode_name(named.item()),
            views=self.view[rows].copy(),
            params=self.params(rows),
            logits={task: self.logits(rows, task) for task in self.tasks},
            features={name: self.feature(rows, name) for name in self.features},
        )

    def find(self, keys: np.ndarray | Iterable[bytes]) -> np.ndarray:
        """Keys uint8 (M,16), or 16 bytes each -> sample indices int64 (M,), -1 where the cache has no such key."""
        return self._key_column.find(as_keys(keys))

    def row(self, sample_indices: Any, views: Any) -> np.ndarray:
        """Sample indices and view indices, broadcast -> row numbers int64, -1 where that sample lacks that view.

        A sample index of -1 (not found) gives -1.
        """
        return find_rows(self.first_row, self.view, sample_indices, views)

    def rows_of(self, sample_index: int) -> slice:
        """The rows of one sample."""
        if not 0 <= sample_index < self.n_samples:
            raise RowAbsent(f"sample {sample_index} of {self.n_samples:,} in {self.path}")
        return slice(int(self.first_row[sample_index]), int(self.first_row[sample_index + 1]))

    def views_of(self, sample_index: int) -> np.ndarray:
        """The view indices of one sample, uint16, ascending."""
        return self.view[self.rows_of(sample_index)].copy()

    def params(self, rows: Rows) -> np.ndarray:
        """The drawn numbers, float32 (M,P); the columns are `manifest.view_columns`."""
        if not self.dims.n_params:
            return np.empty((*self.view[self._rows(rows)].shape, 0), np.float32)
        return self.read_object("rows/params", rows)

    def witness(self, rows: Rows) -> np.ndarray:
        """Quadrant means per channel of the view as the teacher saw it, uint8 (M,12)."""
        return self.read_object("rows/witness", rows)

    def logits(self, rows: Rows, task: str = "class") -> np.ndarray:
        """Raw logits, float32 (M,C), or float16 above 256 classes; the columns are `tasks[task]`."""
        if task not in self._logits_of_task:
            raise CacheMismatch(f"{self.path} has no task {task!r}{_nearest(task, list(self.tasks))}")
        return self.read_object(self._logits_of_task[task], rows)

    def feature(self, rows: Rows, name: str = "embedding") -> np.ndarray:
        """A feature of each row, float16 (M, ...)."""
        if name not in self.dims.features:
            raise CacheMismatch(f"{self.path} has no feature {name!r}{_nearest(name, list(self.dims.features))}")
        return self.read_object(f"features/{name}", rows)

    def read_object(self, name: str, rows: Rows) -> np.ndarray:
        """Rows of a big object by its name in the file: `rows/params`, `logits/0`, `features/embedding`."""
        return self._rows_file.take(name, self._rows(rows))

    def pairs(self) -> set[tuple[bytes, int]]:
        """Every (key, view) in the file."""
        raw, owners = self.keys.tobytes(), self.sample_of_row.tolist()
        keys = [raw[at : at + KEY_BYTES] for at in range(0, len(raw), KEY_BYTES)]
        return {(keys[owner], view) for owner, view in zip(owners, self.view.tolist(), strict=True)}

    def table(self) -> Table:
        """The whole cache in memory."""
        every = slice(0, self.n_rows)
        return Table(
            key=self.keys.copy(),
            first_row=self.first_row.copy(),
            view=self.view.copy(),
            params=self.params(every),
            witness=self.witness(every),
            logits={task: self.logits(every, task) for task in self.tasks},
            features={name: self.feature(every, name) for name in self.dims.features},
            names=None if self.names is None else list(self.names),
        )

    def verify(self) -> None:
        """Compare every byte with its checksum; CacheDamaged names the damaged blocks, or what is no finite number."""
        refuse_damaged(self.path, self.damaged_blocks())
        self.refuse_not_finite()

    def verify_objects(self, names: Iterable[str]) -> None:
        """The same for some big objects only, by their names in the file: those that will be used."""
        names = list(names)
        refuse_damaged(self.path, self.damaged_blocks(names))
        self.refuse_not_finite(names)

    def refuse_not_finite(self, names: Iterable[str] | None = None) -> None:
        """CacheDamaged with the first row that holds no finite number, in all or some big objects."""
        self._rows_file.refuse_not_finite(names)

    def damaged_blocks(self, names: Iterable[str] | None = None) -> list[Block]:
        """(object, first entry, last entry) of each damaged block, of all objects or some big ones; [] when sound."""
        return self._rows_file.damaged_blocks(names)

    def close(self) -> None:
        """Let go of the file; a later row method opens it again."""
        if "_rows_file" in self.__dict__:
            self.__dict__.pop("_rows_file").close()

    def __enter__(self) -> "CacheReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        tasks = ", ".join(f"{task}: {len(classes)} classes" for task, classes in self.tasks.items())
        return f"CacheReader({str(self.path)!r}, {self.n_samples:,} samples, {self.n_rows:,} rows, {tasks})"

    def __getstate__(self) -> tuple[Any, ...]:
        return str(self.path), self.seal, self._memory_map

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # Only stored: an exception here would reach the user of a data loader as "worker exited unexpectedly".
        self.path, self._seal, self._memory_map = Path(state[0]), state[1], state[2]

    @cached_property
    def _inspected(self) -> Inspected:
        with opened(self.path) as file:
            inspected = inspect(file, self.path, names=False)
        if self._seal is not None and inspected.seal != self._seal:
            raise CacheDamaged(changed_message(self.path))
        return inspected

    @property
    def _tables(self) -> Tables:
        return self._inspected

    @cached_property
    def _rows_file(self) -> RowSource:
        return RowFile(self.path, self._inspected, memory_map=self._memory_map)

    def _sample_index(self, sample: str | Path | bytes) -> int:
        """-1 where the cache does not have it."""
        if isinstance(sample, bytes):
            return int(self.find([sample])[0]) if len(sample) == KEY_BYTES else -1
        if os.path.isfile(sample):
            try:
                return int(self.find([hashlib.blake2b(Path(sample).read_bytes(), digest_size=KEY_BYTES).digest()])[0])
            except OSError as error:
                raise CacheError(f"cannot read the image {sample} ({error.strerror})") from error
        indices = self._indices_of_name.get(Path(sample).as_posix(), [-1])
        if len(indices) > 1:  # an image was replaced between two builds, or two teammates' folders were merged
            raise CacheMismatch(
                f"{len(indices)} images in {self.path} were called {sample}: ask with the image file or its key"
            )
        return indices[0]

    @cached_property
    def _indices_of_name(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for index, name in enumerate(self.names or []):
            found.setdefault(Path(name).as_posix(), []).append(index)
        return found

    @cached_property
    def _logits_of_task(self) -> dict[str, str]:
        return {task: f"logits/{number}" for number, task in enumerate(self.tasks)}

    @cached_property
    def _n_rows(self) -> int:
        return self.dims.n_rows

    @cached_property
    def _key_column(self) -> KeyColumn:
        return KeyColumn(self.keys)

    def _rows(self, rows: Rows) -> slice | np.ndarray:
        """Row numbers that are in range; only those of a slice count from the end: else -1 means absent, not last."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.n_rows)
            return slice(start, max(start, stop)) if step == 1 else np.arange(start, stop, step)
        wanted = np.asarray(rows)
        if wanted.size == 0:
            return wanted.astype(np.int64)
        if wanted.dtype.kind not in "iu":
            raise CacheMismatch(f"row numbers are {wanted.dtype}, expected integers")
        if wanted.dtype != np.int64:
            wanted = wanted.astype(np.int64)
        unsigned = wanted.view(np.uint64)  # where negative numbers are huge
        if unsigned.item(unsigned.argmax()) >= self._n_rows:
            bad = wanted[(wanted < 0) | (wanted >= self.n_rows)].reshape(-1)[0]
            raise RowAbsent(f"row {bad} of {self.n_rows:,} in {self.path}: a sample or view that the cache lacks")
        return wanted


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(map(repr, known)) or 'none'}"
