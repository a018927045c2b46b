"""Predictions as CSV or JSON, a row at a time, each handed on at once: whoever reads may begin before the last image.

Asks no student. Run: softlabel predict student_model.pt IMAGE... --format json
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from cache.errors import printable
from data.errors import BadFile
from pipeline.image_paths import check_model_and_images, image_paths
from pipeline.predict import PredictConfig, Prediction, Predictor, check_bad
from pipeline.tasks import Tasks


def write_predictions(
    model: str | Path, images: Sequence[str | Path], out: TextIO, config: PredictConfig, *,
    form: str = "csv", skip_bad_images: bool = False, device: str = "auto",
) -> None:  # fmt: skip
    """Write what a student says of image files and folders; at the end BadImage where some are none."""
    check_model_and_images(model, images)
    paths = image_paths(images)
    predictor = Predictor(model, config, device=device)
    # Rows on a terminal are progress enough, and a bar would stand among them.
    is_hidden = True if out.isatty() else None
    bar = tqdm(total=len(paths.good), desc="predict", unit="image", leave=False, disable=is_hidden)
    with closing(predictor(paths.good)) as predictions, bar:
        shown = _Terminal(out) if out.isatty() else out
        bad = write_rows(predictions, predictor.tasks, shown, form, told=bar.update)
    remedy = "the others are answered. Remove or replace them, or pass --skip-bad-images to do without them"
    check_bad([*bad, *paths.bad], len(paths), remedy, skip=skip_bad_images)


class _Terminal(io.TextIOBase):
    """A terminal, to which escapes in names are shown; a file or another program gets them as they are."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> int:
        """Line breaks stay; all else that is not printable is spelt out."""
        return self._out.write("\n".join(map(printable, text.split("\n"))))

    def flush(self) -> None:
        """At once, as rows come."""
        self._out.flush()


def write_rows(
    predictions: Iterable[Prediction | BadFile],
    tasks: Tasks,
    out: TextIO | io.TextIOBase,
    form: str,
    told: Callable[[], Any],
) -> list[BadFile]:
    """Write the predictions as they come, in `form` csv or json; returns the files that have none.

    `told` is called after each. Without any image it is a table of no rows, or an empty array.
    """
    write = {"csv": _write_csv, "json": _write_json}[form]
    bad: list[BadFile] = []

    def good() -> Iterator[Prediction]:
        for one in predictions:
            if isinstance(one, BadFile):
                bad.append(one)
            else:
                yield one
                out.flush()
            told()

    write(good(), tasks, out)
    out.flush()
    return bad


def _write_csv(predictions: Iterable[Prediction], tasks: Tasks, out: TextIO | io.TextIOBase) -> None:
    """Columns: image, label (of several tasks one called by each), and a probability for each class."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image", *(tasks if len(tasks) > 1 else ["label"]), *tasks.outputs])
    for one in predictions:
        writer.writerow([one.path, *one.labels.values(), *(f"{p:.4f}" for p in one.probabilities.values())])


def _write_json(predictions: Iterable[Prediction], tasks: Tasks, out: TextIO | io.TextIOBase) -> None:
    """An array with a line for each image."""
    separator = "["
    for one in predictions:
        out.write(f"{separator}\n{json.dumps(_described(one, tasks))}")
        separator = ","
    out.write("[]\n" if separator == "[" else "\n]\n")


def _described(one: Prediction, tasks: Tasks) -> dict[str, Any]:
    values = list(one.probabilities.values())
    of_task = {task: dict(zip(tasks[task], values[columns], strict=True)) for task, columns in tasks.columns.items()}
    if len(tasks) > 1:
        return {"image": one.path, "labels": one.labels, "probabilities": of_task}
    return {"image": one.path, "label": one.label, "probabilities": of_task[tasks.only]}
