"""The options of `cache build` with which a cache gets more rows of its recipe, as far as it says them itself.

What a stranger's file says is quoted, or left out. Run: softlabel cache build DATA -o t.h5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cache import CacheReader
from pipeline.errors import SettingError
from pipeline.process import resolve_device
from pipeline.recipe import BuildConfig
from pipeline.repair.remedies import EMBEDDING, takes_prompts
from pipeline.tasks import Tasks
from pipeline.teachers.prompts import PromptSource, stored_prompts
from pipeline.teachers.teacher import PRECISIONS, resolve_precision

_MAX_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Rebuilding:
    """What the command line says, and what the user has to add."""

    options: tuple[str, ...]
    """Those that are not the defaults of this machine; the teacher wherever it is known."""
    user_adds: str
    """ " with the prompts that it was built with", or empty where the options are all."""


def rebuilding(reader: CacheReader) -> Rebuilding:
    """Those of a cache, or of a union of several."""
    identity, default = reader.manifest.identity, BuildConfig()
    options = list[str]()
    adds = ["the settings"]
    if (teacher := _teacher_name(reader)) and isinstance(identity.get("teacher"), dict):
        options += ["--teacher", teacher]
        adds = [f"your own path to {teacher}"] if _is_a_file(teacher) else []
        adds += ["the prompts"] if _has_own_prompts(reader) else []
    if (n_views := int(reader.view.max(initial=0)) + 1) != default.views:
        options += ["--views", str(n_views)]
    views = identity.get("views")
    seed = views.get("seed") if isinstance(views, dict) else None
    if isinstance(seed, str) and seed.isdecimal() and seed != str(default.seed):
        options += ["--seed", seed]
    precision = identity.get("precision")
    if precision in PRECISIONS and precision != resolve_precision(default.precision, resolve_device(default.device)):
        options += ["--precision", str(precision)]
    if takes_prompts(reader) and EMBEDDING not in reader.features:
        options.append("--no-embedding")
    return Rebuilding(options=tuple(options), user_adds=_in_words(adds, len(reader.paths)))


def _in_words(adds: list[str], n_files: int) -> str:
    """ "the prompts" and "the settings" are those of the build."""
    built = "they were built with" if n_files > 1 else "it was built with"
    parts = [one if one.startswith("your") else f"{one} {built}" for one in adds]
    return f" with {' and '.join(parts)}" if parts else ""


def _teacher_name(reader: CacheReader) -> str:
    """As the provenance has it: a path's last part alone. Empty where it says none that could be typed."""
    named = reader.manifest.provenance.get("teacher")
    is_name = isinstance(named, str) and named.isprintable() and 0 < len(named) <= _MAX_NAME
    return named if isinstance(named, str) and is_name and not named.startswith("-") else ""


def _is_a_file(teacher: str) -> bool:
    """Whether it is the name of a folder or file, and of no hub's or library's model."""
    return "/" not in teacher and teacher.count(":") != 1


def _has_own_prompts(reader: CacheReader) -> bool:
    """Whether the prompts are others than those that a build makes of the class names."""
    stored: Mapping[str, Any] = stored_prompts(reader.manifest.identity)
    try:
        return bool(stored) and stored != PromptSource().texts_of(Tasks(reader.tasks))
    except SettingError:
        return True
