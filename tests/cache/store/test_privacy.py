"""What goes out of a provenance, field by field, and that all else stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import CacheReader, Manifest
from cache.store import Store, StoreError
from cache.store.outgoing import packed, sweep
from cache.store.privacy import public, teacher_name, what_goes_out

GOES_OUT = {
    "teacher": "google/medsiglip-448", "teacher_parameters": 123, "created": "2026-01-02T03:04:05+00:00", "task": "dx",
    "versions": {"torch": "2.6.0+cu124", "numpy": "2.1.0"}, "recomputed_in_fp32": 3, "merged_from": 2,
    "compute": {"rows_per_forward": 16, "device": "cuda:0", "torch": "2.6.0"},
    "first_batch_against_fp32": {"n_rows": 16, "worst_logit": 0.01, "argmax_agreement": 1.0},
    "pixels_against_processor": {"n_images": 4, "mean_levels": 0.5, "worst_levels": 3.0},
    "derived": {"parent_cache_id": "ab" * 32, "n_train": 60, "c": [1.0], "temperature": 1.5, "wall_s": 2.0},
    "skipped": [{"key": "ab" * 16, "reason": "image file is truncated (4 bytes not processed)"}],
    "skipped_files": {"a link to nothing": 2},
}  # fmt: skip


def identity(make: ModuleType) -> dict[str, Any]:
    found: dict[str, Any] = make.manifest().identity
    return found


def test_what_a_build_says_of_its_making_goes_out(make: ModuleType) -> None:
    manifest = Manifest(identity(make), GOES_OUT)
    assert public(manifest) == manifest
    assert public(public(manifest)) == public(manifest)


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("command", "softlabel cache build /home/doe", None),
        ("scores", "doe.csv", None),
        ("machine", "Linux doe-laptop", None),
        ("teacher", "/home/doe/medsiglip", "medsiglip"),
        ("teacher", "C:\\doe\\medsiglip", "medsiglip"),
        ("created", "by doe", None),
        ("task", "column of /home/doe", None),
        ("versions", {"torch": "2.6.0", "doe": "1"}, {"torch": "2.6.0"}),
        ("compute", {"device": "doe-gpu", "rows_per_forward": 4, "host": "doe"}, {"rows_per_forward": 4}),
        ("derived", {"command": "probe", "scores": [{"images": "doe"}], "n_train": 1}, {"n_train": 1}),
        ("skipped", [{"key": "ab" * 16, "reason": "/home/doe/1.jpg"}], [{"key": "ab" * 16, "reason": "left out"}]),
        ("skipped", [{"key": "/home/doe", "reason": "x"}, "doe"], None),
        ("skipped_files", {"doe.jpg: empty": 1, "doe2.jpg: empty": 2}, {"left out": 3}),
    ],
)
def test_a_field_keeps_what_is_known_to_be_harmless(make: ModuleType, field: str, value: Any, kept: Any) -> None:
    found = public(Manifest(identity(make), {field: value})).provenance
    assert found == ({} if kept is None else {field: kept})
    assert public(Manifest(identity(make), found)).provenance == found


def test_what_goes_in_part_is_named_on_both_sides(make: ModuleType, tmp_path: Path) -> None:
    said = {"derived": {"command": "probe", "n_train": 1, "versions": {"torch": "2.6.0", "doe": "1"}}, "merged_from": 2}
    path = make.write(tmp_path / "t.h5", make.table(names=False), Manifest(identity(make), said))
    with CacheReader(path) as reader:
        out, stays = what_goes_out(reader, with_names=False)
    assert out.endswith("of its making: derived (in part), merged_from")
    assert stays == "stays here: derived.command, derived.versions.doe"


words = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=9)
values = st.recursive(
    words.map(lambda word: f"/home/doe-{word}") | st.integers(-5, 5) | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(words.map(lambda word: f"/doe-{word}"), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*GOES_OUT, "command", "host", "x"]), values, max_size=6))
def test_no_text_with_a_path_survives_but_the_last_part_of_a_teachers(make: ModuleType, provenance: Any) -> None:
    found = public(Manifest(identity(make), provenance))
    teacher = teacher_name(found)
    rest = {name: value for name, value in found.provenance.items() if name != "teacher"}
    assert "doe" not in json.dumps(rest)
    assert "/" not in teacher


def test_the_copy_has_the_ids_of_the_cache_and_lies_beside_it_for_a_moment(small: Path, tmp_path: Path) -> None:
    mine = tmp_path / "t.h5"
    mine.write_bytes(small.read_bytes())
    left = tmp_path / "t.h5.push-00ff.parts"
    left.mkdir()
    (left / "t.h5.0011.tmp").write_bytes(b"of a push that was killed")
    sweep(mine)
    with CacheReader(mine) as reader:
        with packed(reader, reader.content_id, with_names=False) as parcel:
            assert parcel.path.parent.parent == tmp_path
            assert not left.exists()
            with CacheReader(parcel.path) as copy:
                assert (copy.cache_id, copy.content_id) == (reader.cache_id, reader.content_id)
                assert copy.manifest == public(reader.manifest)
        assert [path.name for path in tmp_path.iterdir()] == ["t.h5"]


def test_two_copies_of_one_cache_have_the_same_bytes(small: Path) -> None:
    with CacheReader(small) as reader:
        found = []
        for _ in range(2):
            with packed(reader, reader.content_id, with_names=False) as parcel:
                found.append(parcel.path.read_bytes())
    assert found[0] == found[1]


def test_a_file_of_another_writer_is_laid_out_anew(make: ModuleType, tmp_path: Path) -> None:
    import h5py

    clean = make.write(tmp_path / "clean.h5", make.table(names=False), public(make.manifest()))
    odd = make.rewrite(clean, tmp_path / "odd.h5", lambda arrays: None)
    with h5py.File(odd, "a") as h5:
        h5["logits/0"].attrs["made by"] = "Doe_John"
    assert b"Doe_John" in odd.read_bytes()
    for path in (clean, odd):
        with CacheReader(path) as reader, packed(reader, reader.content_id, with_names=False) as parcel:
            assert b"Doe_John" not in parcel.path.read_bytes()
            assert (parcel.path.read_bytes() == path.read_bytes()) == (path == clean)


def test_where_the_folder_cannot_be_written_the_copy_lies_elsewhere(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cache import durable
    from cache.errors import CacheError

    acquire, elsewhere = durable.Lock.acquire, tmp_path / "elsewhere"
    elsewhere.mkdir()

    def refuse(path: Path) -> durable.Lock:
        if elsewhere not in path.parents:
            raise CacheError("read-only")
        return acquire(path)

    monkeypatch.setattr(durable.Lock, "acquire", staticmethod(refuse))
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    with CacheReader(small) as reader, packed(reader, reader.content_id, with_names=False) as parcel:
        assert elsewhere in parcel.path.parents
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["a\tb.jpg", "a\u202eb.jpg", "\x1b[31m", "a\nb", "/etc/passwd", "../x.jpg", "a//b"])
def test_names_that_every_pull_refuses_do_not_go_out(
    folder: str, make: ModuleType, tmp_path: Path, patient: Callable[..., Store], name: str
) -> None:
    table = make.table()
    assert table.names is not None
    table.names[2] = name
    odd = make.write(tmp_path / "odd.h5", table)
    message = "nobody could pull 1 of its 5 names, first: the image name .*: rename the files and build anew, or push"
    with pytest.raises(StoreError, match=message) as caught:
        patient(folder).push(odd, with_names=True)
    assert str(caught.value).isprintable()
    assert not Path(folder).exists()
    assert patient(folder).push(odd).is_new


def test_class_names_that_every_pull_refuses_are_not_pushed(
    folder: str, make: ModuleType, tmp_path: Path, patient: Callable[..., Store]
) -> None:
    tasks = [{"name": "class", "classes": ["mel", "n\u202ev", "bkl"]}, {"name": "sex/é", "classes": ["f", "m"]}]
    odd = make.write(tmp_path / "odd.h5", make.table(), make.manifest(tasks=tasks))
    with pytest.raises(StoreError, match=r"nobody could pull it: the class or task name .* is not printable"):
        patient(folder).push(odd)
    assert not Path(folder).exists()
