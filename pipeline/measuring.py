"""What is asked of a student's answers, and what they score: thresholds, groups and subgroups, task by task.

Loads no student and finds no images (`pipeline.evaluate` does); scores are made in `pipeline.metrics`.
Run: softlabel evaluate RUN DATA --sensitivity-of mel --csv FILE --group-column patient_id
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import BadSamples, DataNotFound
from data.groups import read_groups
from data.samples import Sample
from pipeline.answers import Answering, said_groups
from pipeline.metrics.evaluation import Answers, Evaluation, SplitEvaluation
from pipeline.metrics.scoring import Questions, evaluate_split
from pipeline.metrics.sensitivity import group_of_task
from pipeline.metrics.subgroups import name_values

if TYPE_CHECKING:
    from pipeline.evaluate import EvaluateConfig

log = logging.getLogger(__name__)


class Measuring:
    """One student, and what is asked of it."""

    def __init__(self, answering: Answering, config: EvaluateConfig) -> None:
        self._answering, self._config = answering, config
        self._group_task, self._group = group_of_task(config.sensitivity_of, answering.tasks)

    def evaluations(self, model: str, notices: tuple[str, ...]) -> tuple[dict[str, Evaluation], tuple[str, ...]]:
        """(task -> all that was asked for, notices on all tasks): tasks without a label in these splits are absent.

        What the user got wrong is said before any image is looked at.
        """
        answering, config = self._answering, self._config
        wanted = list(answering.splits) if config.split == "all" else [config.split]
        chooser = self._chooser()
        splits = wanted if chooser is None or chooser in wanted else [*wanted, chooser]
        for split in splits:
            answering.labels(split)
        questions = self._questions([sample for split in wanted for sample in answering.samples(split)])
        answers = {split: answering.answers(split) for split in splits}
        leaks = (self._leak(split, questions) for split in wanted)
        lacking = answering.notices(wanted)
        measured = {task: [split for split in wanted if task in answers[split]] for task in answering.tasks}
        unmeasured = (lacking[task] for task, splits in measured.items() if not splits)
        notices = (*notices, *(leak for leak in leaks if leak), *unmeasured)
        found = {
            task: Evaluation(
                model=model, classes=answering.tasks[task],
                splits={
                    split: self._scores(task, answers[split][task], questions, answers.get(str(chooser), {}))
                    for split in splits
                },
                notices=(*notices, *([lacking[task]] if task in lacking else [])),
            ) for task, splits in measured.items() if splits
        }  # fmt: skip
        for notice in dict.fromkeys((*notices, *lacking.values())):
            log.info("notice   %s", notice)
        return found, notices

    def _scores(
        self, task: str, answers: Answers, questions: Questions, chooser: Mapping[str, Answers]
    ) -> SplitEvaluation:
        is_asked = task == self._group_task
        questions = questions if is_asked else replace(questions, sensitivity_of=())
        others = chooser.get(task)
        is_other = is_asked and others is not None and others.split != answers.split
        return evaluate_split(answers, self._answering.tasks[task], questions, others if is_other else None)

    def _leak(self, split: str, questions: Questions) -> str:
        """What to say where images of a split share their group with one that the student learned from."""
        learned, group_of = self._answering.learned or frozenset(), questions.group_of
        if group_of is None:
            return ""
        met = {group_of[key] for key in learned if key in group_of}
        samples = self._answering.samples(split)
        shared = [sample for sample in samples if sample.key not in learned and group_of[sample.key] in met]
        if not shared:
            return ""
        return (
            f"{len(shared):,} of {len(samples):,} {split} images share their {questions.unit} with one that "
            f"the student learned from (first: {shared[0].name}): their scores are too good for new ones"
        )

    def _chooser(self) -> str | None:
        """The split that chooses the thresholds; None where each chooses its own."""
        if not self._group or self._config.threshold_from == "same":
            return None
        splits = self._answering.splits
        has_val = "val" in splits and self._group_task in self._answering.labels("val")
        if not has_val and self._config.threshold_from == "val":
            lacks = f"no val image has a label of {self._group_task}"
            if "val" not in splits:
                lacks = f"there is no val split, only {', '.join(splits)}"
            raise DataNotFound(
                f"--threshold-from val: {lacks}; --threshold-from same chooses on the images that are measured"
            )
        return "val" if has_val else None

    def _questions(self, samples: Sequence[Sample]) -> Questions:
        config = self._config
        questions = Questions(
            n_resamples=config.n_resamples, seed=config.seed,
            sensitivity_of=self._group, at_specificity=config.at_specificity,
        )  # fmt: skip
        if config.group_column is None and (said := said_groups(self._answering.every_sample)) is not None:
            questions = replace(questions, group_of=said, unit="group")
        if config.csv is None:
            return questions
        if config.group_column is not None:
            _check_known(samples, self._column(config.csv, config.group_column, samples), config)
            groups = self._column(config.csv, config.group_column, samples, is_required=True)
            questions = replace(questions, group_of=groups, unit=config.group_column)
        subgroups = {}
        for column in config.subgroup_columns:
            value_of = self._column(config.csv, column, samples)
            keys = [sample.key for sample in samples]
            names, order = name_values(column, [value_of.get(key, "") for key in keys])
            subgroups[column] = (dict(zip(keys, names, strict=True)), order)
        return replace(questions, subgroups=subgroups)

    def _column(
        self, csv: Path, column: str, samples: Sequence[Sample], *, is_required: bool = False
    ) -> dict[bytes, str]:
        """What the table says of every image; BadSamples where it knows none of these, or not all that it must.

        The images of other splits are looked up, too: a row is not to be taken for the one of a namesake.
        """
        keys = {sample.key for sample in samples}
        found = read_groups(
            self._answering.every_sample, csv, column, self._config.image_column,
            required=lambda sample: is_required and sample.key in keys,
        )  # fmt: skip
        if not keys & set(found):
            raise BadSamples(
                f"{csv} has a {column} for none of the {len(samples):,} images (first: {samples[0].name}): "
                "is it the table of other images? Is --image-column another one?"
            )
        return found


def _check_known(samples: Sequence[Sample], found: Mapping[bytes, str], config: EvaluateConfig) -> None:
    """BadSamples where the table knows no image of a whole split."""
    known = {sample.split for sample in samples if sample.key in found}
    if unknown := {sample.split for sample in samples} - known:
        raise BadSamples(
            f"{config.csv} has a {config.group_column} for no image of {', '.join(sorted(unknown))}: "
            f"evaluate --split {min(known)} alone, or name a table of all images"
        )
