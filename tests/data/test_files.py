"""Reading a file that somebody named: its bytes, or a reason that tells a wrong name from a disk that fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from data.errors import BadFile
from data.files import read_file


def test_a_file_has_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0anything")
    assert read_file(str(tmp_path / "a.jpg")) == b"\0anything"


@pytest.mark.parametrize(
    ("name", "reason", "is_missing"),
    [
        ("none.jpg", "no such file", True),
        ("empty.jpg/a.jpg", "no such file", True),
        ("", "a folder that is named like an image", False),
        ("empty.jpg", "the file is empty", False),
        ("link.jpg", "a link to nothing", False),
    ],
)
def test_what_has_no_bytes_has_a_reason_that_is_not_the_disks(
    name: str, reason: str, is_missing: bool, tmp_path: Path
) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    path = os.path.join(tmp_path, name)
    assert read_file(path) == BadFile(path, reason, is_missing=is_missing)


def test_a_disk_that_fails_says_nothing_about_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> os.stat_result:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "stat", failing)
    found = read_file("a.jpg")
    monkeypatch.undo()
    assert isinstance(found, BadFile)
    assert (found.is_system, found.is_missing) == (True, False)
    assert "Input/output error" in found.reason
