"""The documentation does what it says: its console blocks run in order, its notebook executes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def console_commands(page: Path) -> list[str]:
    """Every line that starts with `$ ` in a console block, in order."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_every_console_block_runs_in_order_in_an_empty_folder(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    commands = [command for page in PAGES for command in console_commands(page)]
    verbs = {" ".join(word for word in shlex.split(c)[1:3] if word.isalpha()) for c in commands}
    assert {"cache build", "cache info", "train", "evaluate run", "export run", "predict"} <= verbs
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "softlabel", f"a console block runs softlabel and nothing else, got: {command}"
        done = subprocess.run(
            [sys.executable, "-m", "softlabel", *words[1:]],
            capture_output=True, text=True, check=False, cwd=tmp_path, env=clean_environment,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Warning" not in done.stderr, f"{command}\n{done.stderr}"
    assert (tmp_path / "student_model.pt").stat().st_size < 25e6


def test_the_smoke_demo_ends_with_its_table(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "softlabel", "demo", "--smoke", "-o", "d"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=clean_environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for word in ("teacher (image tower)", "baseline, hard labels", "retention", "compression", "speed-up", "seconds:"):
        assert word in done.stdout
    again = subprocess.run(
        [sys.executable, "-m", "softlabel", "demo", "--smoke", "-o", "d"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=clean_environment,
    )  # fmt: skip
    assert again.returncode == 1
    assert "d exists: delete it to run the demo again" in again.stderr


# Jupyter's own libraries warn about things that are theirs to mend; the notebook's own code runs in another process.
@pytest.mark.filterwarnings("default")
def test_the_quickstart_notebook_executes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "student_model.pt").exists()


def test_no_page_names_a_file_that_is_not_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
