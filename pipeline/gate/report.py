"""What a teacher's answers in a cache are worth on images with labels: scores, calibration, entropy, and a verdict.

Loads no teacher, trains nothing, stops nobody (`pipeline.gate.check` does). Run: softlabel cache info t.h5 --data DATA
N samples, C classes, T temperature.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import CacheReader
from data.errors import BadSamples
from data.options import ScanOptions
from pipeline.bad_images import scan_like
from pipeline.errors import TeacherError
from pipeline.gate.calibration import mean_entropy, temperature_range
from pipeline.gate.chance import Renaming, adjusted_for_chance, chance_p_value, find_renaming
from pipeline.joining import join
from pipeline.metrics import Agreement, Metrics, agreement, classification_metrics
from pipeline.metrics.calibration import confidence, expected_calibration_error
from pipeline.targets import SEEN, TeacherTargets
from pipeline.tasks import UNLABELLED

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
MIN_ADJUSTED_ACCURACY, MAX_P_VALUE = 0.05, 0.01
"""Of a teacher that is not near chance. With many images p is small for the slightest knowledge, hence both."""
_FEW_IMAGES = 100
"""With fewer validation images, train images help to decide: a share of 100 has a standard error of up to 0.05."""
_N_CONFUSIONS = 3
_ENOUGH_IMAGES = 2_000
"""For means over images, so that a thousand classes take no seconds; samples are sorted by hash: the first are any."""


@dataclass(frozen=True)
class Confusion:
    """One way in which the teacher is wrong."""

    true: str
    predicted: str
    n_images: int
    share: float
    """Of the images of the true class."""


@dataclass(frozen=True)
class ViewAgreement:
    """The other views of an image beside its clean one."""

    n_images: int
    n_views: int
    clean: Agreement
    """Share of views with the clean view's arg-max, and mean KL(clean || view) in nats at T = 1."""


@dataclass(frozen=True)
class Verdict:
    """Whether a student should learn from these answers."""

    images: dict[str, int]
    """Split -> how many of its images decided."""
    n_classes: int
    """Of which there were images."""
    balanced_accuracy: float
    adjusted: float | None
    """Balanced accuracy adjusted for chance: 0 for any constant answer, 1 for right ones; None for a single class."""
    p_value: float | None
    """Of the balanced accuracy, under shuffled labels."""
    renaming: Renaming | None
    """Classes that are answered by each other's names, where that is beyond doubt."""

    @property
    def is_near_chance(self) -> bool:
        """True where the answers tell nothing, or too few images show that they do."""
        if self.adjusted is None or self.p_value is None:
            return False
        return self.adjusted < MIN_ADJUSTED_ACCURACY or self.p_value > MAX_P_VALUE


@dataclass(frozen=True)
class TeacherReport:
    """What a teacher's answers are worth on the clean views of one split, of images that it was not fitted on."""

    split: str
    classes: tuple[str, ...]
    n_seen_left_out: int
    """Images that the teacher was fitted on; they take no part in the scores."""
    is_seen_known: bool
    """Whether the cache says what its teacher was fitted on."""
    is_all_seen: bool
    """It was fitted on every image of the split: the scores are of those, and too good to be true."""
    metrics: Metrics
    calibration_error: float
    """Expected calibration error at T = 1, 15 bins."""
    mean_confidence: float
    entropy_nats: dict[float, float]
    """Temperature -> mean entropy."""
    max_entropy_nats: float
    """log C."""
    temperatures: tuple[float, float] | None
    """Lowest and highest T worth trying, roughly; None where no T helps."""
    confusions: tuple[Confusion, ...]
    """The most frequent ones first."""
    views: ViewAgreement | None
    """Of train images with several views; None where there are none."""
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = asdict(self)
        found["entropy_nats"] = {f"{t:g}": nats for t, nats in self.entropy_nats.items()}
        found["verdict"]["near_chance"] = self.verdict.is_near_chance
        if self.verdict.renaming:
            named = {self.classes[a]: self.classes[b] for a, b in self.verdict.renaming.said_as.items()}
            accuracy = self.verdict.renaming.balanced_accuracy
            found["verdict"]["renaming"] = {"said_as": named, "balanced_accuracy": accuracy}
        return found


def reports_on(cache: str | Path, data: str | Path, split: str | None, scan: ScanOptions) -> dict[str, TeacherReport]:
    """Task -> the report on a split of a data set; None is the first there is of val, test and train.

    Train images that the cache lacks take no part. Raises DataError, CacheError or TeacherError.
    """
    reader = CacheReader(cache, memory_map=False)
    images = scan_like(reader, data, scan)
    split = split or next(name for name in ("val", "test", "train") if name in images.splits)
    groups = {split: images.of_split(split)}
    if split != "train" and "train" in images.splits:
        train = images.of_split("train")
        known = reader.find([sample.key for sample in train]) >= 0
        groups["train"] = [sample for sample, is_known in zip(train, known, strict=True) if is_known]
    targets = join(
        reader, groups, images.words, images.classes, clean=[split], skip_bad_images=scan.skip_bad_images, verified=True
    )
    if not (targets[split].labels_NT != UNLABELLED).any():
        raise BadSamples(f"{data} has no image with a label in split '{split}' that can be decoded: replace them")
    return teacher_reports(targets[split], split, targets.get("train"))


