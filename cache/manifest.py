"""What a cache claims about itself, and the three ids that follow from it and from the rows.

Never opens a file and never looks into an identity beyond `tasks` and `view_columns`.
Run: `softlabel cache info FILE.h5`.

Legend: N samples, R rows.
"""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cache.errors import CacheNewer, ManifestError

FORMAT = 1
SKIPPED = "skipped"
"""The field of the provenance that lists samples left out: [{"key": hex, "reason": text}, ...]."""
SKIPPED_FILES = "skipped_files"
"""The field of the provenance that counts files left out that have no bytes to be known by: {reason: number}."""
MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 16
MAX_INTEGER = 2**53 - 1
MAX_TASK_NAME_BYTES = 200
MAX_VALUES = 1_000_000
"""Numbers, texts, lists and objects: each takes up to 64 bytes of memory for the 3 of `[],`."""
MAX_DIFFERENCES = 50
_MAX_PATH = 200

# A JSON string without escaped quotes, or one that never ends: a hostile text costs linear time and no stack.
_STRING = re.compile(r'"[^"]*(?:"|\Z)')
_BRACKET = re.compile(r"[\[\]{}]")


@dataclass(frozen=True)
class Manifest:
    """Identity (decides `recipe_id`) and provenance (decides nothing); both are plain JSON objects, copied in.

    `identity["tasks"]` is a list of {"name", "classes"}, in the order of `logits/<i>`; `identity["view_columns"]` names
    the columns of `rows/params`. An identity holds no JSON float: numbers that matter are strings of `float.hex()`.
    """

    identity: dict[str, Any]
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        for name in ("identity", "provenance"):
            value = getattr(self, name)
            object.__setattr__(self, name, plain_object(value, name, floats=name == "provenance"))
        _check_tasks(self.identity)
        _check_columns(self.identity)
        raw = self.to_bytes()
        if len(raw) > MAX_BYTES:
            raise ManifestError(f"manifest: {len(raw):,} bytes, expected at most {MAX_BYTES:,}")
        _check_extent(raw.decode("ascii"))

    @cached_property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """Task name -> class names, both in stored order."""
        return {task["name"]: tuple(task["classes"]) for task in self.identity["tasks"]}

    @property
    def view_columns(self) -> tuple[str, ...]:
        """Names of the columns of `rows/params`."""
        return tuple(self.identity["view_columns"])

    @property
    def skipped(self) -> dict[str, str]:
        """Key in hex -> reason, of the samples that the build left out; the provenance is free-form and not trusted."""
        listed = self.provenance.get(SKIPPED)
        entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        return {str(entry.get("key")): str(entry.get("reason")) for entry in entries}

    @property
    def skipped_files(self) -> dict[str, int]:
        """Reason -> number, of the files without bytes that the build left out; not trusted either."""
        counted = self.provenance.get(SKIPPED_FILES)
        counts = counted.items() if isinstance(counted, dict) else ()
        return {str(reason): n for reason, n in counts if isinstance(n, int) and not isinstance(n, bool) and n > 0}

    @cached_property
    def recipe_id(self) -> str:
        """Hex sha256 of the identity as stored: which teacher, classes and views."""
        return hashlib.sha256(_canonical(self.identity)).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical strict JSON: sorted keys, no spaces, ASCII."""
        return _canonical({"format": FORMAT, "identity": self.identity, "provenance": self.provenance})

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Manifest":
        """Parse what `to_bytes` wrote; anything else, however close, is a ManifestError."""
        value = parse_strict(raw)
        check_format(value)
        if not isinstance(value, dict) or set(value) != {"format", "identity", "provenance"}:
            raise ManifestError("manifest: expected an object with exactly format, identity and provenance")
        if type(value["format"]) is not int or value["format"] != FORMAT:
            raise ManifestError(f"manifest: format {value['format']!r}, expected {FORMAT}")
        manifest = cls(identity=value["identity"], provenance=value["provenance"])
        if manifest.to_bytes() != raw:
            raise ManifestError("manifest: not in canonical form (sorted keys, no spaces, ASCII)")
        return manifest


def cache_id(recipe_id: str, keys: np.ndarray, first_row: np.ndarray, views: np.ndarray) -> str:
    """*Which question*: hex sha256 of the recipe and the sorted (key, view) pairs; names and provenance are outside.

    keys uint8 (N,16), first_row uint64 (N+1,), views uint16 (R,).
    """
    digest = hashlib.sha256(b"softlabel cache_id 1\0" + recipe_id.encode())
    for array, dtype in ((keys, "|u1"), (first_row, "<u8"), (views, "<u2")):
        digest.update(np.ascontiguousarray(array, dtype=dtype).data)
    return digest.hexdigest()


def content_id(objects: Mapping[str, tuple[np.dtype, tuple[int, ...], Iterable[bytes | memoryview]]]) -> str:
    """*Which answer*: hex sha256 over the row tables in name order; no names, no provenance.

    Object name -> its dtype, its shape, and its bytes in any number of pieces.
    """
    digest = hashlib.sha256(b"softlabel content_id 1\0")
    for name, (dtype, shape, pieces) in sorted(objects.items()):
        digest.update(object_header(name, dtype, shape))
        for piece in pieces:
            digest.update(piece)
    return digest.hexdigest()


def object_header(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The bytes `name \\0 dtype \\0 shape \\0` that precede an object's own in every hash: "rows/view", "<u2", "24"."""
    return b"".join(part.encode() + b"\0" for part in (name, dtype.str, ",".join(map(str, shape))))


