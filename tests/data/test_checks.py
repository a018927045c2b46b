"""The check of all files before a long run."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from data import checks
from data.checks import undecodable
from data.errors import BadImage
from data.samples import Sample


def samples_of(n: int) -> list[Sample]:
    return [Sample(number.to_bytes(16, "big"), str(number), str(number), "train", {}) for number in range(n)]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were read so far; those that end in 7 are bad."""
    paths: list[str] = []
    lock = threading.Lock()

    def read_sample(sample: Sample) -> None:
        with lock:
            paths.append(sample.path)
        if sample.path.endswith("7"):
            raise BadImage("not an image", sample.path)

    monkeypatch.setattr(checks, "read_sample", read_sample)
    monkeypatch.setattr(checks, "_WAITING", 16)
    return paths


@pytest.mark.parametrize("n", [0, 3, 16, 17, 100])
def test_every_sample_is_checked_once_and_told_in_order(n: int, read: list[str]) -> None:
    samples = samples_of(n)
    found = list(undecodable(samples))
    assert [sample for sample, _ in found] == samples
    assert [sample.path for sample, error in found if error is not None] == [
        p.path for p in samples if p.path[-1] == "7"
    ]
    assert sorted(read) == sorted(sample.path for sample in samples)


def test_only_a_few_samples_wait_at_a_time_and_none_is_read_after_an_interrupt(read: list[str]) -> None:
    found = undecodable(samples_of(1000))
    next(found)
    found.close()
    assert len(read) <= 16


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    sample = Sample(bytes(16), str(tmp_path / "gone.png"), "gone.png", "train", {})
    ((_, error),) = undecodable([sample])
    assert error is not None
    assert "gone.png" in str(error)
