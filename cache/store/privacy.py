"""What of a cache goes out with a push, and what stays here: field by field; a field that nobody knows stays.

Never decides whether to push (the user does). Run: `softlabel cache push t.h5 URL`
"""

import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from cache.manifest import SKIPPED, SKIPPED_FILES, Manifest
from cache.reader import CacheReader
from cache.store.entry import MAX_NAME

_Cleaned = Callable[[Any], Any]
"""Gives a value that may go out, or None."""
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}")
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d{1,3})?")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(\+\d\d:\d\d|Z)?")
_HEX = re.compile(r"[0-9a-f]{8,64}")
_REASON = re.compile(r"[A-Za-z0-9 ,;()'%-]{1,200}")
"""Without the signs of paths, addresses and endings of names."""
_NO_REASON = "left out"


def public(manifest: Manifest) -> Manifest:
    """The same identity, and of the provenance what may go out; the same for the same cache, whenever it is made."""
    return Manifest(manifest.identity, _fields(_PUBLIC)(manifest.provenance) or {})


def teacher_name(manifest: Manifest) -> str:
    """What the teacher is called, without a path; empty where nobody said it."""
    return _name(manifest.provenance.get("teacher")) or ""


def what_goes_out(reader: CacheReader, *, with_names: bool) -> list[str]:
    """For people: a line of what goes out and one of what stays here."""
    rows, manifest = reader.n_rows, reader.manifest
    counts = " and ".join(f"{len(classes):,}" for classes in reader.tasks.values())
    out = [
        f"keys of {reader.n_samples:,} images", f"{rows:,} views' drawn numbers",
        "witness (12 numbers of each view)", f"logits of {counts} classes",
    ]  # fmt: skip
    for name, shape in reader.features.items():
        n_numbers = 1
        for length in shape:
            n_numbers *= length
        what = "embeddings" if name == "embedding" else name
        out.append(f"{what} ({n_numbers:,} number{'s' if n_numbers > 1 else ''} of each view)")
    out += _words_of_identity(manifest)
    if name := teacher_name(manifest):
        out.append(f"teacher name ({name})")
    kept, dropped = public(manifest).provenance, manifest.provenance
    lost = {name: _lost(name, dropped[name], kept.get(name)) for name in dropped if name != "teacher"}
    if said := [f"{name} (in part)" if lost[name] else name for name in kept if name != "teacher"]:
        out.append(f"of its making: {', '.join(said)}")
    stays: list[str] = []
    if reader.names is not None:
        (out if with_names else stays).append("names of files")
    stays += [one for parts in lost.values() for one in parts]
    return [f"goes out: {', '.join(out)}", f"stays here: {', '.join(stays) or 'nothing that it holds'}"]


def _lost(name: str, value: Any, kept: Any) -> list[str]:
    """What of a field stays here: its name, or those of its parts."""
    if kept == value:
        return []
    if kept is None:
        return [name]
    if not isinstance(value, Mapping) or not isinstance(kept, Mapping) or not set(kept) <= set(value):
        return [f"{name} (in part)"]
    return [part for inner in value for part in _lost(f"{name}.{inner}", value[inner], kept.get(inner))]


def _words_of_identity(manifest: Manifest) -> list[str]:
    """What an identity says in words that people chose; it decides the recipe_id, and goes out as it is."""
    teacher = manifest.identity.get("teacher")
    described = teacher if isinstance(teacher, Mapping) else {}
    found = ["prompts"] if "prompts" in described else []
    found.append("class names")
    if len(manifest.tasks) > 1:
        found.append("task names")
    if "outputs" in described:
        found.append("names of the teacher's outputs")
    probe = described.get("probe")
    if isinstance(probe, Mapping) and "cross_fit" in probe:
        found.append("the name of the column of groups")
    return found


def _name(value: Any) -> str | None:
    """The last part of what may be a path."""
    if not isinstance(value, str) or not value:
        return None
    if "\\" in value or PurePosixPath(value).is_absolute() or value.startswith((".", "~")):
        value = PureWindowsPath(value).name
    return value[:MAX_NAME] or None


def _matching(pattern: re.Pattern[str]) -> _Cleaned:
    return lambda value: value if isinstance(value, str) and pattern.fullmatch(value) else None


def _number(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _numbers(value: Any) -> Any:
    if isinstance(value, list) and all(_number(one) is not None for one in value):
        return value
    return _number(value)


def _fields(known: Mapping[str, _Cleaned]) -> _Cleaned:
    """An object with these fields of it alone."""

    def clean(value: Any) -> Any:
        found = {} if not isinstance(value, dict) else {
            name: cleaned for name, of in known.items() if name in value and (cleaned := of(value[name])) is not None
        }  # fmt: skip
        return found or None

    return clean


def _skipped(value: Any) -> Any:
    """Keys of images left out; a reason that might hold a path is left out itself."""
    entries = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
    return [
        {"key": entry["key"], "reason": _reason(entry.get("reason"))}
        for entry in entries
        if _matching(_HEX)(entry.get("key")) is not None
    ] or None


def _skipped_files(value: Any) -> Any:
    counts: dict[str, int] = {}
    for reason, n in value.items() if isinstance(value, dict) else ():
        if isinstance(n, int) and not isinstance(n, bool) and n > 0:
            counts[_reason(reason)] = counts.get(_reason(reason), 0) + n
    return counts or None


def _reason(value: Any) -> str:
    return value if isinstance(value, str) and _REASON.fullmatch(value) else _NO_REASON


_VERSIONS = _fields(
    dict.fromkeys(("torch", "torchvision", "transformers", "numpy", "scipy", "scikit-learn", "timm"), _matching(_WORD))
)
_DERIVED = {
    "parent_cache_id": _matching(_HEX), "n_train": _number, "c": _numbers, "temperature": _numbers, "wall_s": _number,
    "versions": _VERSIONS,
}  # fmt: skip
_PUBLIC: Mapping[str, _Cleaned] = {
    "teacher": _name,
    "teacher_parameters": _number,
    "task": _matching(_WORD),
    "created": _matching(_DATE),
    "versions": _VERSIONS,
    "compute": _fields({"rows_per_forward": _number, "device": _matching(_DEVICE), "torch": _matching(_WORD)}),
    "first_batch_against_fp32": _fields(dict.fromkeys(("n_rows", "worst_logit", "argmax_agreement"), _number)),
    "pixels_against_processor": _fields(dict.fromkeys(("n_images", "mean_levels", "worst_levels"), _number)),
    "recomputed_in_fp32": _number,
    "raised_probabilities": _number,
    "merged_from": _number,
    "derived": _fields(_DERIVED),
    SKIPPED: _skipped,
    SKIPPED_FILES: _skipped_files,
}
"""Field of a provenance -> what of it may go out. Left out: command, user, host, machine, scores (a file's name)."""