def differences(identity_a: Any, identity_b: Any) -> list[str]:
    """Every field that differs, one line each: dotted path and both values, shortened. Empty when equal.

    Of more than fifty, fifty and a line that says so: a stranger's identity may have a million.
    """
    found = list(itertools.islice(_differences(identity_a, identity_b, ""), MAX_DIFFERENCES + 1))
    return [*found[:MAX_DIFFERENCES], "and more"] if len(found) > MAX_DIFFERENCES else found


def plain_object(value: Any, name: str, *, floats: bool) -> dict[str, Any]:
    """A deep copy of a mapping as JSON gives it back (tuples become lists), or ManifestError naming the bad field."""
    if not isinstance(value, dict):
        raise ManifestError(f"manifest: {name} is a {type(value).__name__}, expected an object")
    _check_value(value, name, floats=floats, depth=2)
    return json.loads(_canonical(value))


def parse_strict(raw: bytes) -> Any:
    """JSON that means one thing only: bounded before parsing, no duplicate keys, no NaN, no half surrogates."""
    if len(raw) > MAX_BYTES:
        raise ManifestError(f"manifest: {len(raw):,} bytes, expected at most {MAX_BYTES:,}")
    try:
        text = raw.decode("utf-8")
        _check_extent(text)
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_bounded_integer,
            parse_float=_finite_float,
        )
    except ManifestError:
        raise
    except ValueError as error:
        raise ManifestError(f"manifest: not strict JSON in UTF-8: {error}") from error
    _check_value(value, "", floats=True, depth=1)
    return value


