"""The small manifest: what is written is read back, and nothing of a stranger's is believed."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cache.errors import CacheError, CacheNewer, ManifestError
from cache.store import Entry, Store
from cache.store.listing import in_order, kind, short_id, to_text


@pytest.fixture(scope="module")
def entry(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Entry:
    """Of a real push."""
    return Store(str(tmp_path_factory.mktemp("entry"))).push(small).entry


def parse(entry: Entry, value: Any) -> Entry:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Entry.from_bytes(raw, entry.recipe_id, entry.content_id)


def test_what_is_written_is_read_back(entry: Entry) -> None:
    assert parse(entry, entry.to_bytes()) == entry
    assert len(entry.to_bytes()) < 4096


def changed(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value.update(fields)


def in_table(name: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value["tables"][name].update(fields)


HOSTILE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (changed(format=True), "format"),
    (changed(format="1"), "format"),
    (changed(more=1), "more"),
    (lambda value: value.pop("sha256"), "sha256"),
    (changed(sha256="../../etc/passwd"), "sha256"),
    (changed(sha256="AB" * 32), "sha256"),
    (changed(recipe_id="0" * 64), "its ids are not those of its name"),
    (changed(n_bytes=-1), "n_bytes"),
    (changed(n_bytes=1.5), "n_bytes"),
    (changed(n_bytes=2**60), "53 bits"),
    (changed(n_rows=10**15), "rows of"),
    (changed(n_samples=True), "n_samples"),
    (changed(views=[3, 1]), "rows of"),
    (changed(views=[0, 70_000]), "views"),
    (changed(teacher="x" * 201), "teacher"),
    (changed(teacher=None), "teacher"),
    (changed(tasks=[]), "tasks"),
    (changed(tasks=[{"name": "a", "classes": ["x", "x"]}]), "stands twice"),
    (changed(tasks=[{"name": "a", "classes": ["x"], "more": 1}]), "tasks"),
    (changed(features={"../x": [1]}), "features"),
    (changed(features={"x": [0]}), "features"),
    (changed(precision="\x1b[31m"), "precision"),
    (changed(has_names=1), "has_names"),
    (changed(head="\x1b[31m"), "head"),
    (changed(head=None), "head"),
    (changed(seed=0), "seed"),
    (changed(seed="01"), "seed"),
    (changed(seed="٣"), "seed"),
    (changed(pushed="yesterday"), "pushed"),
    (changed(created=[]), "created"),
    (changed(tables={}), "tables"),
    (in_table("rows/view", n_bytes=10**9), "another size"),
    (in_table("rows/view", offset=10**9), "does not lie within"),
    (in_table("rows/view", offset=-1), "does not lie within"),
    (in_table("samples/key", sha256=""), "tables"),
    (lambda value: value["tables"].update({"samples/key": []}), "tables"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_a_hostile_manifest_is_refused_in_one_line(
    entry: Entry, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    value = copy.deepcopy(entry.to_dict())
    change(value)
    with pytest.raises(ManifestError, match=message) as caught:
        parse(entry, value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b"{}", b'{"a":1,"a":2}', b"[" * 99, b"NaN", b"\xff", b" " * 3_000_000]
)
def test_what_is_no_strict_json_object_is_refused(entry: Entry, raw: bytes) -> None:
    with pytest.raises(ManifestError):
        parse(entry, raw)


def test_a_later_format_is_told(entry: Entry) -> None:
    with pytest.raises(CacheNewer, match="update softlabel"):
        parse(entry, {**entry.to_dict(), "format": 2, "new": []})


def test_no_mutation_ends_in_anything_but_a_refusal(entry: Entry) -> None:
    rng, raw = random.Random(0), entry.to_bytes()
    for _ in range(2_000):
        mutated = bytearray(raw)
        for _ in range(rng.choice([1, 1, 3])):
            mutated[rng.randrange(len(mutated))] = rng.choice(b'0129"{}[],:-.eE\\u\x00\xff ')
        with suppress(CacheError):  # any other exception would end the test
            assert parse(entry, bytes(mutated)).content_id == entry.content_id


def test_the_table_has_a_line_for_each_and_the_shortest_ids_that_mean_one(entry: Entry) -> None:
    values = {**entry.to_dict(), "content_id": entry.content_id[:10] + "f" * 54, "teacher": "\x1b[31mred"}
    two = Entry.from_bytes(json.dumps(values).encode(), entry.recipe_id, values["content_id"])
    text = to_text([entry, two])
    title, *lines = text.split("\n")
    assert title.split() == ["teacher", "kind", "classes", "images", "views", "size", "date", "recipe", "ID"]
    assert len(lines) == 2
    assert lines[1].startswith("\\x1b[31mred")
    for one in (entry, two):
        short = short_id(one, [entry, two])
        assert len(short) == 11
        assert [other.content_id.startswith(short) for other in (entry, two)].count(True) == 1
    assert len(short_id(entry, [entry])) == 8


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"head": "zero_shot", "seed": "0"}, "embeddings"),
        ({"head": "probe", "seed": "7"}, "probe, embeddings, seed 7"),
        ({"head": "imported", "features": {}, "has_names": True}, "imported, no embeddings, names"),
    ],
)
def test_the_table_says_what_is_special(entry: Entry, fields: dict[str, Any], shown: str) -> None:
    found = dataclasses.replace(entry, **fields)
    assert kind(found) == shown
    assert shown in to_text([found])


def test_the_recipe_with_the_latest_object_comes_first_and_recipes_stay_together(entry: Entry) -> None:
    days = [("a", 1), ("b", 2), ("a", 3), ("b", 2), ("c", 2)]
    entries = [
        dataclasses.replace(
            entry, recipe_id=recipe * 64, content_id=f"{number}" * 64, pushed=f"2026-01-0{day}T00:00:00Z"
        )
        for number, (recipe, day) in enumerate(days)
    ]
    for shuffled in (entries, entries[::-1], entries[2:] + entries[:2]):
        assert [int(one.content_id[0]) for one in in_order(shuffled)] == [2, 0, 4, 1, 3]
    assert [line.split()[-2] for line in to_text(entries).splitlines()[1:]] == [recipe * 8 for recipe, _ in days]


def test_head_and_seed_are_those_of_the_identity(make: ModuleType, tmp_path: Path) -> None:
    for number, (words, found) in enumerate(
        [
            ({"teacher": {"head": "probe"}, "views": {"seed": "7"}}, ("probe", "7")),
            ({"teacher": {"kind": "imported"}}, ("imported", "")),
            ({"teacher": {"kind": "Doe_John", "head": 1}, "views": {"seed": -7}}, ("", "")),
        ]
    ):
        path = make.write(tmp_path / f"{number}.h5", make.table(), make.manifest(**words))
        pushed = Store(str(tmp_path / "store")).push(path).entry
        assert (pushed.head, pushed.seed) == found
