"""The command starts its own packages, whatever a user's files are called, or says which file is in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import softlabel

FOLDER = Path(softlabel.__file__).parent


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process in `folder` that finds softlabel; environment added."""
    found = os.environ | {"PYTHONPATH": str(FOLDER)} | environment
    return subprocess.run(command, cwd=folder, env=found, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def with_folder(tmp_path: Path) -> Path:
    """A user's folder with images in `data`."""
    (tmp_path / "data" / "train" / "mel").mkdir(parents=True)
    (tmp_path / "data" / "train" / "mel" / "x.jpg").write_bytes(b"x")
    return tmp_path


@pytest.fixture
def with_module(tmp_path: Path) -> Path:
    """A user's folder with a module of the name."""
    (tmp_path / "data.py").write_text("raise SystemExit('the user file ran')\n")
    return tmp_path


@pytest.mark.parametrize("kind", ["with_folder", "with_module"])
def test_files_of_our_names_in_the_working_folder_do_not_disturb_the_command(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """The console script, like any script, has its own folder on the path and not the working folder."""
    done = run([sys.executable, str(FOLDER / "softlabel.py"), "--help"], request.getfixturevalue(kind))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: softlabel" in done.stdout


def test_a_folder_of_images_on_the_path_is_no_package(with_folder: Path) -> None:
    """`python -m` puts the working folder first; a folder without __init__.py still gives way to ours."""
    done = run([sys.executable, "-m", "softlabel", "--help"], with_folder)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_module_on_the_path_stops_the_command_with_its_name(with_module: Path) -> None:
    done = run([sys.executable, "-m", "softlabel", "--help"], with_module)
    assert done.returncode == 1
    assert f"'data' is taken from {with_module / 'data.py'}, expected {FOLDER / 'data'}" in done.stderr
    assert "take their folder off PYTHONPATH" in done.stderr
    assert "Traceback" not in done.stderr
    assert "the user file ran" not in done.stderr + done.stdout


def test_our_own_packages_shadow_nothing() -> None:
    assert softlabel.shadowing(FOLDER) == []


def test_a_module_and_a_package_in_the_way_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache.py").write_text("")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in softlabel.PACKAGES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    problems = softlabel.shadowing(FOLDER)
    assert len(problems) == 2
    assert str(tmp_path / "cache.py") in problems[0]
    assert str(tmp_path / "pipeline" / "__init__.py") in problems[1]


def test_another_copy_of_softlabel_is_named_as_well(tmp_path: Path) -> None:
    problems = softlabel.shadowing(tmp_path)
    assert [problem.split("'")[1] for problem in problems] == list(softlabel.PACKAGES)
    assert all(str(FOLDER) in problem and str(tmp_path) in problem for problem in problems)


def test_packages_that_are_missing_are_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in str(finder)])
    for name in softlabel.PACKAGES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert softlabel.shadowing(tmp_path) == [f"'{name}' is not installed" for name in softlabel.PACKAGES]


def test_help_loads_neither_torch_nor_numpy_nor_h5py(tmp_path: Path) -> None:
    code = (
        "import sys, softlabel\n"
        "sys.argv = ['softlabel', '--help']\n"
        "try: softlabel.main()\n"
        "finally: print([name for name in ('torch', 'numpy', 'h5py') if name in sys.modules])\n"
    )
    done = run([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
