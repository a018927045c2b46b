"""10 x macro F1, less what the user says the bytes cost: hand-computed, with the interval of the macro F1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SettingError
from pipeline.metrics.bootstrap import Interval
from pipeline.metrics.objective import SizeFactor, objective_of, parsed_size_factor


@pytest.mark.parametrize(
    ("text", "points", "is_per_mb", "of_five_mb"),
    [("0.35", 0.35, False, 0.35), ("0.02/MB", 0.02, True, 0.1), ("0", 0, False, 0), ("1e-1/mb", 0.1, True, 0.5)],
)
def test_a_size_factor_is_points_or_points_per_million_bytes(
    text: str, points: float, is_per_mb: bool, of_five_mb: float
) -> None:
    factor = parsed_size_factor("course", text)
    assert factor == SizeFactor(points, is_per_mb)
    assert factor is not None
    assert factor.of(5_000_000) == pytest.approx(of_five_mb)


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "0.02/MiB", "0.02 per MB", "/MB", "1/MB/MB"])
def test_what_is_no_size_factor_is_shown_beside_both_forms(text: str) -> None:
    with pytest.raises(SettingError, match=r"at least 0: .* such as 0\.35, or .* such as 0\.02/MB; got '"):
        parsed_size_factor("course", text)


def test_an_objective_and_its_size_factor_need_each_other() -> None:
    assert parsed_size_factor(None, None) is None
    with pytest.raises(SettingError, match=r"needs --size-factor, .* not public: .* 0\.35, or .* 0\.02/MB"):
        parsed_size_factor("course", None)
    with pytest.raises(SettingError, match=r"--size-factor 0\.35 is part of an objective: pass --objective course"):
        parsed_size_factor(None, "0.35")
    with pytest.raises(SettingError, match="objective must be course, got 'f1'"):
        parsed_size_factor("f1", "0.35")


def test_the_score_is_that_of_the_assignment_and_its_interval_that_of_the_macro_f1() -> None:
    found = objective_of(SizeFactor(0.02, True), 5_000_000, 0.5, Interval(0.4, 0.625))
    assert (found.size_factor, found.score) == (pytest.approx(0.1), pytest.approx(4.9))
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (pytest.approx(3.9), pytest.approx(6.15))
    assert objective_of(SizeFactor(0.1, False), 5_000_000, 0.5, None).interval is None


@given(st.floats(0, 1), st.floats(0, 100), st.booleans(), st.integers(1, 10**9), st.integers(1, 10**9))
def test_more_bytes_never_raise_the_score(
    macro_f1: float, points: float, is_per_mb: bool, n_bytes: int, other: int
) -> None:
    factor, (fewer, more) = SizeFactor(points, is_per_mb), sorted([n_bytes, other])
    assert objective_of(factor, fewer, macro_f1, None).score >= objective_of(factor, more, macro_f1, None).score
