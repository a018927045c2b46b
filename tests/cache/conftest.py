"""Fixtures of the cache's tests."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from cache import CacheReader, Table
from cache.errors import CacheDamaged

HERE = Path(__file__).parent


def load(name: str) -> ModuleType:
    """A module beside this file, to which no import path leads."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """The module `cache_maker`."""
    return load("cache_maker")


@pytest.fixture(scope="session")
def second() -> ModuleType:
    """The module `second_reader`: the cache as docs/format.md has it."""
    return load("second_reader")


@pytest.fixture(scope="session")
def sealed(make: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sealed file that no test may change."""
    return make.write(tmp_path_factory.mktemp("sealed") / "t.h5", make.table())


@pytest.fixture(scope="session")
def long_table(make: ModuleType) -> Table:
    """Three blocks of 512 rows, the last one short; read-only."""
    rows = make.table(n_samples=600)
    assert 1024 < len(rows.view) < 1536, len(rows.view)
    assert rows.logits["class"].shape[1] == 3
    return rows


@pytest.fixture(scope="session")
def long_cache(make: ModuleType, long_table: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That as a sealed file, which no test may change."""
    return make.write(tmp_path_factory.mktemp("long") / "t.h5", long_table)


@pytest.fixture(scope="session")
def refusal() -> Callable[[Path], str]:
    """The message with which a complete check refuses a file: one line that names it and says what to do."""

    def refusal(path: Path) -> str:
        with pytest.raises(CacheDamaged) as caught:
            CacheReader(path).verify()
        message = str(caught.value)
        assert message.startswith(f"{path} is ")
        assert message.isprintable()
        assert "softlabel cache build" in message
        return message

    return refusal


@pytest.fixture(scope="session")
def refusal_at_opening(refusal: Callable[[Path], str]) -> Callable[[Path], str]:
    """The same, before anybody could read a row."""

    def refusal_at_opening(path: Path) -> str:
        with pytest.raises(CacheDamaged):
            CacheReader(path)
        return refusal(path)

    return refusal_at_opening
