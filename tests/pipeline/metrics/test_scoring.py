"""One split with all that is asked of it: the teacher beside the student, thresholds, groups, several seeds."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from pipeline.metrics.classification import agreement
from pipeline.metrics.evaluation import Evaluation
from pipeline.metrics.scoring import Questions, evaluate_split, spread_over_seeds
from pipeline.metrics.tables import split_lines

from .answering import answers, drawn

CLASSES = ("bcc", "mel", "nv")
FAST = Questions(n_resamples=60)


def test_a_student_that_says_what_its_teacher_says_differs_from_it_in_nothing() -> None:
    student = drawn(0, 50, 3)
    split = evaluate_split(answers(student, teacher=student[0]), CLASSES, FAST)
    assert split.agreement == agreement(student[0], student[0])
    assert split.teacher == split.student
    for score, difference in split.differences.items():
        assert difference == 0
        interval = split.difference_intervals[score]
        assert interval is not None
        assert (interval.low, interval.high) == (0, 0), "paired: the same resamples"
    assert set(split.retention_percent) == {"accuracy", "balanced_accuracy", "macro_f1", "macro_auroc"}
    assert list(split.retention_percent.values()) == pytest.approx([100] * 4)


def test_differences_and_retention_are_those_of_the_two_scores() -> None:
    student, (better, _) = drawn(0, 60, 3), drawn(0, 60, 3, skill=4)
    split = evaluate_split(answers(student, teacher=better), CLASSES, FAST)
    assert split.teacher is not None
    mine, theirs = split.student.metrics, split.teacher.metrics
    assert split.differences["accuracy"] == mine.accuracy - theirs.accuracy < 0
    assert split.retention_percent["macro_f1"] == pytest.approx(100 * mine.macro_f1 / theirs.macro_f1)
    interval = split.difference_intervals["accuracy"]
    assert interval is not None
    assert interval.low < split.differences["accuracy"] < interval.high
    table = "\n".join(split_lines(split, CLASSES))
    for words in ("student - teacher", f"{split.retention_percent['accuracy']:.1f} %", "agreement with the teacher"):
        assert words in table


def test_without_a_teacher_nothing_is_compared() -> None:
    split = evaluate_split(answers(drawn(0, 20, 3)), CLASSES, FAST)
    assert (split.teacher, split.agreement, split.n_teacher_seen) == (None, None, None)
    assert (split.differences, split.difference_intervals, split.retention_percent) == ({}, {}, {})
    assert "teacher" not in "\n".join(split_lines(split, CLASSES))


def test_each_model_takes_its_own_threshold_from_the_images_that_choose() -> None:
    val = answers(drawn(1, 80, 3), teacher=drawn(1, 80, 3, skill=4)[0], split="val")
    test = answers(drawn(2, 80, 3), teacher=drawn(2, 80, 3, skill=4)[0])
    asked = dataclasses.replace(FAST, sensitivity_of=("mel",), at_specificity=0.8)
    chosen_on_val = evaluate_split(test, CLASSES, asked, val)
    own = evaluate_split(test, CLASSES, asked)
    of_val = evaluate_split(val, CLASSES, asked)
    for who in ("student", "teacher"):
        point, source = getattr(chosen_on_val, who).sensitivity, getattr(of_val, who).sensitivity
        assert point.threshold == source.threshold
        assert (point.chosen_on, point.same_images) == ("val", False)
        assert getattr(own, who).sensitivity.same_images
        assert getattr(own, who).sensitivity.specificity >= 0.8 - 1e-9
    assert "chosen on val" in "\n".join(split_lines(chosen_on_val, CLASSES))
    assert "both numbers are optimistic" in "\n".join(split_lines(own, CLASSES))


def test_images_of_one_group_are_drawn_together() -> None:
    test = answers(drawn(0, 60, 3))
    lesion_of = {key: f"lesion {i // 10}" for i, key in enumerate(test.keys)}
    split = evaluate_split(test, CLASSES, dataclasses.replace(FAST, group_of=lesion_of, unit="lesion_id"))
    assert (split.unit, split.n_units, split.n_resamples) == ("lesion_id", 6, 60)
    assert "60 resamples of 6 groups of one lesion_id" in "\n".join(split_lines(split, CLASSES))


def test_one_group_alone_has_scores_without_intervals() -> None:
    test = answers(drawn(0, 20, 3))
    split = evaluate_split(
        test, CLASSES, dataclasses.replace(FAST, group_of=dict.fromkeys(test.keys, "p"), sensitivity_of=("mel",))
    )
    assert (split.student.intervals, split.student.class_intervals, split.n_resamples) == ({}, {}, 0)
    assert split.student.sensitivity is not None
    assert split.student.sensitivity.sensitivity_interval is None
    assert "[" not in "\n".join(split_lines(split, CLASSES))


def test_a_class_of_which_all_images_are_wrong_has_an_interval_that_is_said_to_be_empty() -> None:
    labels = np.array([0, 1, 2] * 5)
    split = evaluate_split(answers((np.eye(3, dtype=np.float32)[labels * (labels < 2)], labels)), CLASSES, FAST)
    found = split.student.class_intervals["nv"]["recall"]
    assert found is not None
    assert found.low == found.high == 0
    assert "an interval without width" in "\n".join(split_lines(split, CLASSES))


def test_images_that_were_learned_from_are_counted_and_said() -> None:
    test = answers(drawn(0, 20, 3), teacher=drawn(1, 20, 3)[0])
    marked = dataclasses.replace(
        test, learned_N=np.arange(20) < 4, teacher_seen_N=np.ones(20, bool), source="somewhere else"
    )
    split = evaluate_split(marked, CLASSES, FAST)
    assert (split.n_learned, split.n_teacher_seen) == (4, 20)
    table = "\n".join(split_lines(split, CLASSES))
    for words in ("the student learned from 4 of these images", "the teacher was fitted on these", "somewhere else"):
        assert words in table
    unknown = evaluate_split(dataclasses.replace(test, learned_N=None), CLASSES, FAST)
    assert unknown.n_learned is None
    assert "the student learned from is not known" in "\n".join(split_lines(unknown, CLASSES))


def test_seeds_have_a_mean_and_the_deviation_of_a_sample() -> None:
    splits = [evaluate_split(answers(drawn(seed, 30, 3)), CLASSES, FAST) for seed in range(3)]
    seeds = [Evaluation(model="m", classes=CLASSES, splits={"test": split}) for split in splits]
    found = spread_over_seeds(seeds)["test"]["accuracy"]
    accuracies = [split.student.metrics.accuracy for split in splits]
    assert found.values == tuple(accuracies)
    assert (found.mean, found.std) == pytest.approx((np.mean(accuracies), np.std(accuracies, ddof=1)))
    assert spread_over_seeds(seeds[:1])["test"]["accuracy"].std is None


def test_an_evaluation_becomes_plain_json_without_its_answers() -> None:
    asked = dataclasses.replace(FAST, sensitivity_of=("mel",))
    split = evaluate_split(answers(drawn(0, 20, 3), teacher=drawn(1, 20, 3)[0]), CLASSES, asked)
    evaluation = Evaluation(model="m", classes=CLASSES, splits={"test": split})
    found = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))["splits"]["test"]
    assert "answers" not in found
    assert found["student"]["accuracy"] == split.student.metrics.accuracy
    assert found["student"]["intervals"]["accuracy"].keys() == {"low", "high"}
    assert found["student"]["sensitivity"]["classes"] == ["mel"]
