"""Whole commands as processes: what they import, and how they answer Ctrl-C."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cache import CacheReader

Cli = Callable[..., tuple[int, str, str]]

# So many that a slow machine still interrupts before the last one (0.2 s each), so few that the rest takes seconds.
EPOCHS = 24
STUDENT = ("--student", "shufflenet_v2_x0_5", "--student-size", "32", "--batch-size", "8")


def start(environment: dict[str, str], folder: Path, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "softlabel", *(str(word) for word in words)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Ctrl-C as a terminal sends it: to the whole process group."""
    os.killpg(process.pid, signal.SIGINT)
    return finish(process)


def resuming_words(err: str) -> list[str]:
    """The words after `softlabel` in the line that goes on, without workers, which would take seconds to start."""
    line = err.strip().splitlines()[-1].strip()
    words = shlex.split(line)
    assert words[0] == "softlabel", err
    words[words.index("--workers") + 1] = "0"
    return words[1:]


def test_stage_two_never_loads_the_teacher_or_its_libraries_in_any_process(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    # Every process of the command, the spawned worker included, reports each import on its standard error.
    environment = {**clean_environment, "PYTHONPROFILEIMPORTTIME": "1"}
    train = ("train", tiny_data, tiny_cache, "-o", "run", "--epochs", 1, "--workers", 1, *STUDENT)
    evaluate = ("evaluate", tiny_run, tiny_data, "--split", "test", "--workers", 1)
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda words: finish(start(environment, tmp_path, *words)), (train, evaluate)))
    for code, _, err in results:
        assert code == 0, err[-2000:]
        imported = [line.rsplit("|", 1)[1].strip() for line in err.splitlines() if line.startswith("import time:")]
        assert imported.count("data.loaders") == 2, "the main process and a spawned worker must have reported"
        forbidden = [name for name in imported if name.split(".")[0] == "transformers" or "pipeline.teachers" in name]
        assert forbidden == []


def test_importing_the_cache_loads_no_torch() -> None:
    check = "import sys, cache; sys.exit(str(sorted({'torch', 'torchvision', 'transformers'} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_in_a_build_exits_130_and_names_the_line_that_goes_on(
    workers: int, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, clean_environment: dict[str, str],
    cli: Cli, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = ("cache", "build", tiny_data, "-o", "t.h5", "--teacher", tiny_teacher, "--precision", "fp32")
    slow = ("--views", 400, "--batch-size", 1, "--workers", workers)
    process = start(clean_environment, tmp_path, *words, *slow)
    wait_for(lambda: any((tmp_path / "t.h5.parts").glob("*.h5")), process)
    code, _, err = interrupt(process)
    assert code == 130, err
    assert "Traceback" not in err
    again = resuming_words(err)
    assert again[:2] == ["cache", "build"]
    assert not (tmp_path / "t.h5").exists()
    # The same line, to its end: fewer views of the same recipe, so that the test does not wait for 12,000.
    again[again.index("--views") + 1] = "3"
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*again)
    assert code == 0, err
    assert CacheReader(tmp_path / "t.h5").n_rows >= 120
    assert "views of 60 images" in out


def test_ctrl_c_in_training_exits_130_and_names_the_line_that_goes_on(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path, clean_environment: dict[str, str],
    cli: Cli, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = ("train", tiny_data, tiny_cache, "-o", "run", "--epochs", EPOCHS, "--workers", 1, *STUDENT)
    process = start(clean_environment, tmp_path, *words)
    wait_for(lambda: (tmp_path / "run" / "best.pt").exists(), process)
    code, _, err = interrupt(process)
    assert code == 130, err
    assert "Traceback" not in err
    again = resuming_words(err)
    assert again[-1] == "--resume"
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*again)
    assert code == 0, err
    assert "resumed  after epoch" in err
    assert out.startswith("run: best epoch")
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + EPOCHS


def test_of_two_builds_of_one_output_the_second_names_the_first_which_ends_undisturbed(
    tiny_data: Path, tiny_teacher: Path, tiny_cache: Path, tmp_path: Path, clean_environment: dict[str, str],
    cli: Cli, monkeypatch: pytest.MonkeyPatch, rows_of: Callable[[Path], dict[tuple[str, int], bytes]],
) -> None:  # fmt: skip
    words = ("cache", "build", tiny_data, "-o", "t.h5", "--teacher", tiny_teacher, "--precision", "fp32")
    settings = ("--views", 50, "--batch-size", 4, "--workers", 0)
    first = start(clean_environment, tmp_path, *words, *settings)
    try:
        lock = tmp_path / "t.h5.parts" / "lock"
        wait_for(lambda: lock.exists() and "pid" in lock.read_text(), first)
        first.send_signal(signal.SIGSTOP)  # so that it is busy for as long as the second, this process, takes
        monkeypatch.chdir(tmp_path)
        code, out, err = cli(*words, *settings)
        assert (code, out) == (1, ""), err
        assert "Traceback" not in err
        (error,) = (line for line in err.splitlines() if line.startswith("Error: "))
        assert f"another process is writing this output (host {socket.gethostname()} pid {first.pid}, " in error
        assert "wait for it, stop it, or choose another -o" in error
        assert not (tmp_path / "t.h5").exists()
        first.send_signal(signal.SIGCONT)
        code, out, err = finish(first)
    finally:
        first.kill()
    assert code == 0, err
    assert out.startswith("t.h5: 1,530 views of 60 images (1,530 computed now")
    assert rows_of(tiny_cache).items() <= rows_of(tmp_path / "t.h5").items()
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5"]


def test_a_cache_that_is_emptied_under_a_training_process_is_an_error_and_no_signal(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    cache = Path(shutil.copy(tiny_cache, tmp_path / "t.h5"))
    words = ("train", tiny_data, cache, "-o", "run", "--epochs", EPOCHS, "--workers", 0, *STUDENT)
    process = start(clean_environment, tmp_path, *words)
    wait_for(lambda: (tmp_path / "run" / "best.pt").exists(), process)
    cache.write_bytes(b"")
    code, out, err = finish(process)
    assert (code, out) == (1, ""), err
    assert "Traceback" not in err
    error = err[err.index("Error: ") :].strip()
    assert error == (
        f"Error: {cache} was replaced by another cache, or written over, while in use: put it back, or start anew"
    )
    epochs = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]
    assert 1 <= len(epochs) < EPOCHS


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], limit_s: float = 90) -> None:
    """Until the condition holds; fails with the process's output where it ends before."""
    started = time.monotonic()
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"ended too early: {process.communicate()}")
        assert time.monotonic() - started < limit_s, "nothing happened"
        time.sleep(0.02)
