import json
import time

import numpy as np
import pytest

from cache.errors import CacheError, CacheNewer, ManifestError
from cache.manifest import Manifest, cache_id, content_id, differences

TASKS = [{"name": "class", "classes": ["mel", "nv"]}]


def identity(**changes):
    return {"tasks": TASKS, "view_columns": ["x"], "teacher": "00ff"} | changes


def raw(text_of_identity='"teacher":"00ff"', provenance="{}", head='"format":1,'):
    tasks = '"tasks":[{"classes":["mel","nv"],"name":"class"}],"view_columns":["x"]'
    return f'{{{head}"identity":{{{tasks},{text_of_identity}}},"provenance":{provenance}}}'.encode()


def canonical_raw(provenance="{}"):
    body = '{"tasks":[{"classes":["mel","nv"],"name":"class"}],"teacher":"00ff","view_columns":["x"]}'
    return f'{{"format":1,"identity":{body},"provenance":{provenance}}}'.encode()


def test_manifest_is_canonical_json_and_comes_back():
    manifest = Manifest(identity(), {"wall_s": 1.5, "who": "é"})
    assert manifest.to_bytes() == canonical_raw('{"wall_s":1.5,"who":"\\u00e9"}')
    again = Manifest.from_bytes(manifest.to_bytes())
    assert again == manifest
    assert again.tasks == {"class": ("mel", "nv")}
    assert again.view_columns == ("x",)


def test_manifest_keeps_its_own_copy():
    given = identity(list=[1])
    manifest = Manifest(given, {})
    given["list"].append(2)
    assert manifest.identity["list"] == [1]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", "JSON"),
        (b"[]", "expected an object"),
        (b"\xff", "UTF-8"),
        (b"{" * 10**6, "deeper"),
        (b'"' + b"[" * 50 + b'"', "expected an object"),
        (b'"' + b'\\"' * 10**6, "JSON"),
        (canonical_raw()[:-1], "JSON"),
        (canonical_raw() + b" ", "canonical"),
        (raw(), "canonical"),
        (canonical_raw('{"a":1,"a":2}'), "twice"),
        (canonical_raw('{"a":NaN}'), "NaN"),
        (canonical_raw('{"a":-Infinity}'), "Infinity"),
        (canonical_raw('{"a":1e999}'), "range"),
        (canonical_raw('{"a":9007199254740992}'), "53 bits"),
        (canonical_raw('{"a":' + "1" * 5000 + "}"), "53 bits"),
        (canonical_raw('{"a":"\\ud800"}'), "surrogate"),
        (canonical_raw('{"\\udfff":1}'), "surrogate"),
        (canonical_raw("[]"), "expected an object"),
        (canonical_raw('{"a":' + "[" * 20 + "]" * 20 + "}"), "deeper"),
        (raw(head='"format":0,'), "format 0"),
        (raw(head='"format":true,'), "format True"),
        (raw(head='"more":1,"format":1,'), "exactly"),
        (raw('"scale":112.5'), "float"),
        (b" " * (16 * 2**20 + 1), "at most"),
    ],
)
def test_manifest_refuses_bytes_that_mean_more_than_one_thing(bad, reason):
    with pytest.raises(ManifestError, match=reason):
        Manifest.from_bytes(bad)


def test_a_manifest_of_a_later_format_asks_for_an_update():
    with pytest.raises(CacheNewer, match="it has format 2, this version reads format 1: update softlabel"):
        Manifest.from_bytes(raw(head='"format":2,'))


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": []},
        {"tasks": None},
        {"tasks": ["class"]},
        {"tasks": [{"name": "", "classes": ["a"]}]},
        {"tasks": [{"name": "é" * 101, "classes": ["a"]}]},
        {"tasks": [{"name": "class", "classes": []}]},
        {"tasks": [{"name": "class", "classes": ["a", "a"]}]},
        {"tasks": [{"name": "class", "classes": [1]}]},
        {"tasks": TASKS + TASKS},
        {"view_columns": None},
        {"view_columns": ["x", "x"]},
        {"scale": 1.5},
        {"deep": {"list": [0, 2.0]}},
        {"seed": 2**53},
        {"what": {1: 2}},
        {"what": b"bytes"},
        {"what": "\ud800"},
    ],
)
def test_manifest_refuses_an_identity_with(changes):
    with pytest.raises(ManifestError) as caught:
        Manifest(identity(**changes), {})
    assert isinstance(caught.value, CacheError)
    assert isinstance(caught.value, ValueError)


def test_manifest_refuses_nan_in_the_provenance():
    with pytest.raises(ManifestError, match=r"provenance\.wall_s"):
        Manifest(identity(), {"wall_s": float("nan")})


KEYS = np.arange(32, dtype=np.uint8).reshape(2, 16)
FIRST_ROW, VIEWS = np.array([0, 1, 3], "<u8"), np.array([0, 0, 1], "<u2")


@pytest.mark.parametrize(
    ("field", "value", "moves"),
    [
        ("teacher", "00fe", True),
        ("tasks", [{"name": "class", "classes": ["nv", "mel"]}], True),
        ("tasks", [{"name": "Class", "classes": ["mel", "nv"]}], True),
        ("view_columns", ["y"], True),
        ("precision", "bf16", True),
        ("teacher", "00ff", False),
    ],
)
def test_recipe_and_cache_id_move_with_the_identity(field, value, moves):
    before, after = Manifest(identity(), {}), Manifest(identity(**{field: value}), {"host": "elsewhere"})
    assert (before.recipe_id != after.recipe_id) == moves
    ids = [cache_id(one.recipe_id, KEYS, FIRST_ROW, VIEWS) for one in (before, after)]
    assert (ids[0] != ids[1]) == moves


