"""A teacher is known again by its files and by what it is asked, and by nothing less."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.teachers import known
from pipeline.teachers.known import KnownTeachers
from pipeline.teachers.teacher import TeacherFacts

FACTS = TeacherFacts(
    classes=("mel", "nv"), identity={"kind": "siglip", "prompts": {"mel": ["melanoma"]}},
    preprocessing={"size_px": 32}, embedding_size=16, is_fitted=False, n_parameters=1234,
)  # fmt: skip
QUESTION = {"tasks": [["class", ["mel", "nv"]]], "templates": []}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A folder of files that are an hour old."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownTeachers:
    """Which takes the files that a test just wrote for old ones."""
    monkeypatch.setattr(known, "_RACY_S", -60.0)
    return KnownTeachers(tmp_path / "memory")


def test_what_a_teacher_said_is_recalled_to_the_last_field(memory: KnownTeachers, teacher: Path) -> None:
    assert memory.recall(str(teacher), QUESTION) is None
    memory.remember(str(teacher), QUESTION, FACTS)
    assert memory.recall(str(teacher), QUESTION) == FACTS


def touch(folder: Path) -> None:
    status = (folder / "config.json").stat()
    os.utime(folder / "config.json", ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def write_over_with_old_times(folder: Path) -> None:
    path = folder / "model.safetensors"
    status = path.stat()
    path.write_text("M" + path.name[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def copy_over(folder: Path) -> None:
    shutil.copy2(folder / "config.json", folder / "copy")
    (folder / "copy").replace(folder / "config.json")


@pytest.mark.parametrize(
    "change",
    [touch, write_over_with_old_times, copy_over, lambda folder: (folder / "more").touch(),
     lambda folder: (folder / "config.json").unlink()],
)  # fmt: skip
def test_a_teacher_whose_files_changed_is_not_known(
    change: Callable[[Path], None], memory: KnownTeachers, teacher: Path
) -> None:
    memory.remember(str(teacher), QUESTION, FACTS)
    change(teacher)
    assert memory.recall(str(teacher), QUESTION) is None


def test_another_question_or_version_is_not_answered(
    memory: KnownTeachers, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.remember(str(teacher), QUESTION, FACTS)
    assert memory.recall(str(teacher), {**QUESTION, "templates": ["a photo of {}"]}) is None
    monkeypatch.setattr(known, "_versions", lambda: {"torch": "98.7"})
    assert memory.recall(str(teacher), QUESTION) is None


def test_a_file_that_was_written_just_now_is_not_trusted(tmp_path: Path, teacher: Path) -> None:
    memory = KnownTeachers(tmp_path / "memory")
    memory.remember(str(teacher), QUESTION, FACTS)
    assert not (tmp_path / "memory").exists()


def test_what_is_no_file_here_is_never_remembered(memory: KnownTeachers, tmp_path: Path) -> None:
    for source in ("torchvision:resnet18", "nobody/nowhere", str(tmp_path / "absent"), "a/b/c"):
        memory.remember(source, QUESTION, FACTS)
    assert not (tmp_path / "memory").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"classes": 1}', json.dumps({"classes": ["a"]}), "nan", "\0"])
def test_a_damaged_memory_is_no_memory(content: str, memory: KnownTeachers, teacher: Path, tmp_path: Path) -> None:
    memory.remember(str(teacher), QUESTION, FACTS)
    (remembered,) = (tmp_path / "memory").iterdir()
    remembered.write_text(content)
    assert memory.recall(str(teacher), QUESTION) is None


def test_what_was_forgotten_is_asked_anew(memory: KnownTeachers, teacher: Path) -> None:
    memory.forget(str(teacher), QUESTION)
    memory.remember(str(teacher), QUESTION, FACTS)
    memory.forget(str(teacher), QUESTION)
    assert memory.recall(str(teacher), QUESTION) is None


def test_a_memory_that_cannot_be_written_is_no_error(tmp_path: Path, teacher: Path, memory: KnownTeachers) -> None:
    (tmp_path / "memory").write_text("a file where the folder would be")
    memory.remember(str(teacher), QUESTION, FACTS)
    assert memory.recall(str(teacher), QUESTION) is None


def test_a_model_in_the_local_hub_cache_is_known_by_its_files(
    memory: KnownTeachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "models--google--medsiglip-448" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    memory.remember("google/medsiglip-448", QUESTION, FACTS)
    assert memory.recall("google/medsiglip-448", QUESTION) == FACTS
    assert memory.recall("google/medsiglip-384", QUESTION) is None
