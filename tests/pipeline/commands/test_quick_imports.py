"""Garbage is looked for again after the imports, whatever they came to."""

import gc

import pytest

from pipeline.commands.shared import quick_imports


def test_inside_nobody_looks_for_garbage_and_after_it_as_before():
    assert gc.isenabled()
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import nobodys_module  # noqa: F401
    assert gc.isenabled()


def test_who_switched_it_off_keeps_it_off():
    gc.disable()
    try:
        with quick_imports():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
