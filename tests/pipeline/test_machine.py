"""What is said of the machine that something was timed on."""

from __future__ import annotations

import dataclasses
import os

import pytest

from pipeline.machine import this_machine


def test_a_machine_has_a_name_and_as_many_cores_as_the_system_says() -> None:
    machine = this_machine()
    assert machine.cpu
    assert 1 <= machine.n_usable <= machine.n_cores == os.cpu_count()


@pytest.mark.parametrize(("load", "is_busy"), [(None, False), (0.9, False), (2.0, False), (2.1, True)])
def test_a_machine_is_busy_when_more_than_half_of_its_cores_are(load: float | None, is_busy: bool) -> None:
    assert dataclasses.replace(this_machine(), n_cores=4, load=load).is_busy == is_busy
