"""The documentation does what it says: its console blocks run in order, its notebook executes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
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


def python_blocks(page: Path) -> list[str]:
    """The Python code of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_console_block_runs_in_order_in_an_empty_folder(
    tmp_path: Path, cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, as starting each anew takes longer than what it does; the demo's own commands start anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    commands = [command for page in PAGES for command in console_commands(page)]
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "softlabel", f"a console block runs softlabel and nothing else, got: {command}"
        code, out, err = cli(*words[1:])
        assert code == 0, f"{command}\n{out}\n{err}"
        assert "Warning" not in err, f"{command}\n{err}"
        if " demo " in command:
            for word in ("teacher (image tower)", "baseline, hard labels", "retention", "speed-up", "seconds:"):
                assert word in out
    verbs = ("demo", "cache build", "cache info", "cache verify", "train", "evaluate", "report", "export", "predict")
    for verb in verbs:
        assert any(command.startswith(f"softlabel {verb} ") for command in commands), f"no page shows {verb}"
    assert (tmp_path / "student_model.pt").stat().st_size < 25e6
    for code in python_blocks(ROOT / "README.md"):
        # torch.jit.load calls itself deprecated; the file is TorchScript all the same.
        python = [sys.executable, "-W", "ignore::FutureWarning:torch.jit._serialization", "-c", code]
        done = subprocess.run(python, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), code
    code, _, err = cli("demo", "--smoke")
    assert code == 1
    assert "demo-run exists: delete it to run the demo again" in err


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
