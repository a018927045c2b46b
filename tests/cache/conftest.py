"""Fixtures of the cache's tests."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """The module `cache_maker`, which no import path leads to."""
    spec = importlib.util.spec_from_file_location("cache_maker", HERE / "cache_maker.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sealed(make: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sealed file that no test may change."""
    return make.write(tmp_path_factory.mktemp("sealed") / "t.h5", make.table())
