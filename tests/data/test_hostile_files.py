"""A folder of odd, broken and hostile files: each kind is told as what it is, all at once, and nothing hangs."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest

from data.checks import checked
from data.errors import BadImage
from data.files import images_below
from data.options import ScanOptions
from data.samples import SampleSet
from data.scan import scan_data

from .hostile_files import FINE, IGNORED, SEVERAL, encoded, write_hostile_files


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A data folder with one of each kind in one class, and what is to be said of each."""
    data = tmp_path_factory.mktemp("hostile") / "images"
    said = write_hostile_files(data / "train" / "odd")
    for number in range(3):
        path = data / "train" / "plain" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(900 + number, "PNG"))
    return data, said


@pytest.fixture(scope="module")
def found(hostile: tuple[Path, dict[str, str]]) -> SampleSet:
    return scan_data(hostile[0], ScanOptions(collect_bad_files=True))


def test_every_kind_is_told_as_what_it_is(hostile: tuple[Path, dict[str, str]], found: SampleSet) -> None:
    said: dict[str, str] = {file.path: file.reason for file in found.bad}
    for image in checked([sample for sample in found.samples if sample.labels["class"] == "odd"]):
        several = SEVERAL if image.n_frames > 1 else FINE
        said[image.sample.path] = image.bad.reason if image.bad else several
    expected = hostile[1]
    assert said.keys() == expected.keys()
    assert len(said) >= 70
    assert {path: reason for path, reason in said.items() if not re.fullmatch(expected[path], reason)} == {}


def test_what_has_no_bytes_is_listed_at_once_and_says_which_flag_leaves_it_out(
    hostile: tuple[Path, dict[str, str]], found: SampleSet
) -> None:
    data, _ = hostile
    n_files = len(found.samples) + len(found.bad)
    with pytest.raises(BadImage, match=f"{len(found.bad)} of {n_files} images .*--skip-bad-images") as caught:
        scan_data(data)
    assert len(str(caught.value).splitlines()) == 1 + len(found.bad)


def test_other_files_are_counted_by_suffix_and_names_that_are_not_utf_8_are_told(
    hostile: tuple[Path, dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    data, said = hostile
    with caplog.at_level(logging.INFO):
        found = scan_data(data, ScanOptions(skip_bad_images=True))
    assert "ignored: 5 files that are not named like images (.gif 2, no suffix 1, .db 1, .txt 1)" in caplog.messages
    if any(not path.isascii() and path.encode(errors="replace").count(b"?") for path in said):
        assert sum("1 names of images are not UTF-8" in message for message in caplog.messages) == 1
        assert r"train/odd/caf\udce9.jpg" in caplog.text
    assert sum("are left out:" in message for message in caplog.messages) == 1
    assert not {Path(sample.path).name for sample in found.samples} & set(IGNORED)


def test_links_that_lead_back_are_not_followed_and_links_to_each_other_end(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").write_bytes(name.encode())
        (tmp_path / name / f"to {other}").symlink_to(tmp_path / other)
    found = images_below(tmp_path)
    assert [Path(path).relative_to(tmp_path).as_posix() for path in found.paths] == [
        "a/a.png", "a/to b/b.png", "b/b.png", "b/to a/a.png",
    ]  # fmt: skip
    assert [Path(file.path).relative_to(tmp_path).as_posix() for file in found.bad] == ["a/to b/to a", "b/to a/to b"]


def test_a_folder_that_may_not_be_listed_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "secret").mkdir(parents=True)
    scandir = os.scandir

    def refusing(folder: str) -> object:
        if folder.endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    (bad,) = images_below(tmp_path).bad
    assert (bad.path, bad.reason, bad.is_system) == (str(tmp_path / "a" / "secret"), "no permission to read it", False)
