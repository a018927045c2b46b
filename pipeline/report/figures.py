"""The figures of a report: curves over epochs, confusion matrix, reliability diagram. Inline SVG; knows no page.

E epochs, C classes, M bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cache.errors import printable
from pipeline.metrics.calibration import CalibrationBin
from pipeline.report.svg import FAINT, INK, STUDENT, TEACHER, TRAIN, new_figure, plain_axes, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_COUNTED = 25
"""Classes up to which a confusion matrix has its counts written into it."""
_MAX_NAME = 22
"""Letters of a class name along an axis."""
_LEVELS = 20
"""Of the shares in a confusion matrix."""
_FULL = 0.6
"""Opacity of a whole row in one cell with a number: the page's ink is legible on it by day and by night."""


@dataclass(frozen=True)
class Line:
    """One line of a plot: a column of metrics.csv, perhaps times a factor."""

    column: str
    label: str
    colour: str = STUDENT
    style: str = "-"
    factor: float = 1.0


@dataclass(frozen=True)
class Plot:
    """Lines that share an axis."""

    title: str
    lines: tuple[Line, ...]
    unit: str = ""
    is_share: bool = False


def plots_of(settings: Mapping[str, Any], tasks: Sequence[str] = ()) -> tuple[Plot, ...]:
    """What is drawn of a run with these settings, where it has the first line's values."""
    train, val = (TRAIN, "--"), (STUDENT, "-")
    alpha = settings.get("alpha", 1.0) if settings.get("teacher", True) else 1.0
    soft = [] if alpha == 1 else [
        Plot("Soft loss", (Line("loss_soft", "train", *train),), "T² KL, nats"),
        Plot("What each adds to the loss", (
            Line("loss", "total", INK, "-"),
            Line("loss_hard", f"{alpha:g} x hard", *val, alpha),
            Line("loss_soft", f"{1 - alpha:g} x soft", TEACHER, "-", 1 - alpha),
        ), "nats"),
    ]  # fmt: skip
    styles = [(colour, style) for style in ("-", "--", ":") for colour in (STUDENT, INK, TRAIN)]
    several = [] if len(tasks) < 2 else [
        Plot("Validation macro F1 of each task", tuple(
            Line(f"{task}/val_macro_f1", _short(task), *styles[number % len(styles)])
            for number, task in enumerate(tasks)
        ), is_share=True),
    ]  # fmt: skip
    return (
        Plot("Hard loss", (Line("loss_hard", "train", *train), Line("val_loss", "validation", *val)), "nats"),
        *soft,
        Plot("Validation scores", (
            Line("val_accuracy", "accuracy", TRAIN, ":"), Line("val_balanced_accuracy", "balanced accuracy", INK, "--"),
            Line("val_macro_f1", "macro F1", *val),
        ), is_share=True),
        *several,
        Plot("Accuracy", (
            Line("train_accuracy", "train views", *train), Line("val_accuracy", "validation", *val),
        ), is_share=True),
        Plot("Same answer as the teacher", (
            Line("train_agreement", "train views", *train), Line("val_agreement", "validation", *val),
        ), is_share=True),
        Plot("KL(teacher || student), T = 1", (Line("val_kl", "validation", *val),), "nats"),
        Plot("Learning rate", (Line("lr", "learning rate", *val),)),
        Plot("Temperature", (Line("temperature", "temperature", *val),)),
    )  # fmt: skip


def curves(
    rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], best_epoch: int, teacher_f1: float | None,
    tasks: Sequence[str] = (),
) -> list[tuple[str, str]]:  # fmt: skip
    """(title, SVG) of each plot that the rows have values for; a temperature that never changes is no curve.

    Of several `tasks` these are curves of their means, and one of the macro F1 of each.
    """
    found = []
    for number, plot in enumerate(plots_of(settings, tasks)):
        lines = [(line, _column(rows, line)) for line in plot.lines]
        if not np.isfinite(lines[0][1]).any() or (plot.title == "Temperature" and np.unique(lines[0][1]).size < 2):
            continue
        lines = [(line, values) for line, values in lines if np.isfinite(values).any()]
        level = teacher_f1 if plot.title == "Validation scores" else None

        def draw(plot: Plot = plot, lines: Any = lines, level: float | None = level) -> Figure:
            return _curve_figure(plot, lines, best_epoch, level)

        found.append((plot.title, to_svg(draw, f"curve{number}")))
    return found


def _column(rows: Sequence[Mapping[str, Any]], line: Line) -> NDArray[np.float64]:
    values = [np.nan if row.get(line.column) is None else float(row[line.column]) for row in rows]
    return np.array(values) * line.factor


