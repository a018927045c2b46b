"""The settings of stage one, and what follows from them: the loaded teacher and what the cache will claim of itself.

Never computes a row. Changing what stands in the identity makes another recipe (`cache.manifest`).
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cache import Manifest
from cache.rows import FeatureShapes
from data.decode import DECODER_VERSION
from data.samples import FOLDER_TASK, SampleSet
from data.views import COLUMNS, ViewPolicy
from pipeline.errors import SettingError, TeacherError, did_you_mean, is_encodable
from pipeline.process import MAX_SEED, resolve_device
from pipeline.targets import SEEN
from pipeline.tasks import ASKED_AS, Tasks
from pipeline.teachers.description import TeacherDescription, read_description
from pipeline.teachers.hub import DEFAULT_TEACHER
from pipeline.teachers.loading import name_without_path, open_teacher
from pipeline.teachers.prompts import PromptSource, stored_prompts
from pipeline.teachers.teacher import PRECISIONS, Teacher, TeacherFacts, resolve_precision

log = logging.getLogger(__name__)

IDENTITY_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What a cache is to hold and how it is computed."""

    teacher: str = DEFAULT_TEACHER
    """A folder, file or name of a teacher of any kind (`pipeline.teachers.loading`)."""
    teacher_config: Path | None = None
    """YAML that describes a teacher which does not describe itself: classes, size_px, mean, std."""
    views: int = 8
    """Views of each train image, the clean one included; 1 to 65,535."""
    seed: int = 0
    """Seed of the views; part of the cache's identity."""
    prompts: Path | None = None
    """YAML file, class -> prompt or list of prompts; None makes prompts of the class names."""
    templates: tuple[str, ...] = ()
    """Sentences around each prompt, such as "a dermatoscopic image of {}"."""
    precision: str = "auto"
    """auto, fp32, fp16 or bf16; part of the identity, once resolved."""
    batch_size: int | None = None
    """Views in a forward pass, constant for the whole build; None is 64 on a GPU and 16 on a CPU."""
    device: str = "auto"
    workers: int | None = None
    """Processes that decode and render; None is none beside a CPU teacher, else all cores but one."""
    policy: ViewPolicy = ViewPolicy()
    embedding: bool = True
    """Store the image embeddings (2.3 kB a view with MedSigLIP) beside the logits, where the teacher has any."""
    names: bool = True
    """Store relative paths, for people."""

    def __post_init__(self) -> None:
        if not 1 <= self.views <= 65_535:
            raise SettingError(f"views must be in 1..65535, got {self.views}")
        if not 0 <= self.seed <= MAX_SEED:
            raise SettingError(f"seed must be in 0..2**63-1, got {self.seed}")
        if self.precision not in PRECISIONS:
            raise SettingError(f"precision must be one of {', '.join(PRECISIONS)}, got '{self.precision}'")
        if self.batch_size is not None and self.batch_size < 1:
            raise SettingError(f"batch_size must be positive, got {self.batch_size}")
        if self.workers is not None and self.workers < 0:
            raise SettingError(f"workers must not be negative, got {self.workers}")


def prepare_teacher(images: SampleSet, config: BuildConfig) -> Teacher:
    """Load the teacher, print its prompts, and refuse one whose answers could be of no use for these images."""
    teacher = load_teacher(images, config)
    introduce(teacher.facts, images, config)
    return teacher


def load_teacher(images: SampleSet, config: BuildConfig) -> Teacher:
    """The teacher, ready for these images; TeacherError or SettingError where there is none."""
    tasks = Tasks(images.classes)
    _check_names(tasks)
    device = resolve_device(config.device)
    description = read_description(config.teacher_config) if config.teacher_config else TeacherDescription()
    return open_teacher(
        config.teacher, tasks, PromptSource(file=config.prompts, templates=config.templates),
        description=description, device=device, precision=resolve_precision(config.precision, device),
    )  # fmt: skip


def question(images: SampleSet, config: BuildConfig) -> dict[str, Any]:
    """All that a teacher's facts depend on beside its own files, in plain values."""
    asked = {"prompts": config.prompts, "teacher_config": config.teacher_config}
    return {
        "tasks": [[task, list(names)] for task, names in Tasks(images.classes).items()],
        "templates": list(config.templates),
        "identity_version": IDENTITY_VERSION,
        **{name: path.read_bytes().hex() for name, path in asked.items() if path is not None and path.is_file()},
    }


