"""The gate before a training: a teacher that nobody should learn from stops it. Also the words for what it is worth.

Computes no number (`pipeline.gate.report` does). Run: softlabel cache info t.h5 --data DATA
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cache import CacheReader
from pipeline.errors import WeakTeacher
from pipeline.gate.calibration import ENTROPY_BAND
from pipeline.gate.report import MAX_P_VALUE, MIN_ADJUSTED_ACCURACY, TeacherReport
from pipeline.repair.remedies import advice_near_chance, advice_renamed

_N_NAMED = 8
"""Renamed classes that a message lists."""


def short_lines(report: TeacherReport, temperature: float | None) -> list[str]:
    """The start of a training: what a student with this T is about to learn from; no T where it will not."""
    scores = report.metrics
    unused = " (not used: hard labels only)" if temperature is None else ""
    lines = [
        f"{report.split} accuracy {scores.accuracy:.3f}, balanced {scores.balanced_accuracy:.3f}, macro F1 "
        f"{scores.macro_f1:.3f}; always the largest class: {scores.majority_share:.3f}{unused}"
    ]
    if said := _seen_text(report):
        lines.append(said)
    if temperature is None:
        return lines
    said = _temperature_text(report)
    if report.temperatures and not report.temperatures[0] <= temperature <= report.temperatures[1]:
        side, effect = (
            ("below", "repeat labels") if temperature < report.temperatures[0] else ("above", "be near uniform")
        )
        nearest = report.temperatures[0] if temperature < report.temperatures[0] else report.temperatures[1]
        said += (
            f"; T {temperature:g} of this run lies {side} that: its soft targets will {effect}, try "
            f"--temperature {nearest:g}"
        )
    lines.append(said)
    if report.confusions:
        lines.append(f"confuses {_confusions_text(report)}")
    if report.views:
        lines.append(_views_text(report))
    return lines


def long_lines(report: TeacherReport) -> list[str]:
    """All of it, for `cache info`."""
    scores = report.metrics
    entropies = ", ".join(f"{nats:.2f} at T {t:g}" for t, nats in report.entropy_nats.items())
    lines = [
        f"on          {report.split}: {scores.n_samples:,} clean views",
        f"accuracy    {scores.accuracy:.3f}; always the largest class: {scores.majority_share:.3f}",
        f"balanced    {scores.balanced_accuracy:.3f}, macro F1 {scores.macro_f1:.3f}",
        f"calibration error {report.calibration_error:.3f} at T 1: mean confidence {report.mean_confidence:.3f}, "
        f"accuracy {scores.accuracy:.3f}",
        f"entropy     {entropies}; at most log C = {report.max_entropy_nats:.2f} nats",
        f"temperature {_temperature_text(report)}",
    ]
    if not report.is_seen_known:
        lines.insert(1, "seen        unknown: if the teacher was fitted on these images, the scores are too good")
    elif said := _seen_text(report):
        lines.insert(1, f"seen        {said}")
    if report.confusions:
        lines.append(f"confuses    {_confusions_text(report)}")
    if report.views:
        lines.append(f"views       {_views_text(report)}")
    lines.append(f"verdict     {chance_text(report)}")
    if report.verdict.renaming:
        lines.append(f"verdict     {renaming_text(report)}")
    return lines


def check_teacher(report: TeacherReport, reader: CacheReader, cache: str | Path, words: Sequence[str]) -> None:
    """WeakTeacher, with what to do, where nobody should learn from these answers; `cache` is the name for people."""
    anyway = "To train on it as it is: --anyway; without it: --no-teacher"
    if report.verdict.renaming:
        raise WeakTeacher(
            f"{cache}: {renaming_text(report)}\nIts class names or prompts are in the wrong order. "
            f"{advice_renamed(reader, str(cache))} {anyway}"
        )
    if report.verdict.is_near_chance:
        raise WeakTeacher(
            f"{cache}: {chance_text(report)}\nA student may learn noise from it. "
            f"{advice_near_chance(reader, str(cache), words)}\n{anyway}"
        )


def chance_text(report: TeacherReport) -> str:
    """How far from chance it is, with the numbers that decide."""
    verdict = report.verdict
    images = " and ".join(f"{n:,} {split}" for split, n in verdict.images.items())
    if verdict.adjusted is None:
        return f"whether the teacher is near chance cannot be told: {images} images are of one class"
    found = f"the teacher is {'' if verdict.is_near_chance else 'not '}near chance"
    if verdict.is_near_chance and verdict.adjusted >= MIN_ADJUSTED_ACCURACY:
        found = "so few images cannot tell the teacher from chance"
    return (
        f"{found}: balanced accuracy "
        f"{verdict.balanced_accuracy:.3f} over {verdict.n_classes} classes is {verdict.adjusted:.3f} adjusted for "
        f"chance (at least {MIN_ADJUSTED_ACCURACY} is asked), p {verdict.p_value:.3f} under shuffled labels "
        f"(at most {MAX_P_VALUE}), on {images} images{' (more than above)' * (len(verdict.images) > 1)}"
    )


def renaming_text(report: TeacherReport) -> str:
    """Which classes look renamed, and what the names cost."""
    renaming = report.verdict.renaming
    assert renaming is not None
    named = [
        f"'{report.classes[a]}' images get '{report.classes[b]}' ({renaming.shares[a][0]:.0%}; "
        f"their own name {renaming.shares[a][1]:.0%})"
        for a, b in renaming.said_as.items()
    ]
    rest = f" and {len(named) - _N_NAMED} more" if len(named) > _N_NAMED else ""
    return (
        f"the teacher's classes look renamed: {', '.join(named[:_N_NAMED])}{rest}. Balanced accuracy is "
        f"{report.verdict.balanced_accuracy:.3f}, and {renaming.balanced_accuracy:.3f} with these names put right"
    )


def _seen_text(report: TeacherReport) -> str:
    if report.is_all_seen:
        return "it was fitted on all of these images: the scores are too good to be true"
    left_out = report.n_seen_left_out
    return f"{left_out:,} other {report.split} images left out: it was fitted on them" if left_out else ""


def _temperature_text(report: TeacherReport) -> str:
    low, high = ENTROPY_BAND
    if report.temperatures is None:
        return f"no T spreads its answers over {low} to {high} of the largest entropy"
    ends = dict.fromkeys(f"{t:g}" for t in report.temperatures)
    return f"T of about {' to '.join(ends)} leaves {low} to {high} of the largest entropy"


def _confusions_text(report: TeacherReport) -> str:
    return ", ".join(f"{one.true} -> {one.predicted} ({one.n_images:,}, {one.share:.0%})" for one in report.confusions)


def _views_text(report: TeacherReport) -> str:
    assert report.views is not None
    clean = report.views.clean
    return (
        f"{clean.top1:.0%} of {report.views.n_views:,} other train views are answered like the clean one "
        f"(KL {clean.kl_nats:.2f} nats)"
    )
