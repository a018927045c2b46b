"""An export that is killed leaves the old file or the new one, and the next one finds nothing in its way."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.export import ExportConfig, export
from pipeline.formats import torchscript
from pipeline.inference import load_student

STEPS = {
    "new": ("half written", "before publish", "after publish"),
    "replace": ("after to_bytes", "half written", "before logits", "before publish", "after publish"),
}


@pytest.fixture(scope="module")
def old(tiny_run: Path) -> bytes:
    """What an export of before left: the same student, other bytes."""
    student = load_student(tiny_run, "cpu")
    return torchscript.to_bytes(student.module, student.card, "int8")


@pytest.fixture(scope="module", params=list(STEPS))
def killed(
    request: pytest.FixtureRequest, tiny_run: Path, old: bytes, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Step -> the folder with what an export that was killed there left."""
    folder, steps = tmp_path_factory.mktemp(request.param), STEPS[request.param]
    for number in range(len(steps)):
        (folder / str(number)).mkdir()
        if request.param == "replace":
            (folder / str(number) / "m.pt").write_bytes(old)
    script = Path(__file__).with_name("killed_export.py")
    found = subprocess.run(
        [sys.executable, script, tiny_run, folder, request.param, *steps], capture_output=True, text=True, timeout=300
    )
    assert found.stdout.split() == [str(-signal.SIGKILL)] * len(steps), found.stderr
    return {step: folder / str(number) for number, step in enumerate(steps)}


def test_a_killed_export_leaves_the_old_file_or_the_new_one_and_the_next_clears_up(
    killed: dict[str, Path], tiny_run: Path, old: bytes
) -> None:
    for step, folder in killed.items():
        path = folder / "m.pt"
        if step == "after publish":
            assert load_student(path, "cpu").card.size_px == 32
            assert path.read_bytes() != old
        elif "replace" in str(folder):
            assert path.read_bytes() == old, step
        else:
            assert not path.exists(), step
    folder = killed["half written"]
    assert len(list(folder.glob("m.pt.*.tmp"))) == 1
    export(tiny_run, folder / "m.pt", ExportConfig(replace=True))
    assert [path.name for path in folder.iterdir()] == ["m.pt"]
