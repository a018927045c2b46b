"""Class names -> the texts that a zero-shot teacher compares images with.

MedSigLIP's own evaluation prompts dermatology with the bare condition names (MedGemma report, section 6), so the
default prompt is the class name, cleaned of the numbering and counts that folder names carry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import SettingError, did_you_mean, is_encodable
from pipeline.tasks import Tasks, tasks_of

# The diagnosis codes of HAM10000, the ISIC challenges and PAD-UFES-20.
DIAGNOSIS_CODES = {
    "ack": "actinic keratosis",
    "ak": "actinic keratosis",
    "akiec": "actinic keratosis or intraepithelial carcinoma",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nev": "melanocytic nevus",
    "nv": "melanocytic nevus",
    "scc": "squamous cell carcinoma",
    "sek": "seborrheic keratosis",
    "vasc": "vascular lesion",
}
Prompts = Mapping[str, tuple[str, ...]]
"""Class name -> its texts; several count as one (normalise, mean, normalise)."""

_NUMBERING = re.compile(r"^\s*\d+\s*[.)_-]\s*")
_COUNT = re.compile(r"[\s_-]+\d[\d.,]*k?\s*$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class PromptSource:
    """Where a user's prompts come from."""

    file: Path | None = None
    """YAML, class -> prompt or list of prompts; None makes one prompt of each class name."""
    templates: tuple[str, ...] = ()
    """Sentences around each prompt, such as "a dermatoscopic image of {}"; several multiply the prompts."""

    def __post_init__(self) -> None:
        for template in self.templates:
            if not is_encodable(template):
                raise SettingError(f"a template must be UTF-8, got {template!r}")
            if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
                raise SettingError(
                    f"a template has exactly one {{}}, where the prompt goes, got '{template}'; "
                    "such as 'a dermatoscopic image of {}'"
                )

    @property
    def is_given(self) -> bool:
        """Whether the user asked for anything."""
        return self.file is not None or bool(self.templates)

    def texts_of(self, classes: Tasks | Sequence[str]) -> Prompts:
        """The texts of each class, in the order of `classes`; SettingError for what the file or a name lacks.

        Those of several tasks go by `task: class`.
        """
        tasks = tasks_of(classes)
        prompts = read_prompts(self.file, tasks) if self.file else _prompts_of_tasks(tasks)
        templates = self.templates or ("{}",)
        return {
            name: tuple(template.replace("{}", text) for text in texts for template in templates)
            for name, texts in prompts.items()
        }


def clean_class_name(name: str) -> str:
    """'2. Melanoma 15.75k' -> 'melanoma'; 'Benign_Keratosis' -> 'benign keratosis'."""
    bare = _COUNT.sub("", _NUMBERING.sub("", name))
    return " ".join(re.sub(r"[_\s]+", " ", bare).split()).lower() or name


def default_prompts(classes: Sequence[str]) -> Prompts:
    """One prompt a class, from its name or diagnosis code; SettingError lists the names that look like other codes."""
    cleaned = {name: DIAGNOSIS_CODES.get(clean_class_name(name), clean_class_name(name)) for name in classes}
    codes = [name for name, prompt in cleaned.items() if _looks_like_a_code(prompt, name)]
    if codes:
        raise SettingError(
            f"these class names look like codes, which no text tower knows: {', '.join(codes)}. "
            "Say what they mean: --prompts FILE, a YAML file with a line 'class: what the image shows' for each class"
        )
    repeated = sorted({prompt for prompt in cleaned.values() if list(cleaned.values()).count(prompt) > 1})
    if repeated:
        raise SettingError(f"several classes would get the same prompt ({', '.join(repeated)}): pass --prompts FILE")
    return {name: (prompt,) for name, prompt in cleaned.items()}


def _prompts_of_tasks(tasks: Tasks) -> Prompts:
    names = [name for classes in tasks.values() for name in classes]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise SettingError(
            f"several tasks have a class {', '.join(repeated)}, and would get the same prompt for it: pass --prompts "
            "FILE, YAML with a line 'class: prompt' for each class under each 'task:'"
        )
    try:
        prompts = default_prompts(names)
    except SettingError as error:
        under = f", those of each task under its name: {', '.join(tasks)}" if len(tasks) > 1 else ""
        raise SettingError(f"{error}{under}") from error
    return {output: prompts[name] for output, name in zip(tasks.outputs, names, strict=True)}


def _looks_like_a_code(prompt: str, name: str) -> bool:
    """One short or vowelless word, one with digits, or an abbreviation such as NEV that is in no table."""
    if not prompt.isascii() or " " in prompt:
        return False
    abbreviated = name.strip().isupper() and len(prompt) <= 5 and prompt == clean_class_name(name)
    return len(prompt) <= 2 or abbreviated or any(c.isdigit() for c in prompt) or not any(c in "aeiouy" for c in prompt)


def stored_prompts(identity: Mapping[str, Any]) -> Prompts:
    """The prompts in the identity of a cache; empty where its producer describes the teacher in words of its own."""
    teacher = identity.get("teacher")
    prompts = teacher.get("prompts") if isinstance(teacher, dict) else None
    if not isinstance(prompts, dict) or not all(map(_are_texts, prompts.values())):
        return {}
    return {name: tuple(texts) for name, texts in prompts.items()}


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def read_prompts(path: Path, classes: Tasks | Sequence[str]) -> Prompts:
    """A YAML mapping, class -> prompt or list of prompts; SettingError lists every class that is missing or unknown.

    With several tasks one such mapping for each of them: task -> class -> prompts.
    """
    tasks = tasks_of(classes)
    try:
        # BaseLoader: every scalar is text, so a class named "no" or "1.0" stays what it is.
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise SettingError(f"cannot read the prompts in {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, dict):
        raise SettingError(f"{path} must be a mapping, class -> prompt or list of prompts")
    if len(tasks) > 1:
        loaded = _flat(loaded, tasks, path)
    classes = tasks.outputs
    problems = [f"no prompt for '{name}'" for name in classes if name not in loaded]
    problems += [f"unknown class '{name}'{did_you_mean(name, classes)}" for name in loaded if name not in classes]
    prompts = {name: tuple([texts] if isinstance(texts, str) else texts) for name, texts in loaded.items()}
    problems += [
        f"'{name}' needs a text or a list of texts"
        for name, texts in prompts.items()
        if isinstance(loaded[name], dict)
        or not texts
        or not all(isinstance(text, str) and text.strip() and is_encodable(text) for text in texts)
    ]
    if problems:
        raise SettingError(f"{path}: {'; '.join(problems)}")
    return {name: prompts[name] for name in classes}


def _flat(loaded: Mapping[str, Any], tasks: Tasks, path: Path) -> dict[str, Any]:
    """task -> class -> prompts as `task: class` -> prompts."""
    if unknown := [task for task in loaded if task not in tasks or not isinstance(loaded[task], dict)]:
        raise SettingError(
            f"{path}: expected the tasks {', '.join(tasks)}, each with its classes and their prompts; found "
            f"'{unknown[0]}'{did_you_mean(unknown[0], list(tasks))}"
        )
    return {f"{task}: {name}": texts for task, classes in loaded.items() for name, texts in classes.items()}
