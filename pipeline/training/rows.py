"""The row that an epoch has in metrics.csv: of one task its scores; of several their means, then those of each task.

Computes no score. Run: softlabel train DATA t.h5 -o RUN
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.runs import METRIC_COLUMNS
from pipeline.training.validation import Validation

BY_MEAN = "mean"
"""The setting `best_by` that takes the mean over the tasks."""
CHOSEN = "chosen_by"
"""In the rows of one of several tasks: the score that chose the best epoch of the run."""


def score_columns(trained: Mapping[str, Mapping[str, float | None]], validated: Validation) -> dict[str, float | None]:
    """Losses and scores of an epoch: a column each, of several tasks also `task/column` each."""
    of_task = {task: {**columns, **validated.tasks[task].row()} for task, columns in trained.items()}
    columns = next(iter(of_task.values()))
    means = {name: _mean([scores[name] for scores in of_task.values()]) for name in columns}
    if len(of_task) == 1:
        return means
    return means | {f"{task}/{name}": value for task, scores in of_task.items() for name, value in scores.items()}


def chosen_by(row: Mapping[str, Any], best_by: str) -> float:
    """The score of an epoch that chooses the best one."""
    return float(row.get(f"{best_by}/val_macro_f1", row["val_macro_f1"]))  # a single task has no columns of its own


def rows_of_task(
    rows: Sequence[Mapping[str, Any]], task: str, n_tasks: int, best_by: str = BY_MEAN
) -> list[dict[str, Any]]:
    """The rows as a run of this task alone would have them, and in CHOSEN what chose the best epoch."""
    if n_tasks == 1:
        return [dict(row) for row in rows]
    prefix = f"{task}/"
    own = [{name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)} for row in rows]
    return [
        {
            **{name: value for name, value in row.items() if name in METRIC_COLUMNS},
            **scores,
            CHOSEN: chosen_by(row, best_by),
        }
        for row, scores in zip(rows, own, strict=True)
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None
