"""Who is stopped and who passes; what a training, `--anyway` and `cache info --data` say of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cache import CacheReader, Table
from data.scan import scan_data
from pipeline.errors import WeakTeacher
from pipeline.gate.check import check_teacher, long_lines, short_lines
from pipeline.gate.report import teacher_report
from pipeline.targets import SEEN, TeacherTargets

Cli = Callable[..., tuple[int, str, str]]
Told = Callable[..., TeacherTargets]
STUDENT = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 1, "--batch-size", 8, "--workers", 0)
IMBALANCED = np.repeat(range(7), (20, 25, 60, 8, 60, 280, 10))


def says(predicted: np.ndarray, n_classes: int = 7) -> np.ndarray:
    return np.eye(n_classes)[predicted] * 4 + np.random.default_rng(0).normal(0, 0.1, (len(predicted), n_classes))


def right_in(share: float, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Answers that are right in this share of images, any otherwise."""
    generator = np.random.default_rng(seed)
    return np.where(generator.random(len(labels)) < share, labels, generator.integers(0, 7, len(labels)))


def stopped(targets: TeacherTargets) -> str:
    with pytest.raises(WeakTeacher) as caught:
        check_teacher(teacher_report(targets, "val", None), targets.reader, "my t.h5", ["DATA"])
    return str(caught.value)


def passes(targets: TeacherTargets) -> bool:
    check_teacher(teacher_report(targets, "val", None), targets.reader, "t.h5", ["DATA"])
    return True


def test_a_random_head_is_stopped_with_its_numbers_and_what_to_do(told: Told) -> None:
    logits = np.random.default_rng(0).normal(size=(len(IMBALANCED), 7))
    said = stopped(told(IMBALANCED, logits, teacher={"kind": "siglip"}, embedding=True))
    assert "the teacher is near chance: balanced accuracy 0." in said
    assert "over 7 classes" in said
    assert "on 463 val images" in said
    for line in (
        "softlabel cache info 'my t.h5'", "softlabel cache rehead 'my t.h5' --teacher DIR --prompts new.yaml -o new.h5",
        "softlabel cache probe 'my t.h5' DATA -o probe.h5", "--anyway", "--no-teacher",
    ):  # fmt: skip
        assert line in said


def test_always_the_largest_class_is_stopped_though_it_is_right_in_most_images(told: Told) -> None:
    targets = told(IMBALANCED, says(np.full(len(IMBALANCED), 5)))
    assert teacher_report(targets, "val", None).metrics.accuracy > 0.6
    assert "balanced accuracy 0.143 over 7 classes is 0.000 adjusted for chance" in stopped(targets)


def test_a_few_right_answers_in_few_images_are_no_proof(told: Told) -> None:
    labels = np.arange(7).repeat(2)
    said = stopped(told(labels, says(np.where(np.arange(14) < 2, labels, 6))))
    assert "is 0.167 adjusted for chance (at least 0.05 is asked), p 0." in said
    assert "so few images cannot tell the teacher from chance: balanced accuracy 0." in said
    assert "near chance" not in said


@pytest.mark.parametrize("seed", range(3))
def test_a_weak_teacher_that_knows_something_passes(seed: int, told: Told) -> None:
    assert passes(told(IMBALANCED, says(right_in(0.25, IMBALANCED, seed))))


def test_a_permuted_class_list_is_stopped_with_the_renaming(told: Told) -> None:
    answers = says((right_in(0.6, IMBALANCED) + 1) % 7)
    said = stopped(told(IMBALANCED, answers, teacher={"kind": "siglip"}, embedding=True))
    assert "'class 5' images get 'class 6' (6" in said
    assert "class names or prompts are in the wrong order" in said
    assert "softlabel cache rehead 'my t.h5' --teacher DIR --prompts new.yaml -o new.h5" in said
    assert "--anyway" in said


