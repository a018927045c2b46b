"""Subgroups: every image is in one row of a column, numbers are binned, small ones are counted and not scored."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SettingError
from pipeline.metrics.classification import classification_metrics
from pipeline.metrics.subgroups import MISSING, name_values, subgroup_table

from .answering import drawn


def test_words_are_ordered_by_how_many_images_have_them_and_missing_ones_come_last() -> None:
    names, order = name_values("sex", ["male", "", "female", " male", "nan", "NA"])
    assert names == ["male", MISSING, "female", "male", MISSING, MISSING]
    assert order == ["male", "female", MISSING]


def test_a_few_numbers_stay_as_they_are_in_numeric_order() -> None:
    assert name_values("stage", ["10", "2", "2", "1"])[1] == ["1", "2", "10"]


def test_ages_become_decades() -> None:
    ages = [str(age) for age in range(0, 86, 5)]
    names, order = name_values("age", [*ages, "85.0", ""])
    assert order == [f"{low} to <{low + 10}" for low in range(0, 90, 10)] + [MISSING]
    assert dict(zip(ages, names, strict=False))["40"] == "40 to <50"
    assert names[-2:] == ["80 to <90", MISSING]


def test_numbers_of_another_size_become_quarters_of_about_equal_size() -> None:
    names, order = name_values("thickness", [str(i / 100) for i in range(40)])
    assert order == ["0 to <0.09", "0.09 to <0.19", "0.19 to <0.29", "0.29 and more"]
    assert [names.count(name) for name in order] == [9, 10, 10, 11]


@given(st.lists(st.integers(-500, 500), min_size=1, max_size=60))
@settings(deadline=None)
def test_every_number_is_in_the_bin_that_contains_it(numbers: list[int]) -> None:
    names, order = name_values("x", [str(number) for number in numbers])
    assert set(names) == set(order)
    for number, name in zip(numbers, names, strict=True):
        if " to <" in name:
            low, high = map(float, name.split(" to <"))
            assert low <= number < high
        elif name.endswith("and more"):
            assert number >= float(name.split()[0])
        else:
            assert name == str(number)


def test_a_column_of_ids_is_refused() -> None:
    with pytest.raises(SettingError, match=r"column lesion_id has 60 different values.*--group-column\?"):
        name_values("lesion_id", [f"HAM_{i}" for i in range(60)])


def test_a_subgroup_has_the_scores_of_its_own_images() -> None:
    logits, labels = drawn(0, 60, 3)
    names = ["male"] * 30 + ["female"] * 25 + [MISSING] * 5
    table = subgroup_table(
        logits, labels, ("a", "b", "c"), "sex", names, ["male", "female", MISSING, "nobody"], list(map(str, range(60))),
        n_resamples=50,
    )  # fmt: skip
    assert [(one.value, one.n_images, one.is_small) for one in table] == [
        ("male", 30, False), ("female", 25, False), (MISSING, 5, True),
    ]  # fmt: skip
    expected = classification_metrics(logits[30:55], labels[30:55], ("a", "b", "c"))
    female = table[1]
    assert (female.accuracy, female.macro_f1) == (expected.accuracy, expected.macro_f1)
    found = female.intervals["accuracy"]
    assert found is not None
    assert found.low <= expected.accuracy <= found.high
    missing = table[2]
    assert (missing.accuracy, missing.balanced_accuracy, missing.intervals) == (None, None, {})
    assert missing.n_correct == (logits[55:].argmax(axis=1) == labels[55:]).sum()
    assert sum(one.n_images for one in table) == 60
