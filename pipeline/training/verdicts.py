"""What went wrong in a run, out of the pitfalls that are known: each with the number that shows it, and what to try.

Pure functions of numbers (`pipeline.training.facts`); trains nothing, stops nobody. docs/troubleshooting.md has a
section for each. Run: softlabel report RUN DATA
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.gate.calibration import ENTROPY_BAND
from pipeline.training.facts import (
    MIN_EPOCHS,
    Run,
    StudentNumbers,
    TeacherNumbers,
    accuracy_error,
    balanced_error,
    temperatures_of,
)
from pipeline.training.rows import BY_MEAN, rows_of_task

PAGE = "docs/troubleshooting.md"
MAX_ENTROPY_SHARE = ENTROPY_BAND[1]
"""Above it the gate before a training warns, too."""
MAX_TOP1 = 0.95
"""Mean probability of a soft target's first class: the others share a twentieth, and the target repeats a label."""
LOW_ALPHA, HIGH_ALPHA = 0.5, 0.9
"""Up to the first the soft loss weighs no less than the hard one, from the second it is a tenth at most."""
MANY_WRONG = 0.15
"""Share of train labels that a teacher contradicts; label noise of public image sets is mostly below it."""
COPYING = 0.05
"""Agreement with the teacher beyond accuracy: the student shares so much of its teacher's mistakes."""
NEAR = 0.02
"""Scores that differ by less are the same: students of other seeds differ by as much (docs/results.md)."""
WELL_BELOW = 0.05
"""Two to three times what seeds differ by."""
MIN_GAIN = 0.01
"""Of a score in the last quarter of a run, for more epochs to be worth their time."""
MIN_FALL = 0.02
"""Of the validation loss in the last quarter, as a share of it: a cosine schedule's last steps give less."""
LOW_AGREEMENT = 0.85
"""With the teacher on views that the student was trained on."""
ANNEALED = 0.1
"""Share of the peak learning rate below which a flat loss means more than too large steps."""
OVERFITTED = 0.1
"""Accuracy on train views above that on validation; augmented views make it too small, never too large."""
MIN_RISE = 0.05
"""Of the validation loss above its lowest, as a share of it."""
EARLY = 0.5
"""Share of the epochs before which the best one is early."""
MAX_ERROR = 0.02
"""Standard error of balanced accuracy; with more, NEAR cannot be seen in one run."""
CAPACITY_GAP = 0.01
"""Parameters of the student over the teacher's; below it students are known to fall behind (Mirzadeh et al. 2020)."""


@dataclass(frozen=True)
class Verdict:
    """One pitfall, or that none was found."""

    slug: str
    """Of the section in docs/troubleshooting.md; empty where no pitfall was found."""
    line: str
    """What shows it, what to try, where to read on."""


def verdicts_on(
    tasks: Collection[str], rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any],
    teachers: Mapping[str, TeacherNumbers], students: Mapping[str, StudentNumbers],
) -> list[Verdict]:  # fmt: skip
    """The `verdicts` on a run in each of its tasks; where there are several, each begins with its task."""
    found = []
    for task in tasks:
        own = rows_of_task(rows, task, len(tasks), str(settings.get("best_by", BY_MEAN)))
        of_task = f"{task}: " if len(tasks) > 1 else ""
        judged = verdicts(own, settings, teachers.get(task), students.get(task))
        found += [Verdict(one.slug, f"{of_task}{one.line}") for one in judged]
    return found


def verdicts(
    rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], teacher: TeacherNumbers | None,
    student: StudentNumbers | None,
) -> list[Verdict]:  # fmt: skip
    """The known pitfalls of a run with at least one epoch, or one line that there is none.

    `rows` are those of metrics.csv, `settings` those of config.json; what is None is not looked at.
    """
    run = Run(rows, settings, teacher if settings.get("teacher", True) else None, student)
    found = [Verdict(slug, f"{said} [{PAGE}#{slug}]") for slug, look_for in PITFALLS.items() if (said := look_for(run))]
    if found:
        return found
    known = "" if run.teacher and run.student else " in metrics.csv; the rest needs the images"
    best = run.best
    line = f"macro F1 {best['val_macro_f1']:.3f} at epoch {best['epoch']} of {len(rows)}"
    if run.teacher:
        line += f", the teacher's {run.teacher.report.metrics.macro_f1:.3f}"
    return [Verdict("", f"no known pitfall{known}: {line}")]


def _too_flat(run: Run) -> str | None:
    if not run.teacher or run.settings["alpha"] == 1:
        return None
    t, worth = temperatures_of(run.settings)[0], run.teacher.report.temperatures
    share = run.teacher.softened[t].entropy_share
    # The end of the range is rounded: what is advised must not be found fault with.
    if share <= MAX_ENTROPY_SHARE or (worth and t <= worth[1]):
        return None
    advice = f"try --temperature {worth[1]:g}" if worth else "no T suits it: try another teacher"
    return (
        f"T {t:g} is too flat for this teacher: the entropy of its soft targets is {share:.2f} of the largest (up to "
        f"{MAX_ENTROPY_SHARE} tells classes apart); {advice}"
    )


