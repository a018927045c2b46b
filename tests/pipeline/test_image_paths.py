"""Which image files are meant: named, below folders, in lists; and what is said where something else is named."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadOption, DataNotFound
from pipeline.errors import RunError
from pipeline.image_paths import check_model_and_images, image_paths, listed_paths

some_names = st.lists(st.binary(min_size=1).filter(lambda name: not set(name) & set(b"\0\n\r") and name.strip()))


@given(some_names, st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r\n \r\n"]), st.booleans())
def test_a_list_gives_every_path_whatever_ends_its_lines(names: list[bytes], end: bytes, is_last_ended: bool) -> None:
    text = end.join(names) + (end if is_last_ended else b"")
    if not text.startswith(b"\xef\xbb\xbf"):
        assert list(map(os.fsencode, listed_paths(text))) == names


@given(st.lists(st.binary(min_size=1).filter(lambda name: b"\0" not in name)))
def test_a_list_of_find_print0_gives_every_path_with_line_ends_in_it(names: list[bytes]) -> None:
    text = b"".join(name + b"\0" for name in names)
    if not text.startswith(b"\xef\xbb\xbf"):
        assert list(map(os.fsencode, listed_paths(text, null=True))) == names


def test_a_list_of_powershell_is_read_or_explained() -> None:
    assert listed_paths("a.jpg\r\n".encode("utf-8-sig")) == ["a.jpg"]
    with pytest.raises(BadOption, match=r"NUL characters: pass --null if .* else save it as UTF-8"):
        listed_paths("a.jpg\r\n".encode("utf-16"))


def test_files_and_folders_are_taken_in_the_order_given_and_twice_where_named_twice(
    tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_data / "test" / "melanoma"
    below = sorted(map(str, folder.iterdir()))
    found = image_paths([below[1], folder, below[1]])
    assert found.good == [below[1], *below, below[1]]
    assert (found.bad, len(found), caplog.text) == ([], 5, "")


def test_what_is_left_out_of_folders_is_said(tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(tiny_data / "test" / "melanoma", tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "notes.txt").write_text("x")
    (tmp_path / "a" / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pt").write_text("x")
    with caplog.at_level(logging.INFO):
        found = image_paths([tmp_path])
    assert [Path(path).name for path in found.good] == ["00000.png", "00001.png", "00002.png"]
    assert [(Path(file.path).name, file.reason) for file in found.bad] == [("gone.jpg", "a link to nothing")]
    assert "ignored: 1 files that are not named like images (.txt 1)" in caplog.text
    assert "not looked into: 1 folders that softlabel wrote" in caplog.text


def test_a_folder_without_images_is_an_error_that_names_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"no images below .*; expected files that end in \.bmp, "):
        image_paths([tmp_path])
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.dcm").write_text("x")
    with pytest.raises(DataNotFound, match=r"\(ignored: 1 files .* \(\.dcm 1\)\); expected files"):
        image_paths([tmp_path])
    (tmp_path / "ham.yaml").write_text("csv: t.csv")
    with pytest.raises(DataNotFound, match=r"there is .*ham\.yaml: `softlabel evaluate MODEL .*ham\.yaml` takes"):
        image_paths([tmp_path])


@pytest.mark.parametrize("word", ["t.csv", "t.TSV", "d.yaml", "hf:marmal88/skin_cancer", "torchvision:CIFAR10"])
def test_a_data_set_in_the_place_of_images_names_the_command_that_takes_it(word: str) -> None:
    with pytest.raises(DataNotFound, match=f"predict takes image files and folders.*`softlabel evaluate MODEL {word}`"):
        image_paths(["a.jpg", word])


def test_a_cache_in_the_place_of_images_or_of_the_model_is_named(tiny_cache: Path, tiny_run: Path) -> None:
    with pytest.raises(DataNotFound, match=r"is a cache: predict takes image files .*; name the images' folder"):
        image_paths([tiny_cache])
    with pytest.raises(RunError, match="is a cache, no student"):
        check_model_and_images(tiny_cache, ["a.jpg"])


def test_model_and_images_in_each_others_place_name_the_order(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    image = next(tiny_data.glob("test/*/*.png"))
    for images in (image, tiny_data):
        for model in (tiny_run, "student.pt"):
            with pytest.raises(RunError, match=r"is no student, and .* the order is `softlabel predict MODEL IMAGE"):
                check_model_and_images(images, [model])
    with pytest.raises(RunError, match="is an image, no student"):
        check_model_and_images(image, [image])
    with pytest.raises(RunError, match="name a run folder or an exported file, then images"):
        check_model_and_images("ham.yaml", [image])
    with pytest.raises(DataNotFound, match="predict takes one MODEL, then image files"):
        check_model_and_images(tiny_run, [image, tiny_run])
