"""Figures of an evaluation: confusion matrix and reliability diagram, as matplotlib Figures.

Computes no scores; needs no display and changes no global state of matplotlib.
Run: softlabel evaluate RUN DATA -o FOLDER
C classes.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cache.errors import printable
from pipeline.metrics.full import FullMetrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_NUMBERED = 30
"""Classes; in a larger matrix the numbers would be too small to read."""
_LONGEST_NAME = 30
_NAME_INCH = 0.11
"""Height of a line of class names that can still be read; where rows are lower, not every one is named."""
_ROOM_FOR_SIGN_INCH = 0.5
_INK, _FAINT, _BLUE, _RED = "#1f2933", "#9aa5b1", "#2b6cb0", "#c0392b"


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str = "") -> Figure:
    """Rows are true classes, columns predicted: coloured by the share of the row, with shares and counts in the cells.

    A class without images is a row of dashes. Long names are cut in the middle; more than 30 classes have no numbers.
    """
    from matplotlib.figure import Figure

    counts = np.array(confusion)
    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, support, out=np.zeros(counts.shape), where=support > 0)
    names = [_short(name) for name in classes]
    n_classes, cell_inch = len(classes), _cell_inch(len(classes))
    side_inch, names_inch = cell_inch * n_classes, 0.085 * (8 + max(map(len, names)))
    figure = Figure(figsize=(side_inch + names_inch + 0.6, side_inch + names_inch + 0.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if n_classes <= _MAX_NUMBERED:
        _write_cells(axes, counts, shares, support[:, 0], cell_inch)
    else:
        bar = figure.colorbar(image, ax=axes, shrink=0.3, aspect=18, pad=0.02)
        bar.set_label("share of the true class", color=_INK)
        bar.outline.set_visible(False)
    _name_axes(axes, names, support[:, 0].tolist(), n_classes)
    has_bare_shares = cell_inch <= _ROOM_FOR_SIGN_INCH and n_classes <= _MAX_NUMBERED
    axes.set_xlabel(
        "predicted (% of the row, images below)" if has_bare_shares else "predicted", color=_INK, labelpad=8
    )
    axes.set_ylabel("true (images)", color=_INK, labelpad=8)
    if title:
        axes.set_title(printable(title), color=_INK, fontsize=12, pad=12, parse_math=False)
    return figure


def reliability_figure(metrics: FullMetrics, title: str = "") -> Figure:
    """Accuracy against confidence in the bins of `metrics.calibration`; below, how many images each bin has."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    bins = [one for one in metrics.calibration if one.n_images]
    lows, widths = [one.low for one in bins], [one.high - one.low for one in bins]
    above.bar(lows, [one.accuracy for one in bins], widths, align="edge", color=_BLUE, edgecolor="white", alpha=0.85)
    above.plot([0, 1], [0, 1], "--", color=_FAINT, label="calibrated")
    above.plot(
        [one.confidence for one in bins], [one.accuracy for one in bins], "o", color=_RED, markersize=4, clip_on=False,
        label="mean confidence of a bin",
    )  # fmt: skip
    above.set(ylim=(0, 1.02), xlim=(0, 1), ylabel="accuracy")
    above.legend(frameon=False, loc="upper left")
    above.text(
        0.97, 0.04, f"calibration error {metrics.calibration_error:.3f}", transform=above.transAxes, ha="right",
        color=_INK, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85},
    )  # fmt: skip
    below.bar(lows, [one.n_images for one in bins], widths, align="edge", color=_FAINT, edgecolor="white")
    below.set(xlabel="confidence (largest probability)", ylabel="images")
    for axes in (above, below):
        _plain_frame(axes)
    if title:
        above.set_title(printable(title), color=_INK, fontsize=12, pad=10, parse_math=False)
    return figure


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as a PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Class names in a script that the font lacks are boxes in the picture; the CSV beside it has them.
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})
    return buffer.getvalue()


def _write_cells(axes: Any, counts: np.ndarray, shares: np.ndarray, support: np.ndarray, cell_inch: float) -> None:
    size = min(11.0, cell_inch * 17)
    line = size / 72 / cell_inch
    for row, column in np.ndindex(*counts.shape):
        if support[row] == 0:
            axes.text(column, row, "-", ha="center", va="center", color=_FAINT, fontsize=size)
        elif counts[row, column]:
            ink = "white" if shares[row, column] > 0.55 else _INK
            share = f"{100 * shares[row, column]:.0f}" if shares[row, column] >= 0.005 else "<1"
            axes.text(column, row - 0.5 * line, f"{share} %" if cell_inch > _ROOM_FOR_SIGN_INCH else share,
                      ha="center", va="center", color=ink, fontsize=size)  # fmt: skip
            axes.text(column, row + 0.65 * line, f"{counts[row, column]:,}",
                      ha="center", va="center", color=ink, fontsize=0.72 * size, alpha=0.8)  # fmt: skip


def _name_axes(axes: Any, names: Sequence[str], support: Sequence[int], n_classes: int) -> None:
    cell_inch = _cell_inch(n_classes)
    size = min(10.0, 72 * 0.75 * max(cell_inch, _NAME_INCH))
    named = range(0, n_classes, math.ceil(_NAME_INCH / cell_inch))
    is_wide = max(map(len, names)) * size * 0.6 / 72 > 0.95 * cell_inch
    style = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_wide else {}
    axes.set_xticks(named, [names[i] for i in named], fontsize=size, parse_math=False, **style)
    axes.set_yticks(named, [f"{names[i]} ({support[i]:,})" for i in named], fontsize=size, parse_math=False)
    if n_classes <= 2 * _MAX_NUMBERED:
        edges = np.arange(n_classes + 1) - 0.5
        axes.set_xticks(edges, minor=True)
        axes.set_yticks(edges, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5 if n_classes <= _MAX_NUMBERED else 0.5)
    axes.tick_params(which="both", length=0)
    _plain_frame(axes, "left", "bottom")


def _plain_frame(axes: Any, *also: str) -> None:
    axes.spines[["top", "right", *also]].set_visible(False)
    axes.tick_params(colors=_INK)


def _cell_inch(n_classes: int) -> float:
    """So that two classes make no postage stamp, and a thousand a picture of 24 inches, 3,600 pixels."""
    if n_classes <= _MAX_NUMBERED:
        return min(1.0, max(0.46, 5.5 / n_classes))
    return min(24 / n_classes, max(12 / n_classes, _NAME_INCH))


def _short(name: str) -> str:
    """Cut in the middle: names of one family often differ at their ends."""
    name = printable(name)
    if len(name) <= _LONGEST_NAME:
        return name
    kept = (_LONGEST_NAME - 1) / 2
    return f"{name[: math.ceil(kept)].rstrip()}…{name[-math.floor(kept) :].lstrip()}"