def _too_sharp(run: Run) -> str | None:
    if not run.teacher or run.settings["alpha"] == 1:
        return None
    t, worth = temperatures_of(run.settings)[-1], run.teacher.report.temperatures
    top1 = run.teacher.softened[t].top1
    if top1 < MAX_TOP1 or (worth and t >= worth[0]):
        return None
    advice = f"try --temperature {worth[0]:g}" if worth else "no T spreads its answers: try another teacher"
    return (
        f"T {t:g} is too sharp for this teacher: {top1:.3f} of a soft target is on one class, so that it says what a "
        f"label says; {advice}"
    )


def _alpha_too_low(run: Run) -> str | None:
    alpha, best = run.settings["alpha"], run.best
    agreement, accuracy = best.get("val_agreement"), best["val_accuracy"]
    if not run.teacher or agreement is None or alpha > LOW_ALPHA:
        return None
    wrong, taught = 1 - run.teacher.train_views_accuracy, run.teacher.report.metrics.accuracy
    copies = agreement - accuracy > COPYING and abs(accuracy - taught) < NEAR
    if wrong < MANY_WRONG or not copies:
        return None
    return (
        f"alpha {alpha:g} is too low for this teacher: the student copies it (agreement {agreement:.3f}, accuracy "
        f"{accuracy:.3f}, the teacher's {taught:.3f}) where it contradicts {wrong:.0%} of the train labels; try "
        f"--alpha {min(alpha + 0.3, 0.9):.1g}"
    )


def _alpha_too_high(run: Run) -> str | None:
    alpha = run.settings["alpha"]
    if not run.teacher or not run.student or alpha < HIGH_ALPHA:
        return None
    taught, own = run.teacher.report.metrics, run.student.metrics
    lead = taught.balanced_accuracy - own.balanced_accuracy
    if lead < max(WELL_BELOW, 2 * balanced_error(own)):
        return None
    return (
        f"alpha {alpha:g} hardly asks a good teacher: its balanced accuracy is {taught.balanced_accuracy:.3f}, the "
        f"student's {own.balanced_accuracy:.3f}, and the soft loss weighs {1 - alpha:.2g}; try --alpha 0.3"
    )


def _student_too_small(run: Run) -> str | None:
    learnt, agrees = run.mean("train_accuracy", run.last_quarter), run.mean("train_agreement", run.last_quarter)
    trend, lr = run.trend("train_accuracy"), run.column("lr")
    if not run.teacher or learnt is None or agrees is None or trend is None or _still_improving(run):
        return None
    taught = run.teacher.train_views_accuracy
    is_flat = trend.change < MIN_GAIN and lr[-1] <= ANNEALED * np.nanmax(lr)
    is_below = taught - learnt > WELL_BELOW and agrees < LOW_AGREEMENT
    if not (is_flat and is_below) or learnt - (run.mean("val_accuracy", run.last_quarter) or 0) > OVERFITTED:
        return None
    size, larger = "", ", then a larger --student or --student-size"
    if run.student and run.student.n_parameters and run.teacher.n_parameters:
        ratio = run.student.n_parameters / run.teacher.n_parameters
        larger = larger if ratio < 1 else ", then a larger --student-size"
        known = f"; under {CAPACITY_GAP:g} is a known gap" if ratio < CAPACITY_GAP else ""
        size = f" (it has {ratio:.2g} of the teacher's parameters{known})"
    return (
        f"the student is too small, or its run too short: it stands at {learnt:.3f} on its train views, where the "
        f"teacher has {taught:.3f}, and agrees with it on {agrees:.3f}{size}; try more --epochs{larger}"
    )


def _student_overfits(run: Run) -> str | None:
    train, val, loss = (run.column(name) for name in ("train_accuracy", "val_accuracy", "val_loss"))
    if len(run.rows) < 2 * MIN_EPOCHS or not np.isfinite([train, val, loss]).all():
        return None
    gap, half = train - val, len(run.rows) // 2
    late, early = gap[run.last_quarter].mean(), gap[: len(gap) - half].mean()
    rise = loss[run.last_quarter].mean() / loss.min() - 1
    if late < OVERFITTED or late - early < MIN_GAIN or rise < MIN_RISE:
        return None
    softer = ", or a lower --alpha" if run.teacher else ", or --label-smoothing 0.1"
    return (
        f"the student overfits: accuracy on train views is {late:.3f} above validation in the last quarter (first "
        f"half: {early:+.3f}), and the validation loss {rise:.0%} above its lowest, of epoch {loss.argmin() + 1}; try "
        f"more --views in the cache, --dropout 0.2{softer}"
    )


def _teacher_too_weak(run: Run) -> str | None:
    if not run.teacher:
        return None
    taught = run.teacher.report.metrics
    remedy = "try `softlabel cache probe CACHE DATA -o probe.h5`, or `softlabel teacher fit`"
    if taught.accuracy < taught.majority_share + max(NEAR, accuracy_error(taught.accuracy, taught.n_samples)):
        return (
            f"the teacher is weak: accuracy {taught.accuracy:.3f}, where always the largest class has "
            f"{taught.majority_share:.3f}; {remedy}"
        )
    own = run.best["val_macro_f1"]
    if taught.macro_f1 - own >= NEAR:
        return None
    return f"the teacher has no more to give: its macro F1 is {taught.macro_f1:.3f}, the student's {own:.3f}; {remedy}"


