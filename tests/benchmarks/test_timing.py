"""The arithmetic of the speed benchmarks: who runs when, and what is made of the figures."""

from __future__ import annotations

from functools import partial

from timing import estimate, interleaved, markdown, ratio


def test_every_contestant_runs_once_a_round_and_not_always_in_the_same_order() -> None:
    ran: list[str] = []

    def contestant(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    found = interleaved({name: partial(contestant, name) for name in "abc"}, 6, tell=[].append)
    orders = ["".join(ran[at : at + 3]) for at in range(0, len(ran), 3)]
    assert {"".join(sorted(order)) for order in orders} == {"abc"}
    assert len(set(orders)) > 1
    assert all(len(values) == 6 for values in found.values())


def test_a_ratio_compares_what_ran_in_one_round_and_its_interval_holds_the_median() -> None:
    slow_machine, quiet_machine = 10.0, 1.0
    found = ratio([1.1 * slow_machine, 1.2 * quiet_machine, 1.3], [slow_machine, quiet_machine, 1.0])
    assert abs(found.median - 1.2) < 1e-9
    assert found.low <= found.median <= found.high
    assert found.n_rounds == 3


def test_equal_measurements_have_no_interval_but_themselves() -> None:
    found = estimate([2.0, 2.0])
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)


def test_a_table_is_markdown() -> None:
    assert markdown(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"
