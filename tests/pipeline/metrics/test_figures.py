"""Figures: every class and count is in them, whatever the names; nothing of matplotlib is changed."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.metrics.figures import confusion_figure, png, reliability_figure
from pipeline.metrics.full import full_metrics

from .answering import drawn


def texts(figure: Figure) -> list[str]:
    axes = figure.axes[0]
    return [text.get_text() for text in (*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels())]


def test_a_confusion_matrix_has_shares_counts_and_names() -> None:
    found = texts(confusion_figure([[3, 1], [0, 0]], ["mel", "nv"]))
    assert found == ["75 %", "3", "25 %", "1", "-", "-", "mel", "nv", "mel (4)", "nv (0)"]


def test_a_long_name_is_cut_in_the_middle_and_a_strange_one_is_only_text() -> None:
    names = ["Actinic Keratosis Basal Cell Carcinoma and other Malignant Lesions", "$x^2$ \x1b[31m 日本"]
    figure = confusion_figure([[1, 0], [0, 1]], names, title="100 % of $\\frac")
    assert "Actinic Keratos…ignant Lesions (1)" in texts(figure)
    assert "$x^2$ \\x1b[31m 日本 (1)" in texts(figure)
    assert png(figure, dpi=30).startswith(b"\x89PNG")


@pytest.mark.parametrize(("n_classes", "n_texts", "n_names"), [(30, 2 * 30, 30), (31, 0, 31), (400, 0, 200)])
def test_many_classes_have_no_numbers_and_very_many_not_every_name(n_classes: int, n_texts: int, n_names: int) -> None:
    axes = confusion_figure(np.eye(n_classes, dtype=int).tolist(), [f"c{i}" for i in range(n_classes)]).axes[0]
    assert len(axes.texts) == n_texts
    assert len(axes.get_yticklabels()) == n_names


def test_a_figure_is_the_same_each_time_and_leaves_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    first, second = (png(confusion_figure([[3, 1], [0, 2]], ["a", "b"]), dpi=40) for _ in range(2))
    assert first == second
    assert dict(matplotlib.rcParams) == before


def test_a_reliability_diagram_has_a_bar_for_each_bin_that_has_images() -> None:
    metrics = full_metrics(*drawn(0, 50, 3), ("a", "b", "c"))
    figure = reliability_figure(metrics, "test")
    assert len(figure.axes[0].patches) == sum(one.n_images > 0 for one in metrics.calibration)
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == 50
    assert f"calibration error {metrics.calibration_error:.3f}" in texts(figure)
