"""A real S3 API on loopback, a bucket for each test, a line to it that breaks, and caches to share."""

from __future__ import annotations

import importlib.util
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import requests

from cache import CacheReader, Manifest, Table, quarantine
from cache.store import Patience, Store, download, places, s3
from reliability.bad_line import BadLine

KILLED_STORE = Path(__file__).with_name("killed_store.py")
PRIVATE = "Doe_John"
PIECE_BYTES = 1 << 16
_numbers = itertools.count()


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """The module `cache_maker`."""
    spec = importlib.util.spec_from_file_location("cache_maker", Path(__file__).parents[1] / "cache_maker.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """Of moto's server, in a thread of this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture(autouse=True)
def _looks_at_files_in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child process for each pull is dear; those tests that are about it ask for `child_process`."""
    if "child_process" in request.fixturenames:
        return

    def examine(path: Path) -> quarantine.Examined:
        with CacheReader(path, memory_map=False) as reader:
            reader.verify()
            found = {name: getattr(reader, name) for name in quarantine.Examined.__dataclass_fields__}
            return quarantine.Examined(**found)

    monkeypatch.setattr(quarantine, "examine", examine)


@pytest.fixture
def child_process() -> None:
    """Pulled files are looked at as users' are."""


@pytest.fixture
def bucket(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new bucket; parts and pieces are small."""
    from moto.s3 import models

    monkeypatch.setattr(models, "S3_UPLOAD_PART_MIN_SIZE", 1)
    for module, name in ((s3, "PART_BYTES"), (places, "_PIECE_BYTES"), (download, "_FIRST_PIECE"),
                         (download, "_MOST_PIECE")):  # fmt: skip
        monkeypatch.setattr(module, name, PIECE_BYTES)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    name = f"team-{next(_numbers)}"
    requests.put(f"http://127.0.0.1:{s3_port}/{name}", timeout=10).raise_for_status()
    return f"s3://{name}/caches"


@pytest.fixture
def line(bucket: str, s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[BadLine]:
    """All requests to the bucket go through it."""
    with BadLine(s3_port) as line:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{line.port}")
        yield line


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of each kind."""
    return str(tmp_path / "store") if request.param == "folder" else str(request.getfixturevalue("bucket"))


@pytest.fixture
def patient() -> Callable[..., Store]:
    """`patient(url)`: a store whose pauses are short; the same one for the same words, as each connects anew."""
    made: dict[str, Store] = {}

    def patient(url: str, **words: float) -> Store:
        known = f"{url} {words}"
        if known not in made:
            made[known] = Store(url, patience=Patience(**{"read_s": 5, "first_pause_s": 0.01, **words}))
        return made[known]

    return patient


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """An empty store in a folder, for what no other kind does differently."""
    return str(tmp_path / "store")


def table_of(make: ModuleType, seed: int, n_samples: int, width: int) -> Table:
    """Random rows with features of so many numbers, and private names."""
    rows = make.table(seed, n_samples)
    rng = np.random.default_rng(seed)
    wide = (rng.integers(0, 1 << 16, (len(rows.view), width), np.uint16) & 0x3BFF).view("<f2")
    names = [f"{PRIVATE}/{index}.jpg" for index in range(len(rows.key))]
    arrays = {name: getattr(rows, name) for name in ("key", "first_row", "view", "params", "witness", "logits")}
    return Table(**arrays, features={"embedding": wide}, names=names)


def private_manifest(make: ModuleType, **provenance: object) -> Manifest:
    """As a foreign writer's: with fields that nobody knows."""
    said = {
        "teacher": f"/home/{PRIVATE}/teachers/medsiglip", "created": "2026-01-02T03:04:05+00:00",
        "command": f"softlabel cache build /data/{PRIVATE}", "user": PRIVATE, "host": f"{PRIVATE}-laptop",
        "compute": {"rows_per_forward": 16, "device": "cpu", "torch": "2.6.0", "host": PRIVATE},
        "skipped": [{"key": "00ff" * 8, "reason": f"/data/{PRIVATE}.jpg is no image"}],
        **provenance,
    }  # fmt: skip
    return Manifest(make.manifest().identity, said)


@pytest.fixture(scope="session")
def small(make: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of few rows, with private names and provenance; no test may change it."""
    return make.write(tmp_path_factory.mktemp("small") / "t.h5", table_of(make, 1, 5, 4), private_manifest(make))


@pytest.fixture(scope="session")
def large(make: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of about a megabyte: 16 pieces; no test may change it."""
    return make.write(tmp_path_factory.mktemp("large") / "t.h5", table_of(make, 2, 40, 4_000), private_manifest(make))


@pytest.fixture(scope="session")
def twin(make: ModuleType, large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of `large` in a file with another provenance: another sha256 where the content_id is the same."""
    said = private_manifest(make, created="2026-02-03T04:05:06+00:00")
    return make.write(tmp_path_factory.mktemp("twin") / "t.h5", table_of(make, 2, 40, 4_000), said)


@pytest.fixture(scope="session")
def other(make: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other rows of the same recipe."""
    return make.write(tmp_path_factory.mktemp("other") / "t.h5", table_of(make, 3, 20, 4_000), private_manifest(make))
