"""What a user says of a teacher that does not say it itself: a small YAML file. Run: cache build --teacher-config FILE

Never loads a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import SettingError, did_you_mean, is_encodable


@dataclass(frozen=True, kw_only=True)
class TeacherDescription:
    """Each field is None where the model's own word, or the default of its kind, holds."""

    classes: tuple[str, ...] | None = None
    """Class names in the order of the outputs."""
    size_px: int | None = None
    """Side of the square that the teacher sees."""
    mean: tuple[float, ...] | None = None
    """Of each channel, with pixels in [0, 1]."""
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.classes is not None and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            raise SettingError(f"classes must be two names or more, each once, got {', '.join(self.classes)}")
        if self.size_px is not None and not 8 <= self.size_px <= 4096:
            raise SettingError(f"size_px must be in 8..4096, got {self.size_px}")
        if wrong := [name for name in self.classes or () if not name.strip() or not is_encodable(name)]:
            raise SettingError(f"a class needs a name that is text, got {wrong[0]!r}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or (name == "std" and min(values) <= 0)):
                raise SettingError(f"{name} must be three numbers{' over 0' * (name == 'std')}, got {values}")
            if values is not None and not all(abs(value) <= 10 for value in values):  # nor not-a-number
                raise SettingError(f"{name} is of pixels in [0, 1], not of levels in 0..255: got {values}")


def read_description(path: Path) -> TeacherDescription:
    """The YAML file of --teacher-config; SettingError names what is wrong in it."""
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise SettingError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    known = [field.name for field in fields(TeacherDescription)]
    if not isinstance(loaded, Mapping):
        raise SettingError(f"{path} must be a mapping with {', '.join(known)}")
    for name in loaded:
        if name not in known:
            raise SettingError(f"{path}: unknown key '{name}'{did_you_mean(name, known)}; known: {', '.join(known)}")
    try:
        return TeacherDescription(**{name: _READ[name](value) for name, value in loaded.items()})
    except (ValueError, TypeError) as error:
        raise SettingError(f"{path}: {error}") from error


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("classes must be a list of names")
    return tuple(value)


def _numbers(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of three numbers, got {value}")
    return tuple(float(number) for number in value)


_READ: dict[str, Callable[[Any], Any]] = {"classes": _names, "size_px": int, "mean": _numbers, "std": _numbers}
