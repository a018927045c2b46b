"""An output that cannot be written under its name is one error line at the start, before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import SettingError
from pipeline.outputs import check_output_file, check_output_folder
from pipeline.teachers import loading
from pipeline.training.trainer import Trainer

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def one_error(
    cli: Cli, tiny_data: Path, tiny_teacher: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., str]:  # fmt: skip
    """The one error line of a command that is run where `folder` is a folder and `file` is a file; nothing changes."""

    def no_work(*args: object, **options: object) -> None:
        pytest.fail("the work began")

    def one_error(*words: str) -> str:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("mine")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(loading, "_load", no_work)
        monkeypatch.setattr(Trainer, "run_epochs", no_work)
        given = {"DATA": tiny_data, "TEACHER": tiny_teacher, "CACHE": tiny_cache, "RUN": tiny_run}
        code, out, err = cli(*(given.get(word, word) for word in words))
        assert (code, out) == (1, ""), err
        assert err.startswith("Error: ")
        assert len(err.splitlines()) == 1
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
        assert (tmp_path / "file").read_text() == "mine"
        return err

    return one_error


BUILD = ("cache", "build", "DATA", "--teacher", "TEACHER")


@pytest.mark.parametrize("words", [
    BUILD, ("cache", "merge", "CACHE"), ("export", "RUN"),
    ("evaluate", "RUN", "DATA", "--json"),
], ids=["build", "merge", "export", "evaluate"])  # fmt: skip
@pytest.mark.parametrize("out", [".", "..", "/", "folder"])
def test_a_folder_where_a_file_is_to_be_written_is_refused_at_the_start(
    words: tuple[str, ...], out: str, one_error: Callable[..., str]
) -> None:
    given = (out,) if words[-1] == "--json" else ("-o", out)
    assert f"{out} is a folder: name the file to write" in one_error(*words, *given)


@pytest.mark.parametrize("words", [
    (*BUILD, "-o"), ("cache", "merge", "CACHE", "-o"), ("export", "RUN", "-o"), ("evaluate", "RUN", "DATA", "--json"),
], ids=["build", "merge", "export", "evaluate"])  # fmt: skip
def test_a_file_in_a_folder_that_does_not_exist_is_refused_at_the_start(
    words: tuple[str, ...], one_error: Callable[..., str]
) -> None:
    assert "the folder of nowhere/x does not exist" in one_error(*words, "nowhere/x")


@pytest.mark.parametrize("out", ["file", "file/run", "file/deep/run"])
def test_a_run_folder_that_is_or_is_below_a_file_is_refused_at_the_start(
    out: str, one_error: Callable[..., str]
) -> None:
    assert "file is a file, where a folder is to be written" in one_error("train", "DATA", "CACHE", "-o", out)


def test_names_that_are_free_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.h5").write_text("an old one may be extended")
    for out in (tmp_path / "new.h5", tmp_path / "old.h5", Path("new.h5")):
        check_output_file(out)
    for folder in (tmp_path, tmp_path / "new" / "run", Path("run"), Path()):
        check_output_folder(folder)
    with pytest.raises(SettingError):
        check_output_file(Path())
