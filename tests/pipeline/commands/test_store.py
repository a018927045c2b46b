"""`softlabel cache push`, `pull` and `list`: what they say, what they refuse, and what they remember."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from cache import CacheReader
from pipeline.consent import Consent
from reliability.bad_line import BadLine, Fault

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    """Of moto's server, in a thread of this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    state = tmp_path_factory.mktemp("state")
    for name, value in {
        "XDG_STATE_HOME": str(state), "HOME": str(state), "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(s3_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of a new bucket."""
    name = f"commands-{abs(hash(tmp_path))}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}")
    requests.put(f"http://127.0.0.1:{s3_port}/{name}", timeout=10).raise_for_status()
    return f"s3://{name}"


@pytest.fixture
def mine(tiny_cache: Path, tmp_path: Path) -> Path:
    """A cache of one's own."""
    return Path(shutil.copy(tiny_cache, tmp_path / "t.h5"))


def one_error(result: tuple[int, str, str]) -> str:
    """The message of a command that ended with exit code 1."""
    code, _, err = result
    assert code == 1, err
    assert "Traceback" not in err
    assert err.count("Error: ") == 1
    return err[err.index("Error: ") :].strip()


def test_a_team_pushes_lists_and_pulls_in_a_folder(cli: Cli, mine: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    code, out, err = cli("cache", "push", mine, store)
    assert (code, err) == (0, "")
    goes_out, stays, new, pushed, how = out.splitlines()
    assert new == f"new folder {store}"
    assert goes_out.startswith(
        "goes out: keys of 60 images, 120 views' drawn numbers, witness (12 numbers of each view), "
    )
    assert "logits of 5 classes, embeddings (32 numbers of each view), prompts, class names, teacher name (" in goes_out
    assert stays == "stays here: names of files, machine"
    assert pushed == f"{store}: 120 views of 60 images, 25.0 kB"
    with CacheReader(mine) as reader:
        recipe_id, content_id = reader.recipe_id, reader.content_id
    assert how == f"to have them: softlabel cache pull {store}/{content_id[:16]} -o t.h5"
    code, out, err = cli("cache", "list", store)
    _, line = out.splitlines()
    date = line.split()[-3]
    words = ["embeddings", "5", "60", "120", "(1-3", "each)", "25.0", "kB", date, recipe_id[:8], content_id[:8]]
    assert line.split()[1:] == words
    out_file = tmp_path / "pulled.h5"
    for _ in range(2):
        code, out, err = cli("cache", "pull", f"{store}/{content_id[:8]}", "-o", out_file)
        assert (code, out) == (0, f"{out_file}: 120 views of 60 images, 25.0 kB\n"), err
    assert "is there already, with the same rows" in err
    assert cli("cache", "verify", out_file)[0] == 0
    code, out, err = cli("cache", "push", out_file, store)
    assert "has these rows already, since 20" in out
    assert "nothing was uploaded" in out
    listed = json.loads(cli("cache", "list", store, "--json")[1])
    assert [one["content_id"] for one in listed] == [content_id]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pulled.h5", "store", "t.h5"]


def test_a_remote_place_needs_a_yes_once(cli: Cli, mine: Path, bucket: str, tmp_path: Path) -> None:
    error = one_error(cli("cache", "push", mine, bucket))
    assert f"nothing was sent: {bucket} at http://127.0.0.1:" in error
    assert "repeat the command with --yes" in error
    assert cli("cache", "list", bucket)[1] == f"{bucket} is empty; softlabel cache push t.h5 {bucket} fills it\n"
    assert cli("cache", "push", mine, bucket, "--yes")[0] == 0
    other = tmp_path / "renamed.h5"
    mine.rename(other)
    code, out, err = cli("cache", "push", other, bucket + "/")
    assert (code, err) == (0, "")
    assert "goes out: " not in out
    assert "nothing was uploaded" in out
    assert "needs a yes" in one_error(cli("cache", "push", other, bucket + "/elsewhere"))


def test_a_push_says_what_stood_there(cli: Cli, mine: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert cli("cache", "push", mine, store)[0] == 0
    (data,) = store.glob("*/*.h5")
    content = data.read_bytes()
    out = cli("cache", "push", mine, store, "--with-names")[1]
    assert ", without names of files; they stay as they are: nothing was uploaded (" in out
    assert "goes out" not in out
    out = cli("cache", "push", mine, store, "--check")[1]
    assert ", and they are what their manifest says: nothing was uploaded (" in out
    data.unlink()
    assert "kB; its data were missing there, and are put back\n" in cli("cache", "push", mine, store)[1]
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    out = cli("cache", "push", mine, store, "--check")[1]
    assert "kB; what stood there was not what its manifest says, and is put right\n" in out
    assert data.read_bytes() == content


def test_a_no_at_the_terminal_sends_nothing(cli: Cli, mine: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    answers = [False, True]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "confirm", lambda text, err: answers.pop(0))
    assert one_error(cli("cache", "push", mine, bucket)) == "Error: nothing was sent"
    for _ in range(2):
        assert cli("cache", "push", mine, bucket)[0] == 0
    assert answers == []


def test_a_yes_is_remembered_by_place_and_a_broken_memory_only_asks_again(tmp_path: Path) -> None:
    consent = Consent(tmp_path / "state" / "stores.json")
    assert not consent.is_given("s3://team")
    consent.remember("s3://team")
    consent.remember("gs://team")
    assert Consent(consent.file).is_given("s3://team")
    assert not consent.is_given("s3://team/other")
    consent.file.write_text("{")
    assert not consent.is_given("s3://team")
    (tmp_path / "file").write_text("")
    Consent(tmp_path / "file" / "stores.json").remember("s3://team")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "gs://team"], "gs://team needs a package that is not installed: pip install '.[gs]'"),
        (
            ["list", "ssh://ann:secret@host/x"],
            "ssh://***@host/x needs a package that is not installed: pip install '.[ssh]'",
        ),
        (["list", "foo://team"], "foo:// cannot be a store"),
        (["list", "http://127.0.0.1:1/x"], "http:// cannot be a store"),
        (["push", "nothing.h5", "https://127.0.0.1:1/x"], "https:// cannot be a store"),
        (["list", "nowhere"], "there is no folder nowhere: is its drive mounted?"),
        (["pull", "stores/t.h5", "-o", "x.h5"], "does not end in an ID"),
        (["push", "nothing.h5", "store"], "nothing.h5: is the path right?"),
        (["list", "s3://team", "--timeout", "0"], "seconds to wait must be above 0"),
    ],
)
def test_a_mistake_is_one_error(
    cli: Cli, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for backend in ("gcsfs", "paramiko"):
        monkeypatch.setitem(sys.modules, backend, None)
    error = one_error(cli("cache", *words))
    assert message in error
    assert "secret" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("endpoint", "variables", "message"),
    [
        ("http://127.0.0.1:9", {}, "nothing answers at the address of s3://team"),
        ("http://nowhere.invalid:9", {}, "unknown host of s3://team"),
        (None, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials that s3://nobody takes"),
        (None, {}, "there is no such bucket or repository: s3://nobody"),
    ],
)
def test_a_server_that_cannot_help_is_one_error(
    cli: Cli, s3_port: int, endpoint: str | None, variables: dict[str, str], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint or f"http://127.0.0.1:{s3_port}")
    for name, value in variables.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    assert message in one_error(cli("cache", "list", "s3://team" if endpoint else "s3://nobody"))


def test_an_endpoint_without_its_protocol_is_told(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:5611")
    assert "write http://127.0.0.1:5611 in AWS_ENDPOINT_URL" in one_error(cli("cache", "list", "s3://team"))


def test_a_file_in_the_place_of_a_folder_is_one_error(cli: Cli, mine: Path, tmp_path: Path) -> None:
    for store in (mine, mine / "store"):
        for words in (["push", mine, store], ["list", store], ["pull", store / "14e8c843", "-o", tmp_path / "x.h5"]):
            error = one_error(cli("cache", *words))
            assert error.endswith(f"cannot be a store: {mine} is a file, not a folder")
    assert list(tmp_path.iterdir()) == [mine]


def test_a_folder_that_takes_no_files_is_told_first(
    cli: Cli, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cache.store import places

    monkeypatch.setattr(places.os, "access", lambda path, mode: not mode & os.W_OK)
    error = one_error(cli("cache", "push", mine, tmp_path / "a" / "b"))
    assert error == f"Error: the folder {tmp_path} cannot be written: ask for the right to, or choose another"


def test_a_place_above_stores_names_them(cli: Cli, mine: Path, bucket: str) -> None:
    for name in ("team/one", "two"):
        assert cli("cache", "push", mine, f"{bucket}/{name}", "--yes")[0] == 0
    assert cli("cache", "list", bucket)[1].splitlines() == [
        f"{bucket} is no store, but above 2:",
        f"  softlabel cache list {bucket}/team/one",
        f"  softlabel cache list {bucket}/two",
    ]


def test_a_recipe_and_a_content_without_a_suffix_are_an_id(
    cli: Cli, mine: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CacheReader(mine) as reader:
        wanted = f"{reader.recipe_id}/{reader.content_id}"
    for number, store in enumerate((bucket, f"{bucket}/caches", str(tmp_path / "store"))):
        assert cli("cache", "push", mine, store, "--yes")[0] == 0
        assert cli("cache", "pull", f"{store}/{wanted}", "-o", tmp_path / f"{number}.h5")[0] == 0
    monkeypatch.chdir(tmp_path / "store")
    assert cli("cache", "pull", wanted, "-o", tmp_path / "here.h5")[0] == 0


def test_ctrl_c_ends_a_pull_with_the_line_that_goes_on(
    mine: Path, bucket: str, s3_port: int, cli: Cli, tmp_path: Path
) -> None:
    assert cli("cache", "push", mine, bucket, "--yes")[0] == 0
    content_id = CacheReader(mine).content_id
    words = ["cache", "pull", f"{bucket}/{content_id}", "-o", str(tmp_path / "out.h5")]
    with BadLine(s3_port) as line:
        line.plan = lambda number: Fault("stall", 20_000)
        environment = {**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{line.port}"}
        process = subprocess.Popen(
            [sys.executable, "-m", "softlabel", *words], stderr=subprocess.PIPE, text=True, env=environment
        )
        until = time.monotonic() + 30
        while not line.broken and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert ".parts stays" not in err
    lines = err.strip().splitlines()
    assert lines[-2:] == ["Interrupted; what is done stays. Go on with:", f"  softlabel {' '.join(words)}"]
    assert cli(*words)[0] == 0