def _curve_figure(
    plot: Plot, lines: Sequence[tuple[Line, NDArray[np.float64]]], best_epoch: int, teacher_level: float | None
) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(4.4, 2.7)
    axes = plain_axes(figure, f"{plot.title}, {plot.unit}" if plot.unit else plot.title)
    n_epochs = len(lines[0][1])
    axes.axvline(best_epoch, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)))
    for line, values in lines:
        axes.plot(
            range(1, n_epochs + 1), values, line.style, color=line.colour, linewidth=1.6, label=line.label,
            marker="o" if n_epochs < 3 else None, markersize=4,
        )  # fmt: skip
    if teacher_level is not None:
        axes.axhline(teacher_level, color=TEACHER, linewidth=1.2, linestyle="-.", label="teacher's macro F1")
    if plot.is_share:
        low = min(float(np.nanmin(values)) for _, values in lines)
        axes.set_ylim(max(0.0, min(low, teacher_level if teacher_level is not None else 1) - 0.05), 1.0)
    else:
        axes.set_ylim(0, 1.05 * max(float(np.nanmax(values)) for _, values in lines) or 1.0)
    beside = max(0.5, 0.02 * n_epochs)
    axes.set_xlim(1 - beside, n_epochs + beside)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("epoch", fontsize=8, color=FAINT)
    if len(lines) > 1 or teacher_level is not None:
        _legend(axes)
    return figure


def _legend(axes: Axes, where: Literal["best", "lower right"] = "best") -> None:
    axes.legend(loc=where, frameon=False, fontsize=8, labelcolor=INK, handlelength=2.2, borderaxespad=0.2)


def confusion_svg(confusion: Sequence[Sequence[int]], classes: tuple[str, ...], name: str = "confusion") -> str:
    """The confusion matrix [C, C], rows true: darker is a larger share of the true class; `name` as for `to_svg`."""
    counts = np.array(confusion)
    n_classes, names = len(counts), [_short(name) for name in classes]
    is_counted = n_classes <= MAX_COUNTED
    side, size = (0.42, 8.5) if is_counted else (0.16, 7)
    margin = 0.45 + max(map(len, names)) * size * 0.62 / 72  # letters are 0.6 of their height wide, some are wider

    def draw() -> Figure:
        figure = new_figure(margin + 0.15 + side * n_classes, margin + 0.1 + side * n_classes)
        axes = plain_axes(figure, "", margin, margin)
        axes.grid(visible=False)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        _fill_cells(axes, shares, _FULL if is_counted else 1.0)
        if is_counted:
            for true, said in zip(*np.nonzero(counts), strict=True):
                axes.text(said, true, f"{counts[true, said]}", ha="center", va="center", fontsize=8, color=INK)
        axes.set_xticks(range(n_classes), names, rotation=90, fontsize=size, color=INK)
        axes.set_yticks(range(n_classes), names, fontsize=size, color=INK)
        axes.set_xlim(-0.5, n_classes - 0.5)
        axes.set_ylim(n_classes - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_xlabel("answered", color=FAINT)
        axes.set_ylabel("true", color=FAINT)
        return figure

    return to_svg(draw, name)


def _fill_cells(axes: Axes, shares: NDArray[np.float64], most: float) -> None:
    """One path for all cells of a level: thousands of them stay small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    levels = np.ceil(shares * _LEVELS).astype(int)
    square = np.array([(-0.47, -0.47), (0.47, -0.47), (0.47, 0.47), (-0.47, 0.47), (-0.47, -0.47)])
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    for level in range(1, _LEVELS + 1):
        true, said = np.nonzero(levels == level)
        if len(true):
            corners = (np.stack([said, true], axis=1)[:, None] + square).reshape(-1, 2)
            path = Path(corners, codes * len(true))
            axes.add_patch(PathPatch(path, color=STUDENT, alpha=most * level / _LEVELS, linewidth=0))


def _short(name: str) -> str:
    """Cut in the middle: names of one family differ at their ends."""
    name, half = printable(name), _MAX_NAME // 2
    return name if len(name) <= _MAX_NAME else f"{name[: half - 1].rstrip()}…{name[-half:].lstrip()}"


def reliability_svg(
    student: Sequence[CalibrationBin], teacher: Sequence[CalibrationBin] | None, name: str = "reliability"
) -> str:
    """Accuracy over confidence of the student's bins, the teacher's beside; a dot's area is its share of images."""

    def draw() -> Figure:
        figure = new_figure(4.4, 4.2)
        axes = plain_axes(figure, "")
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)))
        for bins, colour, label in ((student, STUDENT, "student"), (teacher, TEACHER, "teacher")):
            if bins is None:
                continue
            filled = [one for one in bins if one.n_images]
            x, y = ([getattr(one, name) for one in filled] for name in ("confidence", "accuracy"))
            share = np.array([one.n_images for one in filled]) / sum(one.n_images for one in filled)
            axes.plot(x, y, "-" if label == "student" else "-.", color=colour, linewidth=1.4, label=label)
            axes.scatter(x, y, s=8 + 260 * share, color=colour, alpha=0.55, linewidths=0)
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.03)
        axes.set_aspect("equal")
        axes.set_xlabel("confidence", fontsize=8, color=FAINT)
        axes.set_ylabel("share that is right", fontsize=8, color=FAINT)
        _legend(axes, "lower right")
        return figure

    return to_svg(draw, name)