def introduce(facts: TeacherFacts, images: SampleSet, config: BuildConfig) -> None:
    """Print a teacher's prompts; TeacherError where its answers could be of no use for these images."""
    for name, texts in stored_prompts({"teacher": facts.identity}).items():
        log.info("prompt  %s: %s", name, " | ".join(texts))
    tasks = Tasks(images.classes)
    if unknown := [name for name in tasks.outputs if name not in facts.classes]:
        found = f"the teacher does not know {len(unknown)} of the {len(tasks.outputs)} classes of the images (first: "
        found += f"'{unknown[0]}'{did_you_mean(unknown[0], facts.classes)}); it knows {len(facts.classes):,}: "
        found += ", ".join(facts.classes[:8]) + (", ..." if len(facts.classes) > 8 else "")
        if facts.embedding_size is None or not config.embedding:
            raise TeacherError(f"{found}. Rename its classes by --teacher-config FILE, or rename the folders")
        log.warning("%s. Its logits cannot teach; its embeddings can: softlabel cache probe", found)


def _check_names(tasks: Tasks) -> None:
    """The names of folders can be bytes that are no text; neither prompts nor a manifest can hold those."""
    if wrong := [name for name in (*tasks, *tasks.outputs) if not is_encodable(name)]:
        raise SettingError(f"these classes have names that are not UTF-8: {', '.join(wrong)}; rename their folders")


def stored_tasks(images: SampleSet, known: Sequence[str]) -> tuple[Tasks, dict[str, list[int]]]:
    """(the tasks that the cache will know, task -> its columns of logits that are of the classes `known`).

    A single task has all classes that the teacher knows. So has the cache of a teacher that does not know the tasks.
    """
    tasks = Tasks(images.classes)
    if len(tasks) == 1 or not set(tasks.outputs) <= set(known):
        return Tasks({FOLDER_TASK: known}), {FOLDER_TASK: list(range(len(known)))}
    column = {name: number for number, name in enumerate(known)}
    return tasks, {task: [column[name] for name in tasks.outputs[where]] for task, where in tasks.columns.items()}


def feature_shapes(facts: TeacherFacts, config: BuildConfig) -> FeatureShapes:
    """What is stored beside the logits of a row: feature name -> shape."""
    shapes: FeatureShapes = {}
    if config.embedding and facts.embedding_size is not None:
        shapes["embedding"] = (facts.embedding_size,)
    if facts.is_fitted:
        shapes[SEEN] = ()
    return shapes


def asked_as(images: SampleSet) -> dict[str, Any]:
    """The part of a provenance that says which column a single task was, where it was one."""
    task = Tasks(images.classes).only if len(images.classes) == 1 else FOLDER_TASK
    return {} if task == FOLDER_TASK else {ASKED_AS: task}


def manifest_of(images: SampleSet, facts: TeacherFacts, config: BuildConfig) -> Manifest:
    """All of it but what is known once rows are computed."""
    tasks, _ = stored_tasks(images, facts.classes)
    identity = {
        "identity_version": IDENTITY_VERSION,
        "tasks": [{"name": task, "classes": list(names)} for task, names in tasks.items()],
        "teacher": facts.identity,
        "preprocessing": facts.preprocessing,
        "precision": resolve_precision(config.precision, resolve_device(config.device)),
        **view_identity(config.policy, config.seed),
    }
    provenance = {
        "teacher": name_without_path(config.teacher),
        "teacher_parameters": facts.n_parameters,
        **asked_as(images),
        **origin("torch", "torchvision", "transformers"),
    }
    return Manifest(identity, provenance)


def view_identity(policy: ViewPolicy, seed: int) -> dict[str, Any]:
    """The part of an identity that says which pixels a row is about."""
    return {
        "views": {**policy.to_identity(), "seed": str(seed)},
        "view_columns": list(COLUMNS),
        "decoder_version": DECODER_VERSION,
    }


def origin(*packages: str) -> dict[str, Any]:
    """The part of a provenance that says when, on what machine and with what the rows were made."""
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
