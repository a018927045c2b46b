"""Run the scripts of benchmarks/, or have them as modules."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> Any:
    """A script, or a module that its own folder has for it."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    return importlib.import_module(name)


def _run(script: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.run(command, timeout=300, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], Any]:
    """`load_script(name)`: a script as a module."""
    return load


@pytest.fixture(scope="session")
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_script(name, *words)`: a script to its end."""
    return lambda name, *words: _run(BENCHMARKS / f"{name}.py", *words)


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[[str, list[str]], str]:
    """`refusal(name, words)`: what a script says of words that it does not take."""

    def refusal(name: str, words: list[str]) -> str:
        with pytest.raises(SystemExit, match="2"):
            load(name).parse(words)
        return capsys.readouterr().err

    return refusal


@pytest.fixture(scope="module")
def sabotaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Name of a sabotage -> what the campaign of this test counted with it."""
    folder = tmp_path_factory.mktemp("sabotage") / "work"
    done = _run(request.path.with_name("sabotage.py"), request.path.stem, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    counts: dict[str, Any] = json.loads((folder / "counts.json").read_text("utf-8"))
    return counts