REHEAD, FIT_A_HEAD = "softlabel cache rehead 'my t.h5'", "softlabel cache probe 'my t.h5' DATA"
KINDS: dict[str, tuple[dict[str, str], bool, tuple[str, ...], str]] = {
    "prompted, without embeddings": ({"kind": "clip"}, False, (), "put the prompts file right, and build"),
    "a classifier": ({"kind": "timm", "head": "linear"}, True, (FIT_A_HEAD,), "`--teacher-config` with a line"),
    "TorchScript": ({"kind": "torchscript", "head": "outputs"}, False, (), "`--teacher-config` with a line"),
    "imported": ({"kind": "imported", "as": "logits"}, False, (), "put the names of the columns of SCORES right"),
    "probed": ({"kind": "siglip", "head": "probe"}, True, (), "put the class folders right, and probe anew"),
    "re-headed": ({"kind": "siglip", "head": "rehead"}, True, (REHEAD, FIT_A_HEAD), REHEAD),
    "of another program": ({"name": "somebody's"}, False, (), "`--teacher-config` with a line"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_commands_that_can_work_on_the_cache_are_named(kind: str, told: Told) -> None:
    teacher, embedding, commands, renamed = KINDS[kind]
    constant = told(IMBALANCED, says(np.full(len(IMBALANCED), 5)), teacher=teacher, embedding=embedding)
    said = stopped(constant)
    assert {command for command in (REHEAD, FIT_A_HEAD) if command in said} == set(commands)
    assert "softlabel cache info 'my t.h5'" in said
    shifted = says((right_in(0.6, IMBALANCED) + 1) % 7)
    said = stopped(told(IMBALANCED, shifted, teacher=teacher, embedding=embedding, name="shifted.h5"))
    assert renamed in said
    assert (REHEAD in said) == (REHEAD in commands)


def test_two_swapped_classes_of_a_good_teacher_are_stopped_and_only_they_are_named(told: Told) -> None:
    swapped = np.array([0, 1, 2, 3, 5, 4, 6])[right_in(0.8, IMBALANCED)]
    targets = told(IMBALANCED, says(swapped))
    said = stopped(targets)
    assert "'class 4' images get 'class 5' (" in said
    assert "'class 5' images get 'class 4' (" in said
    assert said.count("images get") == 2
    report = teacher_report(targets, "val", None)
    assert any(line.startswith("verdict     the teacher's classes look renamed: ") for line in long_lines(report))
    renaming = json.loads(json.dumps(report.to_dict()))["verdict"]["renaming"]
    assert renaming["said_as"] == {"class 4": "class 5", "class 5": "class 4"}
    assert renaming["balanced_accuracy"] > 0.7


def test_a_teacher_that_confuses_two_classes_passes(told: Told) -> None:
    generator, right = np.random.default_rng(0), right_in(0.5, IMBALANCED)
    either = generator.integers(4, 6, len(IMBALANCED))
    assert passes(told(IMBALANCED, says(np.where(np.isin(IMBALANCED, (4, 5)), either, right))))


def test_a_long_list_of_renamed_classes_is_cut_off(told: Told) -> None:
    labels = np.arange(40).repeat(10)
    assert " and 32 more. Balanced accuracy is 0.000, and 1.000 with" in stopped(
        told(labels, says((labels + 1) % 40, 40))
    )


@pytest.mark.parametrize(
    ("temperature", "said"),
    [
        (4.0, None), (1.0, "T 1 of this run lies below that: its soft targets will repeat labels, try --temperature 3"),
        (30.0, "T 30 of this run lies above that: its soft targets will be near uniform, try --temperature 9"),
    ],
)  # fmt: skip
def test_a_temperature_of_the_run_outside_the_range_is_said(temperature: float, said: str | None, told: Told) -> None:
    targets = told([0, 1] * 20, np.array([[10.0, 0], [0, 10]] * 20))
    line = short_lines(teacher_report(targets, "val", None), temperature)[1]
    assert line.startswith("T of about 3 to 9 leaves 0.3 to 0.8 of the largest entropy")
    assert ("of this run" not in line) if said is None else line.endswith(said)


def test_seen_images_are_spoken_of(told: Told) -> None:
    some = teacher_report(told([0, 1] * 4, np.eye(2)[[0, 1] * 4], seen=[1, 1] + [0] * 6), "val", None)
    assert "2 other val images left out: it was fitted on them" in short_lines(some, 4.0)
    every = teacher_report(told([0, 1] * 4, np.eye(2)[[0, 1] * 4], seen=[1] * 8, name="every.h5"), "val", None)
    assert any("too good to be true" in line for line in long_lines(every))


@pytest.fixture
def random_cache(tiny_cache: Path, resealed: Callable[..., Path]) -> Path:
    """The tiny cache with answers that have nothing to do with the images."""

    def change(table: Table) -> None:
        table.logits["class"][:] = np.random.default_rng(0).normal(size=table.logits["class"].shape)

    return resealed(tiny_cache, change)


def test_train_stops_before_it_writes_anything_and_anyway_goes_on(
    cli: Cli, tiny_data: Path, random_cache: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("train", tiny_data, random_cache, "-o", run, *STUDENT)
    code, out, err = cli(*words)
    assert (code, out) == (1, "")
    assert "always the largest class: 0.200" in err
    assert err.count("Error: ") == 1
    assert f"Error: {random_cache}: the teacher is near chance" in err
    assert "on 15 val and 30 train images" in err
    assert "Traceback" not in err
    assert not run.exists()
    assert cli(*words, "--anyway")[0] == 0
    assert cli("train", tiny_data, random_cache, "-o", run, "--resume", "--workers", 0)[0] == 0, "it was allowed once"


def test_hard_labels_need_no_teacher_that_knows_anything(
    cli: Cli, tiny_data: Path, random_cache: Path, tmp_path: Path
) -> None:
    code, _, err = cli("train", tiny_data, random_cache, "-o", tmp_path / "run", *STUDENT, "--no-teacher")
    assert code == 0, err
    assert "(not used: hard labels only)" in err
    assert "entropy" not in err


def test_train_stops_at_a_permuted_class_list(
    cli: Cli, tiny_data: Path, tiny_cache: Path, tmp_path: Path, resealed: Callable[..., Path]
) -> None:
    label_of = {sample.key: sample.labels["class"] for sample in scan_data(tiny_data).samples}
    classes = CacheReader(tiny_cache).tasks["class"]

    def change(table: Table) -> None:
        labels = np.array([classes.index(label_of[key.tobytes()]) for key in table.key])
        owner = np.repeat(labels, np.diff(table.first_row.astype(int)))
        table.logits["class"][:] = np.eye(5)[(owner + 1) % 5] * 3

    code, _, err = cli("train", tiny_data, resealed(tiny_cache, change), "-o", tmp_path / "run", *STUDENT)
    assert code == 1
    assert "'melanoma' images get 'seborrheic keratosis' (100%; their own name 0%)" in err
    assert "class names or prompts are in the wrong order" in err


def test_info_shows_the_report_and_stops_nobody(cli: Cli, tiny_data: Path, random_cache: Path) -> None:
    code, out, err = cli("cache", "info", random_cache, "--data", tiny_data)
    assert (code, err) == (0, "")
    assert "on          val: 15 clean views\n" in out
    for word in ("accuracy", "balanced", "calibration", "entropy", "temperature", "confuses", "views", "verdict"):
        assert f"\n{word:11} " in out
    assert "verdict     the teacher is near chance" in out
    found = json.loads(cli("cache", "info", random_cache, "--data", tiny_data, "--split", "test", "--json")[1])
    assert found["rows"] == 120
    assert (found["report"]["split"], found["report"]["verdict"]["near_chance"]) == ("test", True)
    assert "report" not in json.loads(cli("cache", "info", random_cache, "--json")[1])


def test_info_leaves_seen_images_out(
    cli: Cli, tiny_data: Path, tiny_cache: Path, resealed: Callable[..., Path]
) -> None:
    val = [sample.key for sample in scan_data(tiny_data).of_split("val")][:4]

    def change(table: Table) -> Table:
        seen = np.array([key.tobytes() in val for key in table.key])
        by_row = np.repeat(seen, np.diff(table.first_row.astype(int))).astype("<f2")
        return dataclasses.replace(table, features={**table.features, SEEN: by_row})

    out = cli("cache", "info", resealed(tiny_cache, change), "--data", tiny_data)[1]
    assert "on          val: 11 clean views\nseen        4 other val images left out: it was fitted on them\n" in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--split", "val"), 2, "--split and the options of images go with --data DATA"),
        (("--skip-bad-images",), 2, "go with --data DATA"),
        (("--data", "nothing"), 1, "no such folder: nothing"),
        (("--data", "OTHERS"), 1, "this is another data set"),
        (("--data", "NO_TEST", "--split", "test"), 1, "has no images in split 'test'; it has: train, val"),
    ],
)
def test_a_users_mistake_with_info_is_one_error(
    words: tuple[str, ...], code: int, said: str, cli: Cli, tiny_data: Path, tiny_cache: Path, few_images: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    shutil.copytree(tiny_data, tmp_path / "images", ignore=shutil.ignore_patterns("test"))
    others = shutil.copytree(few_images, tmp_path / "others")
    for path in others.glob("*/*/*.png"):
        path.write_bytes(path.read_bytes() + b"\n")
    given = {"OTHERS": others, "NO_TEST": tmp_path / "images"}
    found, out, err = cli("cache", "info", tiny_cache, *(given.get(word, word) for word in words))
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


def test_a_run_of_a_version_without_targets_goes_on(
    cli: Cli, tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    last = torch.load(run / "last.pt", weights_only=True)
    assert last["config"].pop("target") == "view"
    torch.save(last, run / "last.pt")
    words = ("train", tiny_data, tiny_cache, "-o", run, "--resume", "--workers", 0)
    assert cli(*words)[0] == 0
    code, _, err = cli(*words, "--target", "mean")
    assert code == 1
    assert "target: the run has 'view', this call 'mean'" in err
