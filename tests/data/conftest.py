"""Files and tables that several tests of data sets make. No file here is ever decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from data.options import ScanOptions
from data.samples import SampleSet
from data.scan import scan_data

Files = Callable[..., Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """`files("a/x.jpg", ...)` below the test's folder, each with its own name as content."""

    def files(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(name.encode())
        return tmp_path

    return files


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """`table("a,b", rows)`: t.csv in the test's folder."""

    def table(header: str, rows: Iterable[str], name: str = "t.csv") -> Path:
        (tmp_path / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return tmp_path / name

    return table


@pytest.fixture
def scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SampleSet]:
    """`scan(label_columns=("dx",), ...)` of the test's folder, which is the working folder."""
    monkeypatch.chdir(tmp_path)

    def scan(data: str | Path = ".", **settings: object) -> SampleSet:
        return scan_data(data, ScanOptions(**settings))

    return scan
