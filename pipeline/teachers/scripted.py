"""TorchScript files and finished students as teachers: self-distillation, teacher assistants, models from elsewhere.

Never trains. A TorchScript file cannot be taken apart: its outputs are the logits, and there is no embedding.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from pipeline.formats import torchscript
from pipeline.inference import load_student
from pipeline.runs import RunFolder
from pipeline.teachers.classifiers import Classifier

log = logging.getLogger(__name__)


def torchscript_classifier(path: Path) -> Classifier:
    """Any TorchScript classifier; one of `softlabel export` says its own size, normalisation and classes."""
    module, card = torchscript.load_any(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if card is None:
        log.info("%s does not describe itself: taken for 224 px and ImageNet's normalisation", path.name)
        return Classifier(module=module, kind="torchscript", architecture="", size_px=224, digest=digest)
    return Classifier(
        module=module, kind="torchscript", architecture=card.student, size_px=card.size_px, mean=card.mean,
        std=card.std, outputs=card.classes, digest=digest,
    )  # fmt: skip


def student_classifier(run: Path) -> Classifier:
    """The best student of a finished run."""
    student = load_student(run, "cpu")
    RunFolder(run).check_finished()
    card = student.card
    return Classifier(
        module=student.module, kind="student", architecture=card.student, size_px=card.size_px, mean=card.mean,
        std=card.std, outputs=card.classes, fitted_on=RunFolder(run).learned_keys(),
    )  # fmt: skip
