"""Export a run's best student as one file. Nothing gets its name before it is small enough, runs elsewhere, and agrees.

Never trains. Run: softlabel export RUN DATA -o student_model.pt --weights fp16
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache import durable
from data.options import ScanOptions
from pipeline.card import StudentCard
from pipeline.course import contract
from pipeline.errors import OutputExists, OverBudget, RunError, SettingError
from pipeline.fidelity import Fidelity, RealImages
from pipeline.formats import torchscript
from pipeline.formats.fresh import FreshProcess
from pipeline.formats.names import FORMATS, SUFFIXES, is_export
from pipeline.formats.stored import WEIGHTS
from pipeline.inference import Student, load_student, normalise
from pipeline.outputs import check_output_file
from pipeline.students.budget import MB, what_fits

_TOLERANCE = 1e-4
"""Largest difference of a logit between checkpoint and exported file, relative to the largest logit (at least 1)."""
_N_NOISE, _N_CALIBRATION = 16, 512


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What the file is to be."""

    format: str = "auto"
    """One of FORMATS; `auto`: by the ending of the file's name (.onnx, .pt2), else torchscript."""
    weights: str = "fp32"
    """How they are stored, one of WEIGHTS; the arithmetic is float32."""
    int8: bool = False
    """INT8 arithmetic by ONNX Runtime."""
    for_course: bool = False
    """By the contract of the course server."""
    budget_mb: float = 25.0
    """Largest file, 1e6 bytes."""
    least_agreement: float | None = None
    """Share of real images, in (0, 1], that must get the class of the checkpoint. None: 0.999; with 8 bits 0.99."""
    replace: bool = False
    """Put the new file in the place of an old one."""

    def __post_init__(self) -> None:
        for name, known in (("format", ("auto", *FORMATS)), ("weights", WEIGHTS)):
            if getattr(self, name) not in known:
                raise SettingError(f"{name} must be {', '.join(known)}, got {getattr(self, name)!r}")
        if not self.budget_mb > 0:
            raise SettingError(f"--budget-mb must be above 0, got {self.budget_mb}")
        if self.least_agreement is not None and not 0 < self.least_agreement <= 1:
            raise SettingError(f"--least-agreement is a share in (0, 1], got {self.least_agreement}")
        if self.int8 and self.weights != "fp32":
            raise SettingError("--int8 stores its weights in 8 bits by itself: leave --weights out")

    def format_of(self, out: Path) -> str:
        """The format of a file of this name; SettingError where it does not go with the other settings."""
        by_name = next((name for name, suffix in SUFFIXES.items() if suffix == out.suffix), "torchscript")
        found = self.format if self.format != "auto" else "onnx" if self.int8 else by_name
        if self.int8 and found != "onnx":
            raise SettingError(f"--int8 is arithmetic of ONNX Runtime, and --format is {found}: take --format onnx")
        if self.int8 and self.for_course:
            raise SettingError("the course server takes torchscript, and --int8 is ONNX: take --weights int8")
        if self.weights != "fp32" and found == "torch-export":
            raise SettingError(f"--weights {self.weights} is for torchscript and onnx, and the format is {found}")
        if self.for_course and found != "torchscript":
            raise SettingError(f"the course server takes torchscript, and the format is {found}")
        if found == "onnx" and out.suffix != SUFFIXES["onnx"]:
            raise SettingError(f"an ONNX file is known by its name: call it {out.with_suffix(SUFFIXES['onnx'])}")
        if found != by_name and out.suffix in SUFFIXES.values():
            raise SettingError(f"{out} has the ending of {by_name}, and the format is {found}: call it otherwise")
        return found

    @property
    def is_exact(self) -> bool:
        """Whether the file holds the very weights of the checkpoint."""
        return self.weights == "fp32" and not self.int8

    @property
    def agreement(self) -> float:
        """The share that is asked for."""
        of_bits = 0.99 if self.int8 or self.weights == "int8" else 0.999
        return of_bits if self.least_agreement is None else self.least_agreement


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written."""

    path: Path
    n_bytes: int
    format: str
    runtime: str
    """What ran it in a process of its own."""
    worst_difference: float
    """Largest difference of a logit from the checkpoint, on noise images."""
    fidelity: Fidelity | None
    """On real images; None where no DATA was given."""

    def to_text(self) -> str:
        """For people."""
        text = f"{self.path}: {self.n_bytes / MB:.2f} MB, runs in a process with {self.runtime} alone"
        if self.fidelity is not None:
            return f"{text}\n{self.fidelity.to_text()}"
        return (
            f"{text} and agrees with the checkpoint on noise images (largest logit difference "
            f"{self.worst_difference:.1g}); `softlabel export RUN DATA -o FILE` compares them on real ones"
        )


def export(
    run: str | Path,
    out: str | Path,
    config: ExportConfig = ExportConfig(),
    *,
    data: str | Path | None = None,
    scan: ScanOptions = ScanOptions(),
) -> Exported:
    """Write to a temporary name, run it in a process of its own, compare it there with the checkpoint, then publish.

    `data` has the real images. Raises OutputExists, OverBudget, CourseError, SettingError or RunError; in each case no
    file of that name appears or changes.
    """
    out = Path(out)
    format_name = config.format_of(out)
    _check_paths(Path(run), out, config, has_data=data is not None)
    student = load_student(run, "cpu")
    module, card = contract.for_course(student.module, student.card) if config.for_course else (
        student.module, student.card
    )  # fmt: skip
    images = None if data is None else RealImages(student, data, scan)
    with durable.held(out):
        artefact = _written(module, card, format_name, config, images)
        _check_budget(artefact, module, card, config)
        with durable.unpublished(out, artefact) as temp:
            exported = _compared(temp, out, student, card, format_name, config, images)
            with durable.disk_errors(out, len(artefact)):
                if config.replace:
                    durable.publish_replace(temp, out)
                elif not durable.publish_new(temp, out):
                    raise OutputExists(f"{out} appeared during the export and was left alone: choose another name")
    return exported


def _check_paths(run: Path, out: Path, config: ExportConfig, *, has_data: bool) -> None:
    check_output_file(out)
    if out.exists() and not config.replace:
        raise OutputExists(f"{out} exists: choose another name, delete it, or export with --replace")
    if out.exists() and not is_export(out):
        raise OutputExists(f"{out} is no exported file, and --replace takes the place of nothing else")
    if run.is_file():
        raise RunError(f"{run} is a file, no run folder: `softlabel train` makes one, under another name")
    if not run.is_dir():
        raise RunError(f"no such run folder: {run}; `softlabel train DATA t.h5 -o {shlex.quote(str(run))}` makes one")
    if not config.is_exact and not has_data:
        how = "--int8" if config.int8 else f"--weights {config.weights}"
        again = f"`softlabel export {shlex.quote(str(run))} DATA {how} -o {shlex.quote(str(out))}`"
        raise SettingError(f"{how} changes the answers, and only real images tell how much: name them, {again}")


def _written(
    module: Any, card: StudentCard, format_name: str, config: ExportConfig, images: RealImages | None
) -> bytes:
    if format_name == "torchscript":
        return torchscript.to_bytes(module, card, config.weights)
    if format_name == "torch-export":
        from pipeline.formats import torch_export

        return torch_export.to_bytes(module, card)
    if config.int8:
        from pipeline.formats import onnx_int8

        assert images is not None
        return onnx_int8.to_bytes(module, card, images.usual(_N_CALIBRATION))
    from pipeline.formats import onnx_file

    return onnx_file.to_bytes(module, card, config.weights)


def _check_budget(artefact: bytes, module: Any, card: StudentCard, config: ExportConfig) -> None:
    budget_mb = min(config.budget_mb, contract.BUDGET_MB) if config.for_course else config.budget_mb
    too_many = len(artefact) >= budget_mb * MB if config.for_course else len(artefact) > budget_mb * MB
    if too_many:
        raise OverBudget(
            f"the file would have {len(artefact) / MB:.1f} MB, the budget is {budget_mb:g} MB: not written; "
            f"{what_fits(module, card, budget_mb)}"
        )


def _compared(
    temp: Path, out: Path, student: Student, card: StudentCard, format_name: str, config: ExportConfig,
    images: RealImages | None,
) -> Exported:  # fmt: skip
    """Run the unpublished file elsewhere; RunError where it is not what the checkpoint is."""
    size_px = card.size_px
    noise = torch.randint(0, 256, (_N_NOISE, 3, size_px, size_px), generator=torch.Generator().manual_seed(0))
    pixels = noise.to(torch.uint8)
    order = [student.card.classes.index(name) for name in card.classes]
    expected = student.logits(pixels)[:, order]
    with FreshProcess(temp, format_name) as process:
        found = process.logits(normalise(pixels, card, "cpu").contiguous().numpy())
        if found.shape != expected.shape or not np.isfinite(found).all():
            raise RunError("the exported model answers with another shape, or not with finite numbers: not written")
        worst = float(abs(expected - found).max())
        if config.is_exact and not worst <= _TOLERANCE * max(1.0, float(abs(expected).max())):
            raise RunError(f"the exported model differs from its checkpoint by {worst:.2g} in a logit: not written")
        fidelity = None if images is None else images.compare(process, card)
        if fidelity is not None and not fidelity.is_enough(config.agreement):
            raise RunError(
                f"not written, as {config.agreement:.1%} are asked for (--least-agreement): {fidelity.to_text()}; "
                f"{_closer(config)}"
            )
        return Exported(
            path=out, n_bytes=temp.stat().st_size, format=format_name, runtime=process.runtime, worst_difference=worst,
            fidelity=fidelity,
        )  # fmt: skip


def _closer(config: ExportConfig) -> str:
    """What answers more like the checkpoint."""
    if config.int8:
        return "--weights int8 stores 8 bits too and computes in float32"
    return {"int8": "--weights fp16 is closer", "fp16": "--weights fp32 is the checkpoint's own"}.get(
        config.weights, "train the student anew, or report this"
    )
