"""Garbage is looked for again after a start, whatever that came to."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from pipeline.start import without_garbage_collection


def test_inside_nobody_looks_for_garbage_and_after_it_as_before() -> None:
    assert gc.isenabled()
    with without_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), without_garbage_collection():
        import nobodys_module  # noqa: F401
    assert gc.isenabled()
    gc.unfreeze()


def test_who_switched_it_off_keeps_it_off() -> None:
    gc.disable()
    try:
        with without_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_libraries_that_were_imported_inside_report_no_leak_at_the_end_of_the_process() -> None:
    code = "import pipeline.start as s\nwith s.without_garbage_collection(): import torchvision, torch._dynamo"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
