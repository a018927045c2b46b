"""A table of samples is the sequence of the samples that it was made of, and what is asked of it is the same."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sample_table import SampleTable, Texts, class_numbers, classes_present, keys_of, take
from data.samples import Sample

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.just("caf\udce9.jpg")
SAMPLES = st.lists(
    st.builds(
        Sample,
        key=st.binary(min_size=16, max_size=16),
        path=TEXTS,
        name=TEXTS,
        split=st.sampled_from(["train", "val"]),
        labels=st.dictionaries(st.sampled_from(["class", "sex"]), st.sampled_from(["a", "b", ""]), max_size=2),
        group=st.sampled_from(["", "lesion 1", "ä"]),
    ),
    max_size=8,
)


@settings(max_examples=80, deadline=None, database=None)
@given(samples=SAMPLES)
def test_a_table_is_the_sequence_that_it_was_made_of(samples: list[Sample]) -> None:
    table = SampleTable.of(samples)
    chosen = np.array([at for at in range(len(samples)) if at % 3], np.int64)[::-1]
    for one, other in ((samples, table), (take(samples, chosen), take(table, chosen)), (samples[1:4], table[1:4])):
        assert isinstance(other, SampleTable)
        assert list(other) == list(one)
        assert [other[at] for at in range(-len(one), 0)] == list(one)
        np.testing.assert_array_equal(keys_of(other), keys_of(one))
        for task in ("class", "sex", "age"):
            assert classes_present(other, task) == classes_present(one, task)
            for classes in (["b", "a"], ["a"], [], ["", "c"]):
                np.testing.assert_array_equal(class_numbers(other, task, classes), class_numbers(one, task, classes))
        for outside in (len(one), -len(one) - 1):
            with pytest.raises(IndexError):
                other[outside]


def test_where_all_files_lie_in_one_folder_paths_take_no_memory() -> None:
    def samples(folder: str) -> list[Sample]:
        return [
            Sample(bytes(16), f"{folder if at else '/data/'}{name}", name, "train", {})
            for at, name in enumerate(("a/1.jpg", "b/2.jpg"))
        ]

    alike, apart = SampleTable.of(samples("/data/")), SampleTable.of(samples("/other/"))
    assert (alike._columns.path, [one.path for one in alike]) == ("/data/", ["/data/a/1.jpg", "/data/b/2.jpg"])
    assert [one.path for one in apart] == ["/data/a/1.jpg", "/other/b/2.jpg"]


def test_a_sample_of_a_table_takes_some_fifty_bytes() -> None:
    names = [f"train/nv/{at:07}.jpg" for at in range(2000)]
    samples = [Sample(bytes(16), f"/data/{name}", name, "train", {"class": "nv"}) for name in names]
    columns = SampleTable.of(samples)._columns
    assert isinstance(columns.name, Texts)
    arrays = [columns.key, columns.name._encoded, columns.name._ends, columns.split.code_N]
    arrays += [one.code_N for one in columns.labels.values()]
    assert sum(array.nbytes for array in arrays) / 2000 == 16 + 20 + 4 + 2 + 2
    assert sys.getsizeof(columns.path) < 100
