"""How soon a teammate trains: a build that finds its cache in an S3 store on loopback, then a student's first step.

Both are processes of their own, timed from Enter; the images were hashed before, and the teacher was loaded before by
an earlier build (`--first-time` forgets both before each round). The store is moto's, in a process of its own.
Run: python benchmarks/shared_cache.py WORK
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_scale import FIRST_STEP

from pipeline.demo.lesions import write_lesions
from reliability.tiny import write_teacher

N_IMAGES, ROUNDS, PORT = 10_000, 5, 5598
STORE = "s3://team/caches"
SOFTLABEL = (sys.executable, "-m", "softlabel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=N_IMAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--first-time", action="store_true", help="No hash and no teacher is remembered.")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}", "AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "XDG_CACHE_HOME": str(work / "home"), "XDG_STATE_HOME": str(work / "state"),
    }  # fmt: skip
    cache = prepare(work, arguments.images)
    with s3_server():
        softlabel("cache", "push", cache, STORE, "--yes")
        builds, steps = [], []
        for number in range(arguments.rounds + 1):
            if arguments.first_time:
                shutil.rmtree(work / "home", ignore_errors=True)
            built_s, step_s = one_round(work)
            if number:  # the first one warms up
                builds.append(built_s)
                steps.append(step_s)
    both = [one + other for one, other in zip(builds, steps, strict=True)]
    size_mb = cache.stat().st_size / 1e6
    for name, seconds in (("cache build --store", builds), ("train, to the end of step 1", steps), ("both", both)):
        said = f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}, {len(seconds)} rounds)"
        print(f"{arguments.images:,} images, {size_mb:,.0f} MB: {name}: {said}")


def prepare(work: Path, n_images: int) -> Path:
    """Images, a teacher with MedSigLIP's 1152 numbers an embedding, and the teammate's cache."""
    data, cache = work / "images", work / "t.h5"
    if not data.exists():
        per_class = n_images // 5
        write_lesions(
            data, {"train": per_class * 8 // 10, "val": per_class // 10, "test": per_class // 10}, size_px=224
        )
    if not (work / "teacher").exists():
        write_teacher(work / "teacher", data, width=1152, patch_px=32, layers=1)
    if not cache.exists():
        softlabel("cache", "build", data, "-o", cache, "--teacher", work / "teacher")
    return cache


def one_round(work: Path) -> tuple[float, float]:
    """(seconds of a build that pulls all its rows, seconds of `train` to the end of its first step)."""
    out = work / "pulled.h5"
    out.unlink(missing_ok=True)
    began = time.time()
    said = softlabel(
        "cache", "build", work / "images", "-o", out, "--teacher", work / "teacher", "--store", STORE, "--yes"
    )
    built_s = time.time() - began
    assert "(0 computed now" in said, said
    train = ["train", work / "images", out, "--student", "shufflenet_v2_x0_5", "--student-size", "96", "--anyway"]
    words = [*map(str, train), "-o", str(work / f"run-{time.time_ns()}")]
    command = [sys.executable, "-c", FIRST_STEP, str(time.time()), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return built_s, float(done.stdout.split()[-1])


def softlabel(*words: object) -> str:
    """Run one command to its end; what it printed."""
    done = subprocess.run([*SOFTLABEL, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"softlabel {' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def s3_server() -> Iterator[None]:
    """moto's S3 on loopback with an empty bucket `team`."""
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(PORT)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        import s3fs

        for _ in range(120):
            try:
                s3fs.S3FileSystem().mkdir("team")
                break
            except OSError:
                time.sleep(0.5)
        yield
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
