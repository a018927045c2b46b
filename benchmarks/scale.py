"""Does a sample cost more when there are more of them? Caches of up to ten million samples, without image files.

Writes a cache in shares that lie between each other (sample i in share i modulo their number), by the writer's own
code and random numbers, 8 views and 7 classes; merges them; opens the file, joins it with a data set as columns of the
same keys, and gathers batches of random rows. Every measurement is a process of its own; its peak is what `wait4` says
of it: resident memory, mapped and shared pages included, with Python, numpy and, where it is needed, torch.
Ten million samples take 7.2 GB, and as much again while they are merged; files are removed when they are done with.
Run: python benchmarks/scale.py WORK [--samples 100000 1000000 10000000] [--images 100000]

N samples, R rows = (sample, view).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.sample_table import SampleTable
    from pipeline.targets import TeacherTargets

# The parent imports nothing large: what it had in memory would count as its children's.

VIEWS, N_CLASSES, BATCH_ROWS, N_BATCHES = 8, 7, 256, 2000
CLASSES = tuple(f"class {number}" for number in range(N_CLASSES))
NAME = "train/class 0/0000000000.jpg"
VAL_EVERY = 10
"""One sample of so many validates."""
Measured = dict[str, float]


@contextmanager
def timed(found: Measured) -> Iterator[None]:
    """Wall and CPU seconds of what is inside, and the peak before it."""
    import resource

    found["before_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    began, began_cpu_s = time.perf_counter(), time.process_time()
    yield
    found["seconds"], found["cpu_s"] = time.perf_counter() - began, time.process_time() - began_cpu_s


def write(work: Path, n_samples: int, n_shares: int) -> Measured:
    """The shares of the cache, and the columns of the data set; seconds are those of the shares."""
    import numpy as np

    import pipeline.recipe  # noqa: F401 (takes seconds)
    from cache.search import first_integers

    generator, found = np.random.default_rng(0), Measured()
    keys = generator.integers(0, 256, (n_samples, 16), np.uint8)
    keys = keys[np.argsort(first_integers(keys))]
    for group, start in (("train", 0), ("val", VAL_EVERY - 1)):
        np.save(work / f"{group}.npy", keys[start::VAL_EVERY] if start else np.delete(keys, np.s_[9::10], axis=0))
    with timed(found):
        for share in range(n_shares):
            write_cache(work / f"share-{share}.h5", keys[share::n_shares], generator)
    return found


def write_cache(path: Path, keys: Any, generator: Any) -> None:
    """One sealed file of random rows, piece by piece."""
    import numpy as np

    from cache import Manifest, durable
    from cache.fill import NewFile
    from cache.layout import Dims, is_big
    from data.samples import FOLDER_TASK
    from data.views import COLUMNS, ViewPolicy
    from pipeline.recipe import view_identity

    identity = {"tasks": [{"name": FOLDER_TASK, "classes": list(CLASSES)}], **view_identity(ViewPolicy(), 0)}
    manifest = Manifest(identity, {})
    dims = Dims(
        manifest_bytes=len(manifest.to_bytes()), n_samples=len(keys), n_rows=VIEWS * len(keys), n_params=len(COLUMNS),
        class_counts=(N_CLASSES,), name_bytes=len(NAME),
    )  # fmt: skip
    temp = durable.temp_name(path)
    with NewFile(temp, dims.specs()) as new:
        new.put("samples/key", keys)
        new.put("samples/first_row", np.arange(0, dims.n_rows + 1, VIEWS, dtype="<u8"))
        for name, (spec, _) in new.extents.items():
            for part in spec.stretches():
                shape = (part.stop - part.start, *spec.shape[1:])
                if name == "samples/name":
                    new.put(name, names(part.start, part.stop).view(spec.dtype).ravel(), part.start)
                elif name == "rows/view":
                    new.put(name, (np.arange(part.start, part.stop) % VIEWS).astype(spec.dtype), part.start)
                elif is_big(name) and spec.dtype.kind == "f":
                    new.put(name, generator.random(shape, np.float32), part.start)
                elif is_big(name):
                    new.put(name, generator.integers(0, 256, shape, np.uint8), part.start)
        new.seal(manifest)
    durable.publish_new(temp, path)


def names(start: int, stop: int) -> Any:
    """The names of some samples, uint8 (N, bytes of each)."""
    import numpy as np

    found = np.tile(np.frombuffer(NAME.encode(), np.uint8), (stop - start, 1))
    number = np.arange(start, stop)
    for place in range(10):
        found[:, len(NAME) - 5 - place] += (number // 10**place % 10).astype(np.uint8)
    found[:, len("train/class ")] += (number % N_CLASSES).astype(np.uint8)
    return found


def merge_shares(work: Path, n_samples: int, n_shares: int) -> Measured:
    """Into the file that all others read."""
    from cache import merge

    found = Measured()
    with timed(found):
        merge([work / f"share-{share}.h5" for share in range(n_shares)], work / "t.h5")
    return found


def open_cache(work: Path, n_samples: int, n_shares: int) -> Measured:
    """Layout, seal and order."""
    from cache import CacheReader

    found = Measured()
    with timed(found):
        CacheReader(work / "t.h5", memory_map=False)
    return found


def sample_table(work: Path, split: str, shuffled: bool) -> SampleTable:
    """A split of the data set, sorted by key as a scan gives it."""
    import numpy as np

    from data.sample_table import Categories, SampleColumns, SampleTable, Texts
    from data.samples import FOLDER_TASK

    key = np.load(work / f"{split}.npy")
    if shuffled:
        key = key[np.random.default_rng(1).permutation(len(key))]
    encoded = np.empty((len(key), len(NAME)), np.uint8)
    for start in range(0, len(key), 1 << 20):
        encoded[start : start + (1 << 20)] = names(start, min(start + (1 << 20), len(key)))
    ends = np.arange(1, len(key) + 1, dtype=np.uint32) * np.uint32(len(NAME))
    return SampleTable(SampleColumns(
        key=key, name=Texts(encoded.reshape(-1), ends), path="/data/",
        split=Categories(names=(split,), code_N=np.zeros(len(key), np.int8)),
        labels={FOLDER_TASK: Categories(names=CLASSES, code_N=(np.arange(len(key)) % N_CLASSES).astype(np.int16))},
    ))  # fmt: skip


def joined(work: Path, found: Measured, *, shuffled: bool = False, verified: bool = False) -> TeacherTargets:
    """Open and join, timed; the train split."""
    from cache import CacheReader
    from data.samples import FOLDER_TASK
    from pipeline.joining import join

    groups = {split: sample_table(work, split, shuffled) for split in ("train", "val")}
    with timed(found):
        reader = CacheReader(work / "t.h5", memory_map=False)
        targets = join(reader, groups, ["DATA"], {FOLDER_TASK: CLASSES}, clean=["val"], verified=verified)
    assert (targets["train"].index_N >= 0).all()
    return targets["train"]


def open_and_join(work: Path, n_samples: int, n_shares: int) -> Measured:
    """Of samples that come sorted, as `scan_data` gives them."""
    found = Measured()
    joined(work, found)
    return found


def open_and_join_shuffled(work: Path, n_samples: int, n_shares: int) -> Measured:
    """Of samples in any order."""
    found = Measured()
    joined(work, found, shuffled=True)
    return found


def open_join_and_verify(work: Path, n_samples: int, n_shares: int) -> Measured:
    """As `train` does it: with the checksums of all that it reads."""
    found = Measured()
    joined(work, found, verified=True)
    return found


def lessons(work: Path, n_samples: int, n_shares: int) -> Measured:
    """What a run makes of its train images before the first epoch."""
    from pipeline.training.config import TrainConfig
    from pipeline.training.lessons import Lessons

    found = Measured()
    targets = joined(work, {})
    with timed(found):
        Lessons(targets, TrainConfig())
    return found


def epoch_rows(work: Path, n_samples: int, n_shares: int) -> Measured:
    """Which view each sample shows in the first epoch."""
    found = Measured()
    targets = joined(work, {})
    with timed(found):
        targets.epoch_rows(0, 0)
    return found


def gather(work: Path, n_samples: int, n_shares: int) -> Measured:
    """Logits and numbers of batches of random rows; seconds are those of one batch, as the median.

    From the page cache, into which verifying brings them, as `train` does.
    """
    import numpy as np

    found, generator = Measured(), np.random.default_rng(0)
    targets, seconds = joined(work, {}, verified=True), []
    with timed(found):
        for _ in range(min(N_BATCHES, n_samples)):
            rows = generator.integers(0, VIEWS * n_samples, BATCH_ROWS)
            began = time.perf_counter()
            targets.teacher_logits(rows)
            targets.reader.params(rows)
            seconds.append(time.perf_counter() - began)
    found["cpu_s"] /= len(seconds)
    found["seconds"] = statistics.median(seconds)
    return found


def scan(work: Path, n_images: int, n_shares: int) -> Measured:
    """`scan_data` of so many small files, each hashed; it makes an object of every image."""
    from data.options import ScanOptions
    from data.scan import scan_data

    found = Measured()
    for number in range(n_images):
        path = work / "images" / f"class {number % N_CLASSES}" / f"{number:010}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(number.to_bytes(8, "big") * 32)
    with timed(found):
        scan_data(work / "images", ScanOptions(memo=work / "hashes", remember_split=False))
    return found


def scan_again(work: Path, n_images: int, n_shares: int) -> Measured:
    """The same, of files whose hashes are remembered."""
    from data.options import ScanOptions
    from data.scan import scan_data

    found = Measured()
    with timed(found):
        scan_data(work / "images", ScanOptions(memo=work / "hashes", remember_split=False))
    return found


OPERATIONS: dict[str, Callable[[Path, int, int], Measured]] = {
    "write the shares": write, "merge": merge_shares, "open": open_cache, "open + join": open_and_join,
    "open + join, shuffled": open_and_join_shuffled, "open + join + verify": open_join_and_verify,
    "lessons": lessons, "rows of an epoch": epoch_rows, f"gather {BATCH_ROWS} rows": gather, "scan": scan,
    "scan again": scan_again,
}  # fmt: skip
OF_IMAGES = ["scan", "scan again"]
OF_CACHES = [operation for operation in OPERATIONS if operation not in OF_IMAGES]
ONCE = ("write the shares", "merge")


def measure(operation: str, work: Path, n_samples: int, n_shares: int) -> Measured:
    """One operation in a process of its own."""
    words = [sys.executable, __file__, str(work), "--child", operation, str(n_samples), str(n_shares)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    child = subprocess.Popen(words, stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stdout.close()
    if child.returncode:
        raise SystemExit(f"{operation} of {n_samples:,} samples failed: {' '.join(words)}")
    return {**json.loads(said), "peak_mb": usage.ru_maxrss / 1000}


def line(operation: str, n_samples: int, rounds: list[Measured]) -> list[str]:
    """A line of the table: medians, the largest peak."""
    seconds, cpu_s = (statistics.median(one[name] for one in rounds) for name in ("seconds", "cpu_s"))
    is_batch = operation.startswith("gather")
    n_each = BATCH_ROWS if is_batch else n_samples
    each_us = f"{seconds / n_each * 1e6:.3f} ({cpu_s / n_each * 1e6:.3f})"
    before_mb, peak_mb = (max(one[name] for one in rounds) for name in ("before_mb", "peak_mb"))
    said = f"{seconds * 1000:.3f} ms a batch" if is_batch else f"{seconds:.3f} s"
    return [operation, f"{n_samples:,}", said, each_us, f"{peak_mb:,.0f}", f"{before_mb:,.0f}"]


def of_size(work: Path, n_samples: int, n_shares: int, n_rounds: int, operations: Sequence[str]) -> Iterator[list[str]]:
    """Some operations at one size."""
    folder = work / f"scale-{n_samples}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        for operation in operations:
            n_times = 1 if operation in ONCE else n_rounds
            yield line(operation, n_samples, [measure(operation, folder, n_samples, n_shares) for _ in range(n_times)])
            if operation == "merge":
                for share in range(n_shares):
                    (folder / f"share-{share}.h5").unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="a folder with 15 GB of room; nothing stays in it")
    parser.add_argument("--samples", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--shares", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="of all but writing and merging")
    parser.add_argument("--images", type=int, default=0, help="so many real, small files are scanned as well")
    parser.add_argument("--operations", nargs="+", choices=OF_CACHES, default=OF_CACHES, help="in this order")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        operation, *numbers = options.child
        print(json.dumps(OPERATIONS[operation](options.work, *map(int, numbers))), flush=True)
        os._exit(0)  # taking the interpreter down touches another 110 MB of torch's own
    lines = []
    for n_samples in options.samples:
        for found in of_size(options.work, n_samples, options.shares, options.rounds, options.operations):
            print(" ".join(found), file=sys.stderr, flush=True)
            lines.append(found)
    if options.images:
        folder = options.work / "scale-images"
        lines += [line(what, options.images, [measure(what, folder, options.images, 0)]) for what in OF_IMAGES]
        shutil.rmtree(folder)
    from timing import machine_line, markdown

    print(machine_line())
    print(markdown(["operation", "samples", "time", "us each (CPU)", "peak MB", "MB before"], sorted(lines, key=order)))


def order(found: list[str]) -> tuple[int, int]:
    """Sizes of one operation side by side."""
    return list(OPERATIONS).index(found[0]), int(found[1].replace(",", ""))


if __name__ == "__main__":
    main()
