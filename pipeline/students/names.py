"""What a student is called, and where its code then comes from: torchvision, timm or a file of the user's.

Never builds or imports a model. `shufflenet_v2_x1_0`, `timm:resnet10t` (or `resnet10t`, as torchvision has no model of
this name), `my_model.py:build`. Run: softlabel train DATA t.h5 -o RUN --student my_model.py:build
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torchvision

from pipeline.errors import SettingError, did_you_mean

DEFAULT_STUDENT = "shufflenet_v2_x1_0"
_TIMM = "timm:"
_FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<function>\w*))?", re.IGNORECASE)


@dataclass(frozen=True)
class StudentSource:
    """Where a student's code comes from."""

    kind: str
    """`torchvision`, `timm` or `file`."""
    name: str
    """What the card says; of a file without its folder, which is nobody else's business."""
    model: str
    """The library's name of the architecture, or of a file its function."""
    path: Path | None = None
    """The user's file."""


def find_source(name: str) -> StudentSource:
    """The source of a name; SettingError where no library has it. A file is not looked for, let alone run."""
    if (found := _FILE.fullmatch(name)) is not None:
        path, function = Path(found["path"]), found["function"]
        if not function:
            raise SettingError(f"which function of {path} builds the student? Name it: --student {path}:build")
        return StudentSource("file", f"{path.name}:{function}", function, path)
    if name in student_names():
        return StudentSource("torchvision", name, name)
    model = name.removeprefix(_TIMM)
    timm = _timm_if_installed()
    if timm is None and name.startswith(_TIMM):
        raise SettingError("timm is not installed: pip install '.[timm]'")
    if timm is not None and timm.is_model(model.split(".")[0]):
        return StudentSource("timm", _TIMM + model, model)
    raise SettingError(_unknown(name, model, timm))


def _unknown(name: str, model: str, timm: ModuleType | None) -> str:
    if name.startswith(_TIMM) and timm is not None:
        return f"no timm model is called '{model}'{did_you_mean(model, timm.list_models())}"
    libraries = "torchvision or timm" if timm is not None else "torchvision"
    near = did_you_mean(name, student_names()) or (did_you_mean(name, timm.list_models()) if timm is not None else "")
    missing = "" if timm is not None else " timm has more, but is not installed: pip install '.[timm]'."
    return (
        f"no {libraries} classifier is called '{name}'{near or '.'}{missing} "
        f'All names: python -c "import torchvision; print(torchvision.models.list_models())"; '
        "your own model: --student my_model.py:build"
    )


def student_names() -> list[str]:
    """Every classifier of torchvision."""
    return sorted(torchvision.models.list_models(module=torchvision.models))


def require_timm() -> ModuleType:
    """timm; SettingError names the extra that installs it."""
    timm = _timm_if_installed()
    if timm is None:
        raise SettingError("timm is not installed: pip install '.[timm]'")
    return timm


def _timm_if_installed() -> ModuleType | None:
    try:
        import timm
    except ImportError:
        return None
    module: ModuleType = timm
    return module
