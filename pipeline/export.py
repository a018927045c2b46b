"""Export a run's best student as one TorchScript file. Nothing gets its name before it is small enough and agrees.

Never trains. Run: softlabel export RUN -o student_model.pt
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

from cache import durable
from pipeline import torchscript
from pipeline.errors import OutputExists, OverBudget, RunError
from pipeline.inference import load_student
from pipeline.outputs import check_output_file
from pipeline.students.budget import MB

_TOLERANCE = 1e-4
"""Largest difference of a logit between checkpoint and exported file, relative to the largest logit (at least 1)."""
_N_COMPARED = 16


@dataclass(frozen=True)
class Exported:
    """A file that was written."""

    path: Path
    n_bytes: int
    worst_difference: float
    """Largest difference of a logit from the checkpoint, on noise images."""


def export(run: str | Path, out: str | Path, *, budget_mb: float = 25.0) -> Exported:
    """Script, save, load again and compare, measure, then publish.

    Raises OutputExists, OverBudget or RunError; in each case no file of that name appears or changes.
    """
    out = Path(out)
    check_output_file(out)
    if out.exists():
        raise OutputExists(f"{out} exists: choose another name, or delete it to export again")
    if Path(run).is_file():
        raise RunError(f"{run} is a file, no run folder: `softlabel train` makes one, under another name")
    if not Path(run).is_dir():
        raise RunError(f"no such run folder: {run}; `softlabel train DATA t.h5 -o {shlex.quote(str(run))}` makes one")
    student = load_student(run, "cpu")
    artefact = torchscript.to_bytes(student.module, student.card)
    if len(artefact) > budget_mb * MB:
        raise OverBudget(
            f"the file would have {len(artefact) / MB:.1f} MB, the budget is {budget_mb:g} MB: not written; "
            "train a smaller student, or raise --budget-mb"
        )
    size_px = student.card.size_px
    noise = torch.randint(0, 256, (_N_COMPARED, 3, size_px, size_px), generator=torch.Generator().manual_seed(0))
    expected = student.logits(noise.to(torch.uint8))
    with durable.unpublished(out, artefact) as temp:
        reloaded = load_student(temp, "cpu").logits(noise.to(torch.uint8))
        worst = float(abs(expected - reloaded).max())
        if not worst <= _TOLERANCE * max(1.0, float(abs(expected).max())):
            raise RunError(f"the exported model differs from its checkpoint by {worst:.2g} in a logit: not written")
        with durable.disk_errors(out, len(artefact)):
            is_new = durable.publish_new(temp, out)
        if not is_new:
            raise OutputExists(f"{out} appeared during the export and was left alone: choose another name")
    return Exported(out, len(artefact), worst)
