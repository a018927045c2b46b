"""A stranger's file in a child process: what is said of it, and what becomes of a child that misbehaves."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from cache import CacheReader, quarantine, quarantine_child
from cache.errors import CacheDamaged, CacheError, CacheNewer, CacheNotFound
from cache.quarantine import Examined, examine


def test_a_sound_file_is_what_its_reader_says(sealed):
    reader = CacheReader(sealed)
    assert examine(sealed) == Examined(
        reader.recipe_id, reader.cache_id, reader.content_id, reader.n_samples, reader.n_rows
    )


def test_the_calling_process_reads_nothing_of_it(monkeypatch, sealed):
    def opened(*_, **__):
        raise AssertionError("it was opened here")

    monkeypatch.setattr("h5py.File", opened)
    monkeypatch.setattr("cache.guard.inspect", opened)
    monkeypatch.setattr("cache.durable.read_exactly", opened)
    assert examine(sealed).n_samples == 5


def test_what_is_wrong_is_said_in_one_line_that_names_the_file(make, sealed, tmp_path):
    cases = {
        "seal": lambda arrays: arrays["samples/key"].__setitem__((0, 0), arrays["samples/key"][0, 0] ^ 1),
        "damaged in 1 block: logits/0": lambda arrays: arrays["logits/0"].__setitem__((0, 0), 9),
    }
    for reason, change in cases.items():
        path = make.rewrite(sealed, tmp_path / f"{reason[:4]}.h5", change)
        with pytest.raises(CacheDamaged, match=reason) as caught:
            examine(path)
        assert str(path) in str(caught.value)
        assert str(caught.value).isprintable()


def resealed(make, sealed, path, change):
    from reliability.strange import fit_seal

    def both(arrays):
        change(arrays)
        fit_seal(arrays)

    return make.rewrite(sealed, path, both)


def test_hostile_names_and_numbers_under_a_seal_that_fits_are_refused(make, sealed, tmp_path):
    def rename(arrays):
        arrays["samples/name"] = np.array([b"../\x1b[31m.jpg", *arrays["samples/name"].tolist()[1:]])

    with pytest.raises(CacheDamaged, match=r"image name \.\./\\x1b\[31m\.jpg has characters") as caught:
        examine(resealed(make, sealed, tmp_path / "names.h5", rename))
    assert str(tmp_path / "names.h5") in str(caught.value)
    nan = resealed(make, sealed, tmp_path / "nan.h5", lambda arrays: arrays["logits/0"].fill(np.nan))
    with pytest.raises(CacheDamaged, match="logits/0 is not finite in row 0"):
        examine(nan)


def test_a_later_format_and_what_is_no_file_are_told_apart(make, sealed, tmp_path):
    def later(arrays):
        text = arrays["manifest"].tobytes().replace(b'"format":1', b'"format":2')
        arrays["manifest"] = np.frombuffer(text, np.uint8)

    with pytest.raises(CacheNewer, match="update softlabel"):
        examine(resealed(make, sealed, tmp_path / "later.h5", later))
    with pytest.raises(CacheNotFound):
        examine(tmp_path / "none.h5")
    with pytest.raises(CacheError, match="cannot open"):
        examine(tmp_path)


@pytest.fixture
def child(monkeypatch, tmp_path):
    """`child(text)`: this program takes the place of the real one, after its limits."""

    def child(text):
        program = tmp_path / "child.py"
        program.write_text(
            "import os, sys, json, time, signal\n"
            f"sys.path.insert(0, {os.path.dirname(quarantine_child.__file__)!r})\n"
            "import quarantine_child\n"
            "asked = json.loads(sys.argv[1]); quarantine_child.limit(asked)\n"
            "os.write(1, b'started\\n')\n" + text
        )
        monkeypatch.setattr(quarantine_child, "__file__", str(program))

    return child


HOSTILE_ANSWERS = [
    ("os.write(1, b'{}')", "something else than was asked"),
    ("os.write(1, b'[' * 7000)", "something else than was asked"),
    ("os.write(1, b'\\xff')", "something else than was asked"),
    ("os.write(1, json.dumps(dict.fromkeys(['recipe_id', 'cache_id', 'content_id'], 'x')"
     " | dict(n_samples=1, n_rows=1)).encode())", "something else"),
    ("os.write(1, json.dumps(dict.fromkeys(['recipe_id', 'cache_id', 'content_id'], 'a' * 64)"
     " | dict(n_samples=True, n_rows=1)).encode())", "something else"),
    ("os.write(1, json.dumps(dict.fromkeys(['recipe_id', 'cache_id', 'content_id'], 'a' * 64)"
     " | dict(n_samples=1, n_rows=-5)).encode())", "something else"),
    ("while True: os.write(1, b'x' * 4096)", "answered with more"),
    ("os.write(1, json.dumps(dict(error='damaged', text='\\x1b[31mred\\nError: b' + 'x' * 5000)).encode())",
     r"\\x1b\[31mred"),
    ("os.kill(os.getpid(), 11)", r"its reader crashed \(exit code -11\)"),
    ("os.kill(os.getpid(), 9)", "the system ended it"),
    ("os._exit(7)", r"crashed \(exit code 7\)"),
]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("text", "reason"), HOSTILE_ANSWERS)
def test_a_child_in_a_strangers_hands_is_not_believed(sealed, child, text, reason):
    child(text)
    with pytest.raises(CacheDamaged, match=reason) as caught:
        examine(sealed)
    assert str(caught.value).isprintable()
    assert str(sealed) in str(caught.value)
    assert len(str(caught.value)) < 1500


@pytest.mark.skipif(sys.platform != "linux", reason="the limits of Linux")
@pytest.mark.parametrize(
    ("text", "limit", "reason"),
    [
        ("x = bytearray(2 << 30)", {}, r"crashed \(exit code 1\)"),
        (
            "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass",
            {},
            "the system|processor",
        ),
        ("time.sleep(60)", {"WALL_S": 0.5}, r"it took more than \d s"),
        ("os.close(1); time.sleep(60)", {"WALL_S": 0.5}, r"it took more than \d s"),
        ("os.write(os.memfd_create('x'), b'x')", {}, "crashed"),
        ("[os.open('/', 0) for _ in range(100)]", {}, "crashed"),
    ],
)
def test_a_child_that_wants_too_much_is_ended(monkeypatch, sealed, child, text, limit, reason):
    for name, value in limit.items():
        monkeypatch.setattr(quarantine, name, value)
    child(text)
    begun = time.monotonic()
    with pytest.raises(CacheDamaged, match=f"opening it was stopped, .*({reason})"):
        examine(sealed)
    assert time.monotonic() - begun < 10


def test_too_little_memory_for_an_honest_file_is_said_with_the_limit(monkeypatch, sealed, child):
    child("os.write(1, json.dumps({'error': 'memory', 'text': ''}).encode())")
    with pytest.raises(CacheDamaged, match=r"it needed more than 1\.1 GB of memory"):
        examine(sealed)


def test_a_python_that_does_not_start_is_not_the_files_fault(monkeypatch, sealed, tmp_path):
    program = tmp_path / "child.py"
    program.write_text("raise ImportError('no h5py')")
    monkeypatch.setattr(quarantine_child, "__file__", str(program))
    with pytest.raises(CacheError, match="a second Python did not start") as caught:
        examine(sealed)
    assert not isinstance(caught.value, CacheDamaged)


@pytest.mark.skipif(sys.platform == "win32", reason="process ids")
def test_an_interrupt_ends_the_child(monkeypatch, sealed, child):
    popen, started = subprocess.Popen, []

    def start(*words, **options):
        started.append(popen(*words, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    child("time.sleep(60)")
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        examine(sealed)
    assert time.monotonic() - begun < 10
    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_the_environment_of_the_child_is_empty_but_for_what_it_needs(monkeypatch, sealed, child):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    child("os.write(1, json.dumps({'error': 'other', 'text': ' '.join(sorted(os.environ))}).encode())")
    with pytest.raises(CacheError) as caught:
        examine(sealed)
    assert "HDF5_PLUGIN_PRELOAD" in str(caught.value)
    assert "AWS" not in str(caught.value)
    assert "PATH " not in str(caught.value).replace("LIBRARY_PATH ", "")


def test_the_words_of_the_child_name_no_other_package(sealed, monkeypatch, tmp_path):
    """A folder that shadows the standard library beside the package is not imported from."""
    said = []
    monkeypatch.setattr(subprocess, "Popen", lambda words, **options: said.append((words, options)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        examine(sealed)
    ((words, options),) = said
    assert words[1:4] == ["-I", "-B", "-X"]
    assert json.loads(words[-1])["memory"] >= 1 << 30
    assert options["stdin"] == subprocess.DEVNULL
