"""Verdicts: each pitfall is found by the number that shows it, and a run without one is left in peace."""

from __future__ import annotations

import csv
import inspect
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli import cli
from pipeline.gate.report import teacher_report
from pipeline.metrics import Metrics, classification_metrics
from pipeline.targets import TeacherTargets
from pipeline.training import verdicts as verdict_module
from pipeline.training.facts import Run, StudentNumbers, TeacherNumbers, balanced_error, soften, teacher_numbers
from pipeline.training.verdicts import PAGE, PITFALLS, verdicts

Told = Callable[..., TeacherTargets]
ROOT = Path(__file__).parents[3]
CLASSES = ("class 0", "class 1", "class 2")
CONFIG = {"teacher": True, "temperature": 2.0, "alpha": 0.3}
N = 3_000


def answers(accuracy: float, sureness: float = 4.0, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Labels of three classes in turn, and logits that are right about that share of each class."""
    labels = np.arange(n) % 3
    wrong = (np.arange(n) // 3) % 100 >= round(100 * accuracy)
    return labels, np.eye(3)[np.where(wrong, (labels + 1) % 3, labels)] * sureness


def metrics_of(accuracy: float, n: int = N) -> Metrics:
    labels, logits = answers(accuracy, n=n)
    return classification_metrics(logits, labels, CLASSES)


@pytest.fixture
def teacher(told: Told) -> Callable[..., TeacherNumbers]:
    """A teacher with these accuracies on validation and train images."""
    numbers = itertools.count()

    def teacher(
        accuracy: float = 0.9, train: float = 0.9, sureness: float = 4.0, n_parameters: int | None = None,
        **config: float,
    ) -> TeacherNumbers:  # fmt: skip
        val_labels, val_logits = answers(accuracy, sureness)
        train_labels, train_logits = answers(train, sureness)
        val = told(val_labels, val_logits, name=f"val {next(numbers)}.h5")
        learn = told(train_labels, train_logits, name=f"train {next(numbers)}.h5")
        return teacher_numbers(teacher_report(val, "val", learn), val, learn, CONFIG | config, n_parameters)

    return teacher


def rows(epochs: int = 40, **columns: Any) -> list[dict[str, Any]]:
    """A run at its plateau; a column is one number, or the numbers from the first epoch to the last, interpolated."""
    values = {
        "lr": (1e-3, 0.0), "loss": 0.6, "loss_hard": 0.6, "loss_soft": 0.4, "train_accuracy": 0.85,
        "train_agreement": 0.92, "val_accuracy": 0.84, "val_balanced_accuracy": 0.84, "val_macro_f1": 0.84,
        "val_loss": 0.5, "val_agreement": 0.86, "val_kl": 0.1,
    }  # fmt: skip
    table: dict[str, list[float | None]] = {}
    for name, value in {**values, **columns}.items():
        if value is None:
            table[name] = [None] * epochs
            continue
        points = np.atleast_1d(np.array(value, float))
        table[name] = np.interp(np.linspace(0, 1, epochs), np.linspace(0, 1, len(points)), points).tolist()
    return [{"epoch": e + 1, **{name: table[name][e] for name in table}} for e in range(epochs)]


def found(*arguments: Any) -> dict[str, str]:
    return {verdict.slug: verdict.line for verdict in verdicts(*arguments)}


STUDENT = StudentNumbers(metrics=metrics_of(0.84))


def test_a_run_without_a_pitfall_is_told_so_in_one_line(teacher: Callable[..., TeacherNumbers]) -> None:
    assert found(rows(), CONFIG, teacher(), STUDENT) == {
        "": "no known pitfall: macro F1 0.840 at epoch 1 of 40, the teacher's 0.900"
    }


def test_where_little_is_known_it_is_said(teacher: Callable[..., TeacherNumbers]) -> None:
    assert "in metrics.csv; the rest needs the images" in found(rows(), CONFIG, None, None)[""]


@pytest.mark.parametrize(
    ("slug", "columns", "config", "of_teacher", "said"),
    [
        ("temperature-too-flat", {}, {"temperature": 20.0}, {}, r"1\.00 of the largest .* try --temperature 3"),
        ("temperature-too-sharp", {}, {}, {"sureness": 30}, r"T 2 .*1\.000 of a soft target .*--temperature \d"),
        (
            "alpha-too-low", {"val_agreement": 0.9, "val_accuracy": 0.795, "val_macro_f1": 0.77},
            {}, {"accuracy": 0.8, "train": 0.7}, r"agreement 0\.900, accuracy 0\.795.*30% .*--alpha 0\.6",
        ),
        ("alpha-too-high", {}, {"alpha": 0.95}, {"accuracy": 0.95, "train": 0.95}, r"0\.950.*0\.840.*0\.05; .*0\.3"),
        (
            "student-too-small", {"train_accuracy": (0.5, 0.7, 0.72, 0.72, 0.72, 0.72), "train_agreement": 0.7},
            {}, {"n_parameters": 10**9}, r"0\.720.*0\.900.*on 0\.700 \(it has 0\.001 .*known gap",
        ),
        (
            "student-overfits", {"train_accuracy": (0.6, 0.8, 0.99, 1), "val_loss": (0.9, 0.5, 0.7, 0.8)},
            {}, {}, r"above validation.*% above its lowest, of epoch 14",
        ),
        ("teacher-too-weak", {}, {}, {"accuracy": 0.34, "train": 0.34}, r"0\.340, .* 0\.333; .*cache probe"),
        ("teacher-too-weak", {}, {}, {"accuracy": 0.85}, r"no more to give: .*0\.850, the student's 0\.840"),
        ("teacher-overfitted", {}, {}, {"train": 1}, r"1\.000 on the train images, 0\.900 .*--cross-fit image"),
        ("still-improving-at-the-end", {"val_macro_f1": (0.2, 0.84)}, {}, {}, r"rose by 0\.1\d\d.*--epochs 80"),
        ("still-improving-at-the-end", {"val_loss": (1.2, 0.5)}, {}, {}, r"validation loss fell by \d+\.\d%"),
        ("best-epoch-long-before-the-end", {"val_macro_f1": (0.5, 0.84, 0.6, 0.6, 0.6)}, {}, {}, r"\d+ of 40: .*0\.6"),
    ],
)  # fmt: skip
def test_a_pitfall_is_found_with_its_number_and_the_next_thing_to_try(
    slug: str, columns: dict[str, Any], config: dict[str, Any], of_teacher: dict[str, Any], said: str,
    teacher: Callable[..., TeacherNumbers],
) -> None:  # fmt: skip
    numbers = teacher(**of_teacher, **config)
    student = StudentNumbers(metrics=STUDENT.metrics, n_parameters=10**6)
    lines = found(rows(**columns), CONFIG | config, numbers, student)
    assert re.search(said, lines[slug])
    assert lines[slug].endswith(f"[{PAGE}#{slug}]")


def test_the_temperature_that_is_advised_is_not_found_fault_with(teacher: Callable[..., TeacherNumbers]) -> None:
    for at_first in (0.4, 20.0):
        line = found(rows(), CONFIG | {"temperature": at_first}, teacher(temperature=at_first), STUDENT)
        (advised,) = {float(t) for text in line.values() for t in re.findall(r"--temperature (\S+)\b", text)}
        config = CONFIG | {"temperature": advised}
        assert found(rows(), config, teacher(temperature=advised), STUDENT).keys() == {""}


def test_of_a_falling_temperature_the_last_is_flat_and_the_first_sharp(
    teacher: Callable[..., TeacherNumbers],
) -> None:
    config = {"temperature": 20.0, "temperature_end": 2.0}
    assert found(rows(), CONFIG | config, teacher(**config), STUDENT).keys() == {""}
    config = {"temperature": 20.0, "temperature_end": 15.0}
    assert "T 15 is too flat" in found(rows(), CONFIG | config, teacher(**config), STUDENT)["temperature-too-flat"]


def test_without_a_teacher_nothing_is_said_of_one(teacher: Callable[..., TeacherNumbers]) -> None:
    weak = teacher(accuracy=0.34, train=1)
    assert "" in found(rows(val_agreement=None, train_agreement=None), CONFIG | {"teacher": False}, weak, STUDENT)


@pytest.mark.parametrize(
    "columns",
    [
        {"train_accuracy": (0.5, 0.9), "train_agreement": 0.7},  # it still learns
        {"train_accuracy": 0.72, "train_agreement": 0.7, "lr": 1e-3},  # smaller steps may yet help
        {"train_accuracy": 0.72, "train_agreement": 0.9},  # it follows its teacher
        {"train_accuracy": 0.72, "train_agreement": 0.7, "val_accuracy": 0.6},  # it learned by heart
        {"train_accuracy": 0.72, "train_agreement": None},
    ],
)
def test_a_student_is_not_too_small_where_something_else_explains_it(
    columns: dict[str, Any], teacher: Callable[..., TeacherNumbers]
) -> None:
    assert "student-too-small" not in found(rows(**columns), CONFIG, teacher(), STUDENT)


def test_a_rise_within_its_scatter_is_no_improvement() -> None:
    f1 = 0.8 + 0.02 * np.arange(40) / 40 + np.tile([0.03, -0.03], 20)
    noisy = [{**row, "val_macro_f1": value} for row, value in zip(rows(), f1, strict=True)]
    assert "still-improving-at-the-end" not in found(noisy, CONFIG, None, STUDENT)
    steady = [{**row, "val_macro_f1": 0.8 + 0.08 * e / 40} for e, row in enumerate(rows())]
    assert "still-improving-at-the-end" in found(steady, CONFIG, None, STUDENT)


def test_early_stopping_explains_an_early_best_epoch() -> None:
    curve = rows(val_macro_f1=(0.5, 0.84, 0.6, 0.6, 0.6))
    assert "best-epoch-long-before-the-end" in found(curve, CONFIG, None, None)
    assert "best-epoch-long-before-the-end" not in found(curve, CONFIG | {"early_stopping": 25}, None, None)


def test_classes_that_are_never_answered_are_named() -> None:
    labels = np.repeat([0, 1, 2], [2_000, 500, 500])
    one = StudentNumbers(metrics=classification_metrics(np.eye(3)[np.zeros(3_000, int)], labels, CLASSES))
    assert "answers 'class 0' to every validation image" in found(rows(), CONFIG, None, one)["one-class-only"]
    two = StudentNumbers(metrics=classification_metrics(np.eye(3)[np.minimum(labels, 1)], labels, CLASSES))
    lines = found(rows(), CONFIG, None, two)
    assert lines.keys() == {"some-classes-never-answered"}
    assert "never answered: class 2, 1 of 3 classes, with 500 validation images; try" in lines.popitem()[1]
    absent = classification_metrics(np.eye(3)[[0, 1] * 1_500], np.array([0, 1] * 1_500), CLASSES)
    assert found(rows(), CONFIG, None, StudentNumbers(metrics=absent)).keys() == {""}


def test_a_small_validation_set_is_said_with_its_standard_error() -> None:
    line = found(rows(), CONFIG, None, StudentNumbers(metrics=metrics_of(0.84, n=300)))["validation-set-too-small"]
    assert "with 300 images a difference of 0.022 in balanced accuracy (0.021 in accuracy)" in line


def test_the_standard_error_of_balanced_accuracy_equals_the_hand_computed_one() -> None:
    """Recall 1 of 2 and 0 of 1, so shares 2/4 and 1/3; the third class has no image."""
    metrics = classification_metrics(np.eye(3)[[0, 1, 0]], np.array([0, 0, 1]), CLASSES)
    assert balanced_error(metrics) == pytest.approx(math.sqrt(0.25 / 2 + (1 / 3) * (2 / 3) / 1) / 2)


def test_a_trend_equals_the_hand_computed_one() -> None:
    """0, 1, 1, 2 have slope 0.6 and residuals -0.1, 0.3, -0.3, 0.1: error sqrt((0.2 / 2) / 5)."""
    trend = Run([{"x": value} for value in (9, 9, 0, 1, 1, 2)], CONFIG, None, None).trend("x")
    assert trend is not None
    assert trend.change == pytest.approx(3 * 0.6)
    assert trend.standard_error == pytest.approx(3 * math.sqrt(0.1 / 5))


def test_softened_answers_equal_the_hand_computed_ones() -> None:
    """log 9 over T 2 is log 3: (3/4, 1/4)."""
    soft = soften(np.array([[math.log(9), 0]]), 2.0)
    assert soft.top1 == pytest.approx(3 / 4)
    assert soft.entropy_share == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))


def test_a_teacher_is_measured_on_clean_and_on_all_train_views(told: Told) -> None:
    """Of two images with two views each, both clean views are right, and one of the others."""
    val = told([0, 1, 2], np.eye(3) * 4)
    train = told([0, 1], np.eye(3)[[0, 0, 1, 2]] * 4, views=2, name="train.h5")
    numbers = teacher_numbers(teacher_report(val, "val", train), val, train, CONFIG)
    assert (numbers.train_accuracy, numbers.train_views_accuracy) == (1.0, 0.75)
    assert numbers.softened.keys() == {2.0}


@settings(max_examples=40, deadline=None)
@given(
    epochs=st.integers(1, 12),
    values=st.dictionaries(
        st.sampled_from(["train_accuracy", "train_agreement", "val_accuracy", "val_macro_f1", "val_agreement"]),
        st.lists(st.floats(0, 1), min_size=1, max_size=5),
    ),
    alpha=st.floats(0, 1),
)
def test_any_curve_gets_at_least_one_line(epochs: int, values: dict[str, list[float]], alpha: float) -> None:
    lines = verdicts(rows(epochs, **values), CONFIG | {"alpha": alpha}, None, STUDENT)
    assert lines
    assert all(verdict.slug in PITFALLS or verdict.slug == "" for verdict in lines)


def test_the_rows_of_a_real_run_are_understood(tiny_run: Path) -> None:
    with (tiny_run / "metrics.csv").open(encoding="utf-8", newline="") as table:
        measured = [
            {name: float(text) if text else None for name, text in row.items()} for row in csv.DictReader(table)
        ]
    assert verdicts(measured, CONFIG, None, None)


def test_each_verdict_has_its_section_and_each_section_its_verdict() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    after_a_run = page.split("\n# After a run\n")[1].split("\n# Errors\n")[0]
    titles = re.findall(r"^## (.+)$", after_a_run, re.MULTILINE)
    assert [title.lower().replace(" ", "-") for title in titles] == list(PITFALLS)


def test_every_flag_that_is_advised_exists() -> None:
    def options(command: click.Command) -> set[str]:
        below = [options(one) for one in command.commands.values()] if isinstance(command, click.Group) else []
        return {word for option in command.params for word in (*option.opts, *option.secondary_opts)}.union(*below)

    texts = [(ROOT / PAGE).read_text(encoding="utf-8"), inspect.getsource(verdict_module)]
    advised = {flag for text in texts for flag in re.findall(r"(?<![-\w])--[a-z][a-z-]+", text)}
    assert len(advised) > 15
    assert advised <= options(cli)
