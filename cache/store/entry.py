"""The small manifest of one object in a store: what it is and where its small tables lie, read without trust.

Never opens a cache file. Written once, as strict JSON; every field of a stranger's is checked for type and range.
Run: `softlabel cache list URL --json`

Legend: N samples, R rows = (sample, view).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from cache.errors import CacheNewer, ManifestError, printable
from cache.layout import FEATURE_NAME, KEY_BYTES
from cache.manifest import MAX_INTEGER, MAX_TASK_NAME_BYTES, parse_strict

FORMAT = 1
MAX_BYTES = 2 << 20
"""Some hundred bytes a class, for more classes than any teacher has."""
TABLES = ("samples/key", "samples/first_row", "rows/view")
MAX_NAME = 200
_MAX_CLASS = 1000
_MAX_VIEWS = 65_536
_HEX = re.compile(r"[0-9a-f]{64}")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(\+\d\d:\d\d|Z)?")
HEAD = re.compile(r"([a-z][a-z0-9_-]{0,19})?")
SEED = re.compile(r"(0|[1-9]\d{0,18})?", re.ASCII)
PRECISION = re.compile(r"[A-Za-z0-9_.+-]{1,20}")


@dataclass(frozen=True)
class TablePlace:
    """Where one of the small tables lies in the data object, and the sha256 of its bytes."""

    offset: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a store says of one object; `data_name` and `name` are paths below the store's root."""

    recipe_id: str
    cache_id: str
    content_id: str
    sha256: str
    """Of the data object's bytes, from the first to the last."""
    n_bytes: int
    teacher: str
    """Its name, without a path."""
    tasks: Mapping[str, tuple[str, ...]]
    n_samples: int
    n_rows: int
    views: tuple[int, int]
    """Fewest and most views of a sample."""
    features: Mapping[str, tuple[int, ...]]
    precision: str
    has_names: bool
    """Whether the names of the images' files are in it."""
    head: str
    """What gave its answers: zero_shot, rehead, probe or imported; empty where it does not say."""
    seed: str
    """Of its views, in decimal digits; empty where it does not say."""
    created: str
    """When the cache was built; empty where it does not say."""
    pushed: str
    tables: Mapping[str, TablePlace]

    @property
    def name(self) -> str:
        """Of this manifest."""
        return f"{self.recipe_id}/{self.content_id}.json"

    @property
    def data_name(self) -> str:
        """Of the data: the sha256 is in it, as the same rows may stand in files whose provenance differs."""
        return f"{self.recipe_id}/{self.content_id}.{self.sha256}.h5"

    @property
    def n_classes(self) -> int:
        """Of all tasks."""
        return sum(map(len, self.tasks.values()))

    def to_dict(self) -> dict[str, Any]:
        """As plain values, as in the manifest."""
        found = asdict(self)
        tasks = [{"name": task, "classes": list(classes)} for task, classes in self.tasks.items()]
        return {"format": FORMAT, **found, "tasks": tasks}

    def to_bytes(self) -> bytes:
        """The manifest's file; ManifestError for one that nobody would read."""
        raw = json.dumps(self.to_dict(), sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode()
        if len(raw) > MAX_BYTES:
            raise ManifestError(f"a manifest of {len(raw):,} bytes for a store, which takes {MAX_BYTES:,}")
        return raw

    @classmethod
    def from_bytes(cls, raw: bytes, recipe_id: str, content_id: str) -> "Entry":
        """Parse the file that stands under this name; ManifestError in one line, CacheNewer for a later format."""
        if len(raw) > MAX_BYTES:
            _refuse(f"{len(raw):,} bytes, expected at most {MAX_BYTES:,}")
        value = parse_strict(raw)
        if not isinstance(value, dict):
            _refuse("no JSON object")
        if type(value.get("format")) is int and value["format"] > FORMAT:
            raise CacheNewer(f"format {value['format']}, this version reads {FORMAT}: update softlabel")
        expected = {"format", *cls.__dataclass_fields__}
        if set(value) != expected or value["format"] != FORMAT or type(value["format"]) is not int:
            odd = sorted(set(value) ^ expected)
            _refuse(f"fields missing or not expected: {', '.join(odd)[:80] or 'format'}")
        entry = _entry(value)
        if (entry.recipe_id, entry.content_id) != (recipe_id, content_id):
            _refuse("its ids are not those of its name")
        return entry


def _entry(value: dict[str, Any]) -> Entry:
    n_samples, n_rows = _integer(value, "n_samples"), _integer(value, "n_rows")
    n_bytes = _integer(value, "n_bytes")
    views = value["views"]
    if not isinstance(views, list) or len(views) != 2 or not all(_is_integer(n, 1, _MAX_VIEWS) for n in views):
        _refuse("views: expected the fewest and the most of a sample")
    fewest, most = views
    if not (fewest <= most and fewest * n_samples <= n_rows <= most * n_samples):
        _refuse(f"{n_rows} rows of {n_samples} samples with {fewest} to {most} views each")
    if not isinstance(value["has_names"], bool):
        _refuse("has_names: expected true or false")
    return Entry(
        **{name: _hex(value[name], name) for name in ("recipe_id", "cache_id", "content_id", "sha256")},
        n_bytes=n_bytes,
        teacher=_text(value["teacher"], "teacher", MAX_NAME),
        tasks=_tasks(value["tasks"]),
        n_samples=n_samples,
        n_rows=n_rows,
        views=(fewest, most),
        features=_features(value["features"]),
        precision=_matching(value["precision"], PRECISION, "precision"),
        has_names=value["has_names"],
        head=_matching(value["head"], HEAD, "head"),
        seed=_matching(value["seed"], SEED, "seed"),
        created=_matching(value["created"], _DATE, "created") if value["created"] != "" else "",
        pushed=_matching(value["pushed"], _DATE, "pushed"),
        tables=_tables(value["tables"], n_samples, n_rows, n_bytes),
    )


def _tasks(value: Any) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for task in value if isinstance(value, list) else []:
        if not isinstance(task, dict) or set(task) != {"name", "classes"} or not isinstance(task["classes"], list):
            _refuse("tasks: expected names and classes")
        name = _text(task["name"], "tasks", MAX_TASK_NAME_BYTES)
        classes = tuple(_text(one, "classes", _MAX_CLASS) for one in task["classes"])
        if not name or not classes or len(set(classes)) < len(classes) or name in found or not all(classes):
            _refuse("tasks: a name or class is empty or stands twice")
        found[name] = classes
    if not found:
        _refuse("tasks: expected one or more")
    return found


def _features(value: Any) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in _object(value, "features").items():
        if not FEATURE_NAME.fullmatch(name) or not isinstance(shape, list) or len(shape) > 8:
            _refuse("features: expected names and shapes")
        if not all(_is_integer(length, 1, MAX_INTEGER) for length in shape):
            _refuse("features: expected lengths of 1 or more")
        found[name] = tuple(shape)
    return found


def _tables(value: Any, n_samples: int, n_rows: int, n_bytes: int) -> dict[str, TablePlace]:
    expected = dict(zip(TABLES, (KEY_BYTES * n_samples, 8 * (n_samples + 1), 2 * n_rows), strict=True))
    found: dict[str, TablePlace] = {}
    if set(_object(value, "tables")) != set(expected):
        _refuse(f"tables: expected {', '.join(expected)}")
    for name, place in value.items():
        if set(_object(place, "tables")) != {"offset", "n_bytes", "sha256"}:
            _refuse("tables: expected offset, n_bytes and sha256")
        if place["n_bytes"] != expected[name] or not _is_integer(place["n_bytes"], 1, MAX_INTEGER):
            _refuse(f"tables: {name} is of another size than {n_samples} samples and {n_rows} rows have")
        if not _is_integer(place["offset"], 0, n_bytes - place["n_bytes"]):
            _refuse(f"tables: {name} does not lie within the {n_bytes} bytes")
        found[name] = TablePlace(place["offset"], place["n_bytes"], _hex(place["sha256"], "tables"))
    return found


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(f"{name}: expected an object")
    found: dict[str, Any] = value
    return found


def _integer(value: dict[str, Any], name: str) -> int:
    if not _is_integer(value[name], 1, MAX_INTEGER):
        _refuse(f"{name}: expected a number of 1 or more")
    return int(value[name])


def _is_integer(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _text(value: Any, name: str, most: int) -> str:
    if not isinstance(value, str) or len(value) > most:
        _refuse(f"{name}: expected text of at most {most} characters")
    return str(value)


def _hex(value: Any, name: str) -> str:
    return _matching(value, _HEX, name)


def _matching(value: Any, pattern: re.Pattern[str], name: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        _refuse(f"{name}: {printable(repr(value))[:40]} is not what stands there")
    return str(value)


def _refuse(what: str) -> NoReturn:
    raise ManifestError(f"manifest: {printable(what)}")
