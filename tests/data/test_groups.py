"""Groups are read by image name and never guessed; folds keep groups whole and know nothing but groups."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadSamples, DataNotFound
from data.groups import group_folds, read_groups
from data.samples import Sample


def sample(name: str, key: str = "") -> Sample:
    return Sample((key or name).encode().ljust(16)[:16], f"/images/{name}", name, name.split("/")[0], {})


A, B = sample("train/mel/a.jpg"), sample("train/nv/b.jpg")


def groups(tmp_path: Path, text: str, *samples: Sample, column: str = "lesion", **options: object) -> list[str]:
    (tmp_path / "t.csv").write_text(text)
    found = read_groups(samples or (A, B), tmp_path / "t.csv", column, **options)
    return [found[one.key] for one in samples or (A, B)]


@pytest.mark.parametrize(
    "text",
    [
        "image_id,lesion\na,1\nb,2\n",
        "lesion,image\n1,a.jpg\n2,b.jpg\n",
        "\ufeffpath,lesion\ntrain/mel/a.jpg,1\ntrain/nv/b.jpg,2\n",
        "filename,lesion\nelsewhere\\a.jpg,1\n/home/me/b.jpg,2\n",
        "name,lesion\n a , 1 \nb,2\nc,3\n",
        "image_id,name,lesion\na,x,1\nb,y,2\n",
    ],
    ids=["stem", "file name", "relative path", "other folders", "blanks and strangers", "the first column counts"],
)
def test_a_row_is_found_by_whatever_it_calls_its_image(text: str, tmp_path: Path) -> None:
    assert groups(tmp_path, text) == ["1", "2"]


def test_the_relative_path_decides_between_images_of_one_name(tmp_path: Path) -> None:
    other = sample("test/mel/a.jpg")
    text = "path,lesion\ntrain/mel/a.jpg,1\ntest/mel/a.jpg,2\n"
    assert groups(tmp_path, text, A, other) == ["1", "2"]


def test_a_row_with_a_relative_path_says_nothing_of_images_of_that_name_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,lesion\ntrain/mel/a.jpg,1\n")
    samples = (A, sample("test/mel/a.jpg"), sample("test/nv/a.jpg"))
    found = read_groups(samples, tmp_path / "t.csv", "lesion", required=lambda one: one.split == "train")
    assert found == {A.key: "1"}


def test_an_image_column_of_another_name_is_named(tmp_path: Path) -> None:
    assert groups(tmp_path, "scan,lesion\na,1\nb,2\n", image_column="scan") == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image_id,lesion\na,1\n", "train/nv/b.jpg: no row, or an empty lesion"),
        ("image_id,lesion\na,1\nb,\n", "train/nv/b.jpg: no row, or an empty lesion"),
        ("image_id,lesion\na,1\nb,2\nb,3\n", "train/nv/b.jpg: rows say 2 and 3"),
    ],
)
def test_an_image_without_one_certain_group_is_listed(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadSamples, match="does not give one lesion to each of 1 of 2 images") as caught:
        groups(tmp_path, text)
    assert said in str(caught.value)


def test_a_line_that_is_cut_off_is_told_and_not_taken_for_an_image_without_a_group(tmp_path: Path) -> None:
    with pytest.raises(BadSamples, match=r"1 rows of .* more or fewer cells than its header(.|\n)*line 3: 1 cells"):
        groups(tmp_path, "image_id,lesion\na,1\nb\n")


def test_one_row_that_fits_several_images_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(BadSamples, match=r"2 of 2 images(.|\n)*its row fits 2 images: write relative paths"):
        groups(tmp_path, "image_id,lesion\na,1\n", A, sample("test/nv/a.jpg"))


def test_the_same_bytes_under_two_names_have_one_group(tmp_path: Path) -> None:
    twin = sample("train/nv/twin.jpg", key=A.name)
    assert groups(tmp_path, "image_id,lesion\na,1\ntwin,1\n", A, twin) == ["1", "1"]
    with pytest.raises(BadSamples, match=r"twin\.jpg: rows say 1 and 2"):
        groups(tmp_path, "image_id,lesion\na,1\ntwin,2\n", A, twin)


def test_an_image_that_needs_no_group_may_have_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image_id,lesion\na,1\n")
    samples = (A, sample("test/nv/b.jpg"))
    found = read_groups(samples, tmp_path / "t.csv", "lesion", required=lambda one: one.split == "train")
    assert found == {A.key: "1"}


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("image_id,lesion\n", "patient", r"has no column patient; it has image_id, lesion"),
        ("picture,lesion\n", "lesion", r"has no column image_id, image, .*it has picture, lesion: .*--image-column"),
        ("", "lesion", "it has none"),
    ],
)
def test_a_column_that_is_not_there_is_told_with_those_that_are(
    text: str, column: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(BadSamples, match=said):
        groups(tmp_path, text, column=column)


@pytest.mark.parametrize("text", ["image,lesion,lesion\na,1,2\nb,1,2\n", "image,lesion,image\na,1,c\nb,1,d\n"])
def test_a_column_that_is_there_twice_is_not_chosen_from(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadSamples, match=r"t\.csv has 2 columns (lesion|image): keep one of them"):
        groups(tmp_path, text)


def test_a_table_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"cannot read .*none\.csv"):
        read_groups((A,), tmp_path / "none.csv", "lesion")


NAMES = st.lists(st.sampled_from("abcdefghijklmnop"), min_size=8, max_size=60).filter(lambda names: len(set(names)) > 4)


@given(names=NAMES, n_folds=st.integers(2, 5), seed=st.integers(0, 9), shuffled=st.randoms())
def test_folds_keep_groups_whole_fill_up_evenly_and_forget_the_order(
    names: list[str], n_folds: int, seed: int, shuffled: object
) -> None:
    folds = group_folds(names, n_folds, seed)
    fold_of = dict(zip(names, folds.tolist(), strict=True))
    assert [fold_of[name] for name in names] == folds.tolist()
    sizes = np.bincount(folds, minlength=n_folds)
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= max(Counter(names).values())
    shuffled.shuffle(names)
    assert [fold_of[name] for name in names] == group_folds(names, n_folds, seed).tolist()


def test_another_seed_draws_other_folds() -> None:
    names = [str(number) for number in range(50)]
    assert not np.array_equal(group_folds(names, 5, 0), group_folds(names, 5, 1))


def test_fewer_groups_than_folds_is_told() -> None:
    with pytest.raises(BadSamples, match="2 groups cannot fill 3 folds"):
        group_folds(["a", "b", "a"], 3)