def teacher_reports(targets: TeacherTargets, split: str, train: TeacherTargets | None) -> dict[str, TeacherReport]:
    """The report on each task, of the samples that have a label in it; tasks without any are absent."""
    found = {}
    for task in targets.tasks:
        if (labelled := targets.of_task(task)).samples:
            of_train = None if train is None else train.of_task(task)
            found[task] = teacher_report(labelled, split, of_train if of_train and of_train.samples else None)
    return found


def teacher_report(targets: TeacherTargets, split: str, train: TeacherTargets | None) -> TeacherReport:
    """The report on `targets` of one task, at least one sample; `train` shows how views agree, and helps to decide."""
    classes = targets.classes
    rows = targets.clean_rows()
    seen_N = targets.seen(rows)
    unseen = np.flatnonzero(~seen_N)
    is_all_seen = not len(unseen)
    scored = np.arange(len(rows)) if is_all_seen else unseen
    logits_NC, labels_N = _finite(targets, rows[scored]), targets.labels_N[scored]
    metrics = classification_metrics(logits_NC, labels_N, classes)
    some_NC = logits_NC[:_ENOUGH_IMAGES]
    return TeacherReport(
        split=split,
        classes=classes,
        n_seen_left_out=len(rows) - len(scored),
        is_seen_known=SEEN in targets.reader.features,
        is_all_seen=is_all_seen,
        metrics=metrics,
        calibration_error=expected_calibration_error(logits_NC, labels_N),
        mean_confidence=float(confidence(logits_NC).mean()),
        entropy_nats={t: mean_entropy(some_NC, t) for t in TEMPERATURES},
        max_entropy_nats=math.log(len(classes)),
        temperatures=temperature_range(some_NC),
        confusions=_confusions(metrics, classes),
        views=view_agreement(train or targets),
        verdict=_verdict(split, logits_NC.argmax(axis=1), labels_N, train),
    )


def view_agreement(targets: TeacherTargets) -> ViewAgreement | None:
    """How the other views of images agree with the clean one; None where no image has both."""
    clean = targets.reader.row(targets.index_N, np.zeros(len(targets.samples), np.int64))
    chosen = np.flatnonzero((clean >= 0) & (targets.n_views_N > 1))[:_ENOUGH_IMAGES]
    if not len(chosen):
        return None
    rows, owner = targets.all_rows(clean[chosen])
    others = ~np.isin(rows, clean[chosen])
    rows, owner = rows[others], owner[others]
    said = agreement(_finite(targets, rows), _finite(targets, clean[chosen])[owner])
    return ViewAgreement(len(chosen), len(rows), said)


def _verdict(
    split: str, predicted_N: NDArray[np.int64], labels_N: NDArray[np.int64], train: TeacherTargets | None
) -> Verdict:
    images = {split: len(labels_N)}
    if train is not None and (len(labels_N) < _FEW_IMAGES or len(np.unique(labels_N)) < 2):
        clean = train.reader.row(train.index_N, np.zeros(len(train.samples), np.int64))
        more = np.flatnonzero(clean >= 0)
        more = more[~train.seen(clean[more])]
        if len(more):
            images["train"] = len(more)
            predicted_N = np.concatenate([predicted_N, _finite(train, clean[more]).argmax(axis=1)])
            labels_N = np.concatenate([labels_N, train.labels_N[more]])
    n_N = np.bincount(labels_N)
    n_classes = int((n_N > 0).sum())
    recall = np.bincount(labels_N[labels_N == predicted_N], minlength=len(n_N))[n_N > 0] / n_N[n_N > 0]
    accuracy = float(recall.mean())
    if n_classes < 2:
        return Verdict(images, n_classes, accuracy, None, None, None)
    return Verdict(
        images, n_classes, accuracy, adjusted_for_chance(accuracy, n_classes),
        chance_p_value(predicted_N, labels_N), find_renaming(predicted_N, labels_N),
    )  # fmt: skip


def _confusions(metrics: Metrics, classes: tuple[str, ...]) -> tuple[Confusion, ...]:
    wrong = np.array(metrics.confusion)
    n_images = wrong.sum(axis=1)
    np.fill_diagonal(wrong, 0)
    frequent = np.argsort(-wrong, axis=None, kind="stable")[:_N_CONFUSIONS]
    return tuple(
        Confusion(classes[a], classes[b], int(wrong[a, b]), float(wrong[a, b] / n_images[a]))
        for a, b in zip(*np.unravel_index(frequent, wrong.shape), strict=True)
        if wrong[a, b]
    )


def _finite(targets: TeacherTargets, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Raw logits, float32 [len(rows), C]; TeacherError where they are no numbers."""
    logits = targets.teacher_logits(rows)
    if n_bad := int((~np.isfinite(logits)).any(axis=1).sum()):
        raise TeacherError(
            f"{targets.reader.path}: {n_bad:,} of {len(rows):,} answers of the teacher are infinite or undefined: "
            "build the cache anew with --precision fp32"
        )
    return logits
