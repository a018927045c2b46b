"""The one door of teachers: what a user names -> a loaded teacher. Each kind's own module does the loading.

| `--teacher`                       | what it is                                                                  |
|-----------------------------------|-----------------------------------------------------------------------------|
| DIR or OWNER/NAME                 | a transformers checkpoint: SigLIP, CLIP, or an image classifier              |
| torchvision:NAME[:WEIGHTS]        | a torchvision classifier; WEIGHTS: a file, or a name such as IMAGENET1K_V2   |
| timm:NAME[:FILE]                  | a timm classifier                                                            |
| FILE.pt                           | a TorchScript classifier, such as `softlabel export` writes                  |
| RUN                               | a finished run of `softlabel train`                                          |
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import SettingError, TeacherError
from pipeline.fit.folder import FitFolder, fitted_on
from pipeline.runs import RunFolder
from pipeline.tasks import Tasks, tasks_of
from pipeline.teachers.classifiers import (
    Classifier,
    classifier_teacher,
    timm_classifier,
    torchvision_classifier,
    transformers_classifier,
)
from pipeline.teachers.description import TeacherDescription
from pipeline.teachers.dual_encoder import DualEncoder, dual_encoder_from, zero_shot_teacher
from pipeline.teachers.hub import load_local_first, quiet_transformers
from pipeline.teachers.prompts import Prompts, PromptSource
from pipeline.teachers.scripted import student_classifier, torchscript_classifier
from pipeline.teachers.teacher import LoadedModel, Teacher

_LIBRARIES = ("torchvision", "timm")


def open_teacher(
    source: str,
    classes: Tasks | Sequence[str],
    prompts: PromptSource | Prompts,
    *,
    description: TeacherDescription | None = None,
    device: str,
    precision: str,
) -> Teacher:
    """Load whatever `source` names for images of these classes, or tasks; `precision` is a resolved one.

    Raises TeacherError or SettingError for what is not there, not a teacher, or not described well enough.
    """
    return Teacher(
        _load(source, tasks_of(classes), prompts, description or TeacherDescription()),
        device=device,
        precision=precision,
    )


def name_without_path(source: str) -> str:
    """What others may read: of a folder or file its name alone, as a path may name a person."""
    library, _, rest = source.partition(":")
    if library in _LIBRARIES and rest:
        name, _, weights = rest.partition(":")
        return ":".join((library, name, *([Path(weights).name] if weights else ())))
    return Path(source).resolve().name if Path(source).exists() else source


def _load(source: str, tasks: Tasks, prompts: PromptSource | Prompts, description: TeacherDescription) -> LoadedModel:
    found = _find(source, len(tasks.outputs), description)
    if isinstance(found, Classifier):
        if isinstance(prompts, PromptSource) and prompts.is_given:
            raise SettingError(f"{source} is a classifier, which reads no prompts: leave --prompts and --template out")
        return classifier_teacher(found, description, tasks.outputs)
    if description != TeacherDescription():
        raise SettingError(f"{source} describes itself: leave --teacher-config out")
    texts = prompts.texts_of(tasks) if isinstance(prompts, PromptSource) else prompts
    return zero_shot_teacher(found, texts, fitted_on(Path(source)))


def _find(source: str, n_classes: int, description: TeacherDescription) -> Classifier | DualEncoder:
    library, _, rest = source.partition(":")
    if library in _LIBRARIES and rest:
        name, _, weights = rest.partition(":")
        of_library = torchvision_classifier if library == "torchvision" else timm_classifier
        return of_library(name, weights, n_classes, description)
    path = Path(source)
    if path.is_file():
        return torchscript_classifier(path)
    if FitFolder(path).is_unfinished():
        raise TeacherError(f"the fit in {path} is not finished: go on with it by `softlabel teacher fit ... --resume`")
    if RunFolder(path).best.exists() or RunFolder(path).last.exists():
        return student_classifier(path)

    def load(local_files_only: bool) -> Classifier | DualEncoder:
        from transformers import AutoConfig

        quiet_transformers()
        config = AutoConfig.from_pretrained(source, local_files_only=local_files_only, trust_remote_code=False)
        if any(str(name).endswith("ForImageClassification") for name in config.architectures or ()):
            return transformers_classifier(source, config, local_files_only)
        return dual_encoder_from(source, config, local_files_only)

    return load_local_first(source, load, "a SigLIP or CLIP model or an image classifier")
