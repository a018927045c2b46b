"""The page: everything in it, nothing from elsewhere, strangers' names as text, and the same bytes every time."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.report.content import ReportContent, shown_samples
from pipeline.report.page import render_report, write_report
from pipeline.report.section import N_BARS
from pipeline.tasks import Tasks

from .conftest import HOSTILE, JPEG, answers_of, epochs, one_epoch

Content = Callable[..., ReportContent]


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts = Counter[str](), list[tuple[str, str]](), list[str]()
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_page_needs_no_script_and_nothing_from_elsewhere(page: str) -> None:
    read = Page(page)
    assert not {"script", "link", "iframe", "object", "img", "image", "foreignObject"} & set(read.tags)
    for name, value in read.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "action")
        assert name not in ("href", "xlink:href") or value.startswith("#")
        assert "url(" not in value or "url(#" in value
        assert not re.search(r"https?:", value) or name.startswith("xmlns")
    assert "@import" not in page


def test_names_of_strangers_are_text(page: str) -> None:
    text = Page(page).text
    for name in (*HOSTILE[:3], "湿疹 \\x1b[31m"):
        assert name in text
    assert "\x1b" not in page


def test_the_same_content_is_the_same_page(page: str, content_of: Content) -> None:
    assert render_report(content_of()) == page


def test_a_resumed_run_differs_by_nothing_but_its_times(page: str, content_of: Content) -> None:
    slower = [{**row, "wall_s": 7.0, "images_per_s": 11.0} for row in epochs(100)]
    other = render_report(content_of(rows=slower))
    assert other != page
    times = re.compile(r'<span class="times">.*?</span>')
    assert times.sub("", other) == times.sub("", page)


def test_a_hundred_epochs_of_ten_classes_are_under_a_megabyte(content_of: Content) -> None:
    generator, labels = np.random.default_rng(0), list(range(10)) * 20
    answers = answers_of(labels, generator.normal(size=(200, 10)), generator.normal(size=(200, 10)))
    html = render_report(content_of(classes=tuple(f"class {c}" for c in range(10)), answers=answers))
    assert len(html.encode()) < 500_000


def test_ids_are_unique_and_every_reference_has_its_target(page: str) -> None:
    attributes = Page(page).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r"url\(#([^)]+)\)|xlink:href=\"#([^\"]+)\"", page)) != set()
    wanted = {a or b for a, b in re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", page)}
    assert wanted <= set(ids)


def test_figures_take_their_colours_and_font_from_the_page(page: str) -> None:
    figures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--student)" in figures
    assert "var(--font)" in figures
    assert "DejaVu" not in figures
    assert not re.search(r"#0001\d\d|#1f77b4", figures)


def test_without_pictures_there_is_no_image_and_no_file_name(page: str) -> None:
    assert "secret-name" not in page
    assert "somebody" not in page
    assert "weights.pt" in page
    assert "no image and no file name" in Page(page).text


def test_pictures_stand_in_the_page_itself(content_of: Content) -> None:
    content = content_of(rows=one_epoch())
    answers = content.answers["class"]
    chosen = [answers.keys[n] for group in shown_samples(answers) for n in group.numbers]
    html = render_report(dataclasses.replace(content, pictures=dict.fromkeys(chosen, JPEG)))
    read = Page(html)
    assert read.tags["img"] == len(chosen)
    assert all(value.startswith("data:image/jpeg;base64,") for name, value in read.attributes if name == "src")
    assert "share it only with those who may see them" in read.text
    assert "secret-name" not in html


def test_the_headline_has_student_size_scores_and_retention(page: str) -> None:
    text = Page(page).text
    for words in (
        "run-7", "shufflenet_v2_x0_5 at 64 px, 4 classes, taught by a teacher",
        "Validation macro F1 0.900 best epoch 100", "Retention on val", "0.35 M 1.6 MB exported",
        "it rose by 0.1; try --epochs 80", "cache_id " + "ab" * 32,
    ):  # fmt: skip
        assert words in re.sub(r" +", " ", text)


def test_scores_and_bars_are_those_of_the_answers(content_of: Content) -> None:
    """Two classes: the student has 3 of 4 right, the teacher all; of class b the student has 1 of 2."""
    answers = answers_of([0, 0, 1, 1], np.eye(2)[[0, 0, 1, 0]], np.eye(2)[[0, 0, 1, 1]], "test")
    html = render_report(content_of(classes=("a", "b"), answers=answers, rows=one_epoch()))
    text = Page(html).text
    assert re.search(r"accuracy 0\.750 .{0,20} 1\.000 .{0,20} 75 %", text)
    assert "agree on 0.750 of the images" in text
    assert re.search(r"b 2 1\.000 1\.000 0\.500 1\.000 0\.667 1\.000", text)
    assert 'style="width:66.7%"' in html


def test_without_images_the_page_has_curves_and_settings(content_of: Content) -> None:
    text = Page(render_report(content_of(answers={}))).text
    assert "Hard loss" in text
    assert "lr_peak 0.001" in text
    assert "Confusion" not in text


def test_a_run_without_a_teacher_has_no_column_for_one(content_of: Content) -> None:
    answers = answers_of([0, 1, 1], np.eye(2)[[0, 1, 0]], None)
    settings = {**content_of().settings, "teacher": False}
    rows = epochs(2, train_agreement=None, val_agreement=None, val_kl=None, train_accuracy=None, lr=None)
    html = render_report(content_of(classes=("a", "b"), answers=answers, rows=rows, settings=settings))
    text = Page(html).text
    assert "hard labels alone" in text
    assert "Soft loss" not in text
    assert 'class="bar t"' not in html
    assert "disagreements" not in text


def test_two_tasks_have_a_row_and_a_section_each(content_of: Content) -> None:
    """Of task <b> the student has 3 of 4 right, of the other both of its two images; epoch 1 is the best by that."""
    tasks = Tasks({"<b>": ("x", "y"), "tone": ("dark", "pale")})
    answers = {
        "<b>": answers_of([0, 0, 1, 1], np.eye(2)[[0, 0, 1, 0]], np.eye(2)[[0, 0, 1, 1]]),
        "tone": answers_of([0, 1], np.eye(2), np.eye(2)),
    }
    scores = ("val_macro_f1", "val_balanced_accuracy", "val_accuracy")
    rows = [
        {**row, **{f"<b>/{name}": 0.25 for name in scores}, **{f"tone/{name}": tone for name in scores}}
        for row, tone in zip(one_epoch() + epochs(2)[1:], (0.75, 0.5), strict=True)
    ]
    settings = {**content_of().settings, "best_by": "tone"}
    html = render_report(content_of(tasks=tasks, answers=answers, rows=rows, settings=settings))
    read = Page(html)
    text = re.sub(r" +", " ", read.text)
    for words in (
        "2 tasks (<b> with 2, tone with 2 classes)", "best epoch by tone 1 of 2, mean of 2 tasks",
        "<b> 2 0.250 0.250 0.250 1.000 73 % tone 2 0.750 0.750 0.750 1.000 100 % mean",
        "Scores on val, <b> : 4 images", "Scores on val, tone : 2 images", "losses and scores are means over the tasks",
    ):  # fmt: skip
        assert words in text.replace("<b>:", "<b> :").replace("tone:", "tone :"), words
    ids = [value for name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    without = Page(render_report(content_of(tasks=tasks, answers={}, rows=rows[:1], settings=settings))).text
    assert "tone 2 0.750 0.750 0.750 mean" in re.sub(r" +", " ", without)
    assert "Scores on" not in without


def test_a_class_without_images_is_a_dash(content_of: Content) -> None:
    answers = answers_of([0, 1], np.eye(3)[[0, 1]], np.eye(3)[[0, 1]])
    text = Page(render_report(content_of(classes=("a", "b", "c"), answers=answers, rows=one_epoch()))).text
    assert re.search(r"c 0 - - - - - -", text)


def test_a_sample_shows_the_true_class_and_the_likeliest(content_of: Content) -> None:
    n_classes = N_BARS + 3
    logits = np.zeros((1, n_classes))
    logits[0, 1] = 5
    names = tuple(f"name-{c}" for c in range(n_classes))
    content = content_of(classes=names, answers=answers_of([7], logits, None), rows=one_epoch())
    sample = re.search(r"<ul>\n<li>(.*?)</ul>", render_report(content), re.DOTALL)
    assert sample is not None
    shown = re.findall(r'title="(name-\d)"', sample[1])
    assert shown[:2] == ["name-7", "name-1"]
    assert len(shown) == N_BARS


@pytest.mark.parametrize(
    ("changes", "there", "absent"),
    [
        ({}, ["Soft loss, T² KL, nats", "Accuracy", "Learning rate"], ["Temperature"]),
        ({"temperature": None}, ["Soft loss"], ["Temperature"]),
        ({"train_accuracy": None, "val_loss": None}, ["Hard loss"], [">Accuracy<"]),
    ],
)
def test_curves_are_of_the_columns_there_are(
    changes: dict[str, Any], there: list[str], absent: list[str], content_of: Content
) -> None:
    html = render_report(content_of(answers={}, rows=epochs(5, **changes)))
    assert all(title in html for title in there)
    assert not any(title in re.sub(r"(?s)<h2>Settings.*", "", html) for title in absent)


def test_a_temperature_that_changes_is_a_curve(content_of: Content) -> None:
    rows = [{**row, "temperature": 8.0 - row["epoch"]} for row in epochs(4)]
    assert 'aria-label="Temperature"' in render_report(content_of(answers={}, rows=rows))


def test_a_report_is_written_over_the_one_before(content_of: Content, tmp_path: Path) -> None:
    for name in ("run-1", "run-2"):
        write_report(tmp_path / "report.html", content_of(name=name, answers={}, rows=one_epoch()))
    assert "<h1>run-2</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