def test_cache_id_moves_with_each_key_owner_and_view():
    recipe = Manifest(identity(), {}).recipe_id
    others = [
        cache_id(recipe, KEYS[::-1], FIRST_ROW, VIEWS),
        cache_id(recipe, KEYS, np.array([0, 2, 3], "<u8"), VIEWS),
        cache_id(recipe, KEYS, FIRST_ROW, np.array([0, 0, 2], "<u2")),
    ]
    assert len({cache_id(recipe, KEYS, FIRST_ROW, VIEWS), *others}) == 4


def content_id_of(name, values):
    return content_id({name: (values.dtype, values.shape, [values.tobytes()])})


def test_content_id_moves_with_a_bit_a_name_a_dtype_and_a_shape():
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    flipped = values.copy()
    flipped.view(np.uint8)[0, 0] ^= 1
    other = [("a", flipped), ("b", values), ("a", values.view("<u4")), ("a", values.reshape(3, 2))]
    assert len({content_id_of(*one) for one in [("a", values), *other]}) == 5


def test_content_id_does_not_depend_on_the_pieces_in_which_bytes_come():
    values = np.arange(6, dtype="<f4")
    pieces = (values.tobytes()[:5], memoryview(values.tobytes()[5:]))
    assert content_id({"a": (values.dtype, values.shape, pieces)}) == content_id_of("a", values)


def test_ids_are_pinned_for_format_1():
    manifest = Manifest(identity(), {})
    assert json.loads(manifest.to_bytes())["format"] == 1
    assert manifest.recipe_id == "9b8603490d3b7d6f70e170bfd027c5e38e0b4e1815cfbea89852c93010f119bd"
    assert (
        cache_id(manifest.recipe_id, KEYS, FIRST_ROW, VIEWS)
        == "f84819afcfb62f0625761f94e55f1c6c6081c58d1c13623d394db914a5c7e0f7"
    )
    assert (
        content_id_of("a", np.arange(3, dtype="<f4"))
        == "d07eda06724192adcf30bee7a0fd6050822b1f323b94905035dd4caad0ef3877"
    )


def test_differences_lists_every_field_at_once():
    a = identity(teacher={"weights": "0" * 100, "size": 448}, only_a=1, same=[1])
    b = identity(teacher={"weights": "1" * 100, "size": "448"}, view_columns=["x", "y"], same=[True])
    b["tasks"] = [{"name": "class", "classes": ["mel", "df"]}]
    found = differences(a, b)
    assert [line.split(":")[0] for line in found] == [
        "only_a",
        "same[0]",
        "tasks[0].classes[1]",
        "teacher.size",
        "teacher.weights",
        "view_columns",
    ]
    assert found[2] == 'tasks[0].classes[1]: "nv" against "df"'
    assert max(map(len, found)) < 200
    assert differences(a, a) == []


def grown(provenance):
    """The text of a manifest with this provenance, as bytes."""
    return (
        b'{"format":1,"identity":{"tasks":[{"classes":["a"],"name":"t"}],"view_columns":[]},"provenance":%s}'
        % provenance
    )


@pytest.mark.parametrize(
    ("provenance", "reason"),
    [
        (b"{" + b",".join(b'"k%06d":1' % (number // 2) for number in range(200_000)) + b"}", '"k000000" stands twice'),
        (b'{"' + b"k" * 2_000_000 + b'":[' + b"1," * 200_000 + b'"\\ud800"]}', r"k\[200000\] holds half a surrogate"),
        (b'{"a":[' + b"[]," * 1_000_000 + b"1]}", "more than 1,000,000 values"),
        (b'{"a":"' + b'\\"' * 4_000_000, "not strict JSON"),
        (b"[" * 4_000_000, "more than 1,000,000 values"),
        (b"[" * 400_000, "nested deeper than 16"),
        (b'{"a":' + b"1" * 4_000_000 + b"}", "does not fit into 53 bits"),
    ],
    ids=["keys twice", "a long key", "many values", "quotes", "brackets", "depth", "digits"],
)
def test_a_hostile_manifest_costs_linear_time_and_is_told_shortly(provenance, reason):
    raw = grown(provenance)
    begun = time.process_time()
    with pytest.raises(ManifestError, match=reason) as caught:
        Manifest.from_bytes(raw)
    assert time.process_time() - begun < 4
    assert len(str(caught.value)) < 500


def test_brackets_and_escapes_inside_of_texts_count_for_nothing():
    raw = grown(b'{"a":"' + b'[{,\\"\\\\' * 2_000_000 + b'"}')
    assert Manifest.from_bytes(raw).to_bytes() == raw


def test_what_a_writer_may_write_a_reader_reads(monkeypatch):
    monkeypatch.setattr("cache.manifest.MAX_VALUES", 100)
    identity = {"tasks": [{"name": "t", "classes": ["a"]}], "view_columns": []}
    with pytest.raises(ManifestError, match="more than 100 values"):
        Manifest(identity, {"a": [[]] * 101})


def test_of_many_differences_fifty_are_named():
    found = differences({str(number): 0 for number in range(1000)}, {str(number): 1 for number in range(1000)})
    assert len(found) == 51
    assert found[-1] == "and more"
