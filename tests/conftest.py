"""A tiny real data set, teacher, cache and run, through the same code that users run."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from pipeline.build import BuildConfig, build_cache
from pipeline.demo.lesions import write_lesions
from pipeline.train import TrainConfig, train
from reliability.tiny import write_teacher

TINY_TRAIN = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=2, batch_size=8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The documentation first: its one long test would else be alone at the end, while the other process idles."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Where tests run in the background (nohup), they ignore Ctrl-C, and so would the processes that they start."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a test downloads or remembers lands in the folders of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of 5 classes in train, val and test."""
    root = tmp_path_factory.mktemp("tiny") / "images"
    write_lesions(root, {"train": 6, "val": 3, "test": 3}, size_px=48)
    return root


@pytest.fixture(scope="session")
def tiny_teacher(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that AutoModel, AutoTokenizer and AutoImageProcessor load."""
    return write_teacher(tmp_path_factory.mktemp("teacher"), tiny_data)


@pytest.fixture(scope="session")
def tiny_build(tiny_teacher: Path) -> BuildConfig:
    """Settings of the tiny cache."""
    return BuildConfig(teacher=str(tiny_teacher), views=3, precision="fp32", batch_size=4, device="cpu", workers=0)


@pytest.fixture(scope="session")
def tiny_cache(tiny_data: Path, tiny_build: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the tiny data: 30 train images with 3 views, 30 others with the clean one."""
    return build_cache(tiny_data, tmp_path_factory.mktemp("cache") / "t.h5", tiny_build).path


@pytest.fixture(scope="session")
def tiny_run(tiny_data: Path, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    return train(tiny_data, tiny_cache, tmp_path_factory.mktemp("runs") / "run", TINY_TRAIN, workers=0).path


@pytest.fixture
def _loggers_as_they_were() -> Iterator[None]:
    """The command line sends our log records to standard error; later tests look for them in `caplog`."""
    loggers = [logging.getLogger(name) for name in ("cache", "data", "pipeline")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], _loggers_as_they_were: None) -> Callable[..., tuple[int, str, str]]:
    """Run one command line in this process: (exit code, standard output, standard error)."""
    from pipeline.cli import run

    def run_words(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([str(word) for word in words])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run_words


@pytest.fixture
def clean_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For processes: this environment on one thread, without tokens and with an empty hub cache."""
    foreign = ("HF_", "HUGGING", "PYTEST", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "HF_HOME": str(tmp_path_factory.mktemp("hub")), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def file_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Inside `file_limit(n)` the kernel refuses this process bytes beyond the first n of any file: a full disk."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def file_limit(n_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return file_limit
