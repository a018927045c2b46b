"""Splits that keep groups whole, k-fold, several tasks, and the part of train that validates."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import BadOption, BadSamples
from data.samples import Sample, SampleSet
from data.splits import hold_out, joint_labels, load_or_make, load_or_make_folds, stratified_subset

Scan = Callable[..., SampleSet]
Files = Callable[..., Path]
MakeTable = Callable[..., Path]


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def sample(number: int, group: str = "", **labels: str) -> Sample:
    return Sample(key(number), "", f"{number}.jpg", "train", labels, group)


def lesions(n_groups: int = 120) -> tuple[dict[bytes, str], dict[bytes, str]]:
    """Key -> label and key -> lesion: one to four images a lesion, three classes."""
    label_of, group_of = {}, {}
    for group in range(n_groups):
        for _ in range(1 + group % 4):
            number = key(len(label_of))
            label_of[number], group_of[number] = "nv" if group % 10 > 3 else ("mel", "df")[group % 2], f"HAM_{group}"
    return label_of, group_of


def make(label_of: dict[bytes, str], group_of: dict[bytes, str], path: Path, seed: int = 0) -> dict[bytes, str]:
    return load_or_make(label_of, {k: k.hex() for k in label_of}, path, seed, group_of=group_of)


def is_whole(place_of: dict[bytes, object], group_of: dict[bytes, str]) -> bool:
    """Whether each group is in one place."""
    return len({(group, place_of[k]) for k, group in group_of.items()}) == len(set(group_of.values()))


def test_a_split_with_groups_tears_none_and_has_the_shares_and_all_classes(tmp_path: Path) -> None:
    label_of, group_of = lesions()
    assigned = make(label_of, group_of, tmp_path / "s.csv")
    assert is_whole(assigned, group_of)
    counts = Counter(assigned.values())
    assert 0.10 < counts["test"] / len(label_of) < 0.20
    assert 0.10 < counts["val"] / len(label_of) < 0.20
    assert len({(split, label_of[k]) for k, split in assigned.items()}) == 9


def test_groups_of_one_image_each_change_nothing(tmp_path: Path) -> None:
    label_of, _ = lesions()
    alone = {k: k.hex() for k in label_of}
    assert make(label_of, alone, tmp_path / "a.csv") == make(label_of, {}, tmp_path / "b.csv")


def test_a_class_of_one_group_stays_in_train_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    label_of, group_of = lesions()
    rare = [key(n) for n in range(1000, 1005)]
    label_of |= dict.fromkeys(rare, "vasc")
    assigned = make(label_of, group_of | dict.fromkeys(rare, "one"), tmp_path / "s.csv")
    assert {assigned[k] for k in rare} == {"train"}
    assert "test has no image of vasc: too few groups or images" in caplog.text


def test_images_added_later_join_their_group(tmp_path: Path) -> None:
    label_of, group_of = lesions()
    first = make(label_of, group_of, tmp_path / "s.csv")
    tested = next(group for k, group in group_of.items() if first[k] == "test")
    new = {key(5000): "nv", key(5001): "nv"}
    second = make(label_of | new, group_of | {key(5000): tested}, tmp_path / "s.csv")
    assert (second[key(5000)], second[key(5001)]) == ("test", "train")


def test_too_few_groups_are_told(tmp_path: Path) -> None:
    label_of = {key(n): "ab"[n % 2] for n in range(20)}
    with pytest.raises(BadSamples, match="2 groups cannot fill 7 parts"):
        make(label_of, {k: f"{n % 2}" for n, k in enumerate(label_of)}, tmp_path / "s.csv")
    assert not list(tmp_path.iterdir())


GROUPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), min_size=60, max_size=90)


@settings(max_examples=15, deadline=None)
@given(drawn=GROUPS, seed=st.integers(0, 5), shuffled=st.randoms())
def test_no_group_is_torn_and_no_order_matters(
    drawn: list[tuple[str, int]], seed: int, shuffled: random.Random
) -> None:
    samples = [sample(n, f"g{group}", dx=label) for n, (label, group) in enumerate(drawn)]
    try:
        chosen = hold_out(samples, 0.2, seed)
    except BadSamples:  # fewer than two images of a class, or fewer groups than parts
        return
    assert not {s.group for s in samples if s.key in chosen} & {s.group for s in samples if s.key not in chosen}
    shuffled.shuffle(samples)
    assert hold_out(samples, 0.2, seed) == chosen


def test_without_groups_the_part_that_validates_is_what_it_always_was() -> None:
    samples = [sample(n, dx="abc"[n % 3]) for n in range(90)]
    expected = stratified_subset({s.key: s.labels["dx"] for s in samples}, 0.15, 7)
    assert hold_out(samples, 0.15, 7) == expected
    assert hold_out([*samples, sample(1000)], 0.15, 7) == expected, "an image without a label is not drawn"


def test_an_unlabelled_image_is_held_out_with_its_group() -> None:
    samples = [sample(n, f"P{n // 3}", **({"dx": "ab"[n % 2]} if n % 3 else {})) for n in range(120)]
    chosen = hold_out(samples, 0.2, 0)
    assert not {s.group for s in samples if s.key in chosen} & {s.group for s in samples if s.key not in chosen}
    assert {bool(s.labels) for s in samples if s.key in chosen} == {True, False}


def test_several_tasks_are_drawn_by_their_combination_and_rare_ones_together() -> None:
    samples = [sample(n, dx="ab"[n % 2], sex="mf"[n // 2 % 2]) for n in range(80)]
    samples += [sample(100 + n, dx="c", sex="mf"[n % 2]) for n in range(3)]
    strata = joint_labels(samples, 5)
    assert Counter(strata.values()) == {
        "dx a, sex m": 23, "dx a, sex f": 20, "dx b, sex m": 20, "dx b, sex f": 20,
    }, "three rare ones are too few for a stratum of their own"  # fmt: skip
    assert Counter(joint_labels(samples, 3).values())["other"] == 3
    assert Counter(strata[k] for k in hold_out(samples, 0.2, 0)).most_common()[-1][1] >= 4


def test_folds_cover_every_image_once_by_class_and_are_remembered(tmp_path: Path) -> None:
    label_of, group_of = lesions()
    names = {k: k.hex() for k in label_of} | {key(9000): "unlabelled"}
    for groups in ({}, group_of):
        path = tmp_path / f"folds{len(groups)}.csv"
        fold_of = load_or_make_folds(label_of, names, path, 5, group_of=groups)
        assert Counter(fold_of.values()).keys() == {0, 1, 2, 3, 4, 5}
        assert fold_of.pop(key(9000)) == 0
        assert is_whole(fold_of, groups)
        shares = Counter((fold, label_of[k]) for k, fold in fold_of.items())
        assert all(shares[fold, "nv"] for fold in range(1, 6))
        content = path.read_bytes()
        again = load_or_make_folds(dict(reversed(label_of.items())), names, path, 5, group_of=groups)
        assert ({**fold_of, key(9000): 0}, path.read_bytes()) == (again, content)


def test_a_fold_is_test_and_all_folds_together_are_the_data(files: Files, scan: Scan) -> None:
    files(*(f"{label}/{n}.jpg" for label in ("mel", "nv") for n in range(15)))
    everything = scan(folds=5)
    assert everything.splits == ("train",)
    tested = []
    for fold in range(1, 6):
        found = scan(folds=5, fold=fold)
        assert {sample.key for sample in found.samples} == {sample.key for sample in everything.samples}
        tested += [sample.key for sample in found.of_split("test")]
    assert sorted(tested) == sorted(sample.key for sample in everything.samples)
    assert [path.name for path in Path().glob("*.csv")] == ["folds-5.csv"]


def test_each_seed_has_its_own_split_and_file(files: Files, scan: Scan) -> None:
    files(*(f"{label}/{n}.jpg" for label in ("mel", "nv") for n in range(20)))
    first, second = scan(), scan(split_seed=3)
    assert {s.key for s in first.of_split("test")} != {s.key for s in second.of_split("test")}
    assert sorted(path.name for path in Path().glob("*.csv")) == ["splits-seed-3.csv", "splits.csv"]
    assert scan(split_seed=0).samples == first.samples
    assert scan(split_seed=3).samples == second.samples


@pytest.mark.parametrize("words", [{"folds": 3}, {"split_seed": 1}])
def test_a_data_set_with_splits_is_not_split_again(words: dict[str, int], files: Files, scan: Scan) -> None:
    files(*(f"{split}/{label}/1.jpg" for split in ("train", "test") for label in ("mel", "nv")))
    with pytest.raises(BadOption, match=r"has splits of its own \(train, test\): --(folds|split-seed) is for"):
        scan(**words)


@pytest.mark.parametrize(
    ("label_of", "said"),
    [
        ({key(n): "ab"[n % 2] for n in range(4)}, "4 images cannot fill 5 folds"),
        ({key(n): "a" if n else "b" for n in range(9)}, r"too few images of b \(1\)"),
        ({key(n): f"{n // 2}" for n in range(9 * 2)}, "18 images cannot be cut into 5 parts by class"),
    ],
)
def test_too_few_images_for_the_folds_are_told(label_of: dict[bytes, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(BadSamples, match=said):
        load_or_make_folds(label_of, dict.fromkeys(label_of, "x"), tmp_path / "f.csv", 5)