def check_format(value: Any) -> None:
    """Raise CacheNewer for a parsed manifest of a later format; whatever else is wrong with it is left to others."""
    found = value.get("format") if isinstance(value, dict) else None
    if type(found) is int and found > FORMAT:
        raise CacheNewer(f"it has format {found}, this version reads format {FORMAT}: update softlabel")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def _check_extent(text: str) -> None:
    depth, outside = 0, _STRING.sub("", text.replace("\\\\", "").replace('\\"', ""))
    if sum(map(outside.count, ",[{")) > MAX_VALUES:
        raise ManifestError(f"manifest: more than {MAX_VALUES:,} values")
    for match in _BRACKET.finditer(outside):
        depth += 1 if match.group() in "[{" else -1
        if depth > MAX_DEPTH:
            raise ManifestError(f"manifest: nested deeper than {MAX_DEPTH}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = Counter(name for name, _ in pairs)
        twice = next(name for name, count in names.items() if count > 1)
        raise ManifestError(f"manifest: key {_short(twice)} stands twice in one object")
    return found


def _no_constant(text: str) -> None:
    raise ManifestError(f"manifest: {text} is not a JSON number")


def _bounded_integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
        raise ManifestError(f"manifest: integer {text[:20]} does not fit into 53 bits")
    return int(text)


def _finite_float(text: str) -> float:
    if len(text) > 40 or abs(float(text)) == float("inf"):
        raise ManifestError(f"manifest: number {text[:20]} is out of range")
    return float(text)


def _check_value(value: Any, path: str, *, floats: bool, depth: int) -> None:
    """Refuse what JSON, or another language's JSON, would not give back unchanged."""
    where = path or "(top)"
    if isinstance(value, (dict, list, tuple)):
        if depth > MAX_DEPTH:
            raise ManifestError(f"manifest: {path[:80]} is nested deeper than {MAX_DEPTH}")
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict):
                if not isinstance(name, str):
                    raise ManifestError(f"manifest: {where} has the key {name!r}, expected text")
                _check_text(name, where)
            _check_value(item, _join(path, name), floats=floats, depth=depth + 1)
    elif isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, float):
        if not floats:
            raise ManifestError(f"manifest: {where} is the float {value!r}; write it as text: {value.hex()!r}")
        if value != value or abs(value) == float("inf"):
            raise ManifestError(f"manifest: {where} is {value!r}, which is not JSON")
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise ManifestError(f"manifest: {where} is {value}, which does not fit into 53 bits")
    elif value is not None:
        raise ManifestError(f"manifest: {where} is a {type(value).__name__}, which is not JSON")


def _check_text(text: str, where: str) -> None:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ManifestError(f"manifest: {where} holds half a surrogate pair: {_short(text)}")


def _check_tasks(identity: dict[str, Any]) -> None:
    tasks = identity.get("tasks")
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, dict) for task in tasks):
        raise ManifestError(
            'manifest: identity.tasks must be a list like [{"name": "class", "classes": ["mel", "nv"]}]'
        )
    for index, task in enumerate(tasks):
        name = task.get("name")
        if not isinstance(name, str) or not 1 <= len(name.encode()) <= MAX_TASK_NAME_BYTES:
            raise ManifestError(
                f"manifest: identity.tasks[{index}].name is {_short(name)}, expected 1-200 bytes of text"
            )
        _check_names(task.get("classes"), f"identity.tasks[{index}].classes", at_least=1)
    _check_names([task["name"] for task in tasks], "the task names", at_least=1)


def _check_columns(identity: dict[str, Any]) -> None:
    _check_names(identity.get("view_columns"), "identity.view_columns", at_least=0)


def _check_names(names: Any, where: str, *, at_least: int) -> None:
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ManifestError(f"manifest: {where} is {_short(names)}, expected a list of names")
    if len(names) < at_least or len(set(names)) < len(names):
        raise ManifestError(f"manifest: {where} is empty or names something twice: {_short(names)}")


def _join(path: str, name: object) -> str:
    # Cut, or a long key with many entries below it would be copied for each of them.
    path, name = path[-_MAX_PATH:], name[:_MAX_PATH] if isinstance(name, str) else name
    if isinstance(name, int):
        return f"{path}[{name}]"
    return f"{path}.{name}" if path else str(name)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _differences(a: Any, b: Any, path: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted(set(a) | set(b)):
            if name not in a or name not in b:
                left, right = (_short(side[name]) if name in side else "(absent)" for side in (a, b))
                yield f"{_join(path, name)}: {left} against {right}"
            else:
                yield from _differences(a[name], b[name], _join(path, name))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _differences(left, right, _join(path, index))
    elif isinstance(a, list) and isinstance(b, list):
        yield f"{path}: {len(a)} entries {_short(a)} against {len(b)} entries {_short(b)}"
    elif type(a) is not type(b) or a != b:
        yield f"{path}: {_short(a)} against {_short(b)}"