def _teacher_overfitted(run: Run) -> str | None:
    if not run.teacher or run.teacher.report.is_all_seen:
        return None
    val = run.teacher.report.metrics
    gap = run.teacher.train_accuracy - val.accuracy
    if gap < max(WELL_BELOW, 2 * accuracy_error(val.accuracy, val.n_samples)):
        return None
    return (
        f"the teacher is overfitted: accuracy {run.teacher.train_accuracy:.3f} on the train images, {val.accuracy:.3f} "
        "on validation: its train answers are surer than it is; try `softlabel cache probe CACHE DATA -o crossfit.h5 "
        "--cross-fit image`"
    )


def _still_improving(run: Run) -> str | None:
    f1, loss = run.trend("val_macro_f1"), run.trend("val_loss")
    if f1 and f1.rises(MIN_GAIN):
        shown = f"macro F1 rose by {f1.change:.3f} +- {f1.standard_error:.3f}"
    elif f1 and loss and f1.change >= 0 and -loss.change > 2 * loss.standard_error:
        fall = -loss.change / (run.mean("val_loss", run.last_quarter) or 1)
        if fall < MIN_FALL:
            return None
        shown = f"the validation loss fell by {fall:.1%}"
    else:
        return None
    return f"still improving at the end: {shown} in the last quarter; try --epochs {2 * len(run.rows)} in a new run"


def _best_epoch_early(run: Run) -> str | None:
    best, end = run.best, run.column("val_macro_f1")[run.last_quarter]
    is_early = len(run.rows) >= 2 * MIN_EPOCHS and best["epoch"] <= EARLY * len(run.rows)
    fall = best["val_macro_f1"] - end.mean()
    if not is_early or run.settings.get("early_stopping") or fall < max(MIN_GAIN, 2 * end.std()):
        return None
    return (
        f"the best epoch was {best['epoch']} of {len(run.rows)}: macro F1 {best['val_macro_f1']:.3f}, in the last "
        f"quarter {end.mean():.3f}; the rest was for nothing, try --early-stopping {max(3, len(run.rows) // 8)} or "
        f"half the --lr"
    )


def _one_class_only(run: Run) -> str | None:
    answered = _answers(run)
    if len(answered) != 1:
        return None
    return (
        f"the student answers '{answered[0]}' to every validation image: it learned how frequent classes are, and no "
        "more; try --sampler balanced, or a lower --lr"
    )


def _classes_never_answered(run: Run) -> str | None:
    answered = _answers(run)
    if len(answered) < 2 or run.student is None:
        return None
    metrics = run.student.metrics
    missing = [name for name, score in metrics.per_class.items() if score["support"] and name not in answered]
    if not missing:
        return None
    images = sum(int(metrics.per_class[name]["support"] or 0) for name in missing)
    return (
        f"never answered: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}, {len(missing)} of "
        f"{len(metrics.per_class)} classes, with {images:,} validation images; try --logit-adjustment 1, "
        "--class-weights auto or --sampler balanced"
    )


def _answers(run: Run) -> list[str]:
    """Classes that the student gave any validation image, where more than one could be right."""
    if run.student is None:
        return []
    metrics = run.student.metrics
    n_classes = sum(1 for score in metrics.per_class.values() if score["support"])
    said = np.array(metrics.confusion).sum(axis=0)
    return [name for name, n in zip(metrics.per_class, said, strict=True) if n] if n_classes > 1 else []


def _few_validation_images(run: Run) -> str | None:
    if run.student is None:
        return None
    metrics = run.student.metrics
    error = balanced_error(metrics)
    if error <= MAX_ERROR:
        return None
    return (
        f"the validation set is small: with {metrics.n_samples:,} images a difference of {error:.3f} in balanced "
        f"accuracy ({accuracy_error(metrics.accuracy, metrics.n_samples):.3f} in accuracy) is within one standard "
        "error; try --seeds 5 and compare means"
    )


PITFALLS: Mapping[str, Callable[[Run], str | None]] = {
    "temperature-too-flat": _too_flat,
    "temperature-too-sharp": _too_sharp,
    "alpha-too-low": _alpha_too_low,
    "alpha-too-high": _alpha_too_high,
    "student-too-small": _student_too_small,
    "student-overfits": _student_overfits,
    "teacher-too-weak": _teacher_too_weak,
    "teacher-overfitted": _teacher_overfitted,
    "still-improving-at-the-end": _still_improving,
    "best-epoch-long-before-the-end": _best_epoch_early,
    "one-class-only": _one_class_only,
    "some-classes-never-answered": _classes_never_answered,
    "validation-set-too-small": _few_validation_images,
}
"""Slug of a section of docs/troubleshooting.md -> what says it, or None."""
