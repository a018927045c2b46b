"""Words of a stranger's cache (classes, teacher, prompts, provenance) in what commands print and write."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cache import CacheReader
from pipeline.predict import PredictConfig
from pipeline.prediction_rows import write_predictions

Cli = Callable[..., tuple[int, str, str]]
HOSTILE = "\x1b[31m<script>alert(1)<script>\u202e"
SHOWN = r"\x1b[31m<script>alert(1)<script>\u202e"


@pytest.fixture(scope="module")
def data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny images, one of whose classes has a hostile name: that of the stranger's cache."""
    copy = shutil.copytree(tiny_data, tmp_path_factory.mktemp("words") / "images")
    for split in copy.iterdir():
        if split.is_dir():
            (split / "melanoma").rename(split / HOSTILE)
    return copy


@pytest.fixture
def cache(tiny_cache: Path, resealed: Callable[..., Path]) -> Path:
    with CacheReader(tiny_cache) as reader:
        identity = json.loads(json.dumps(reader.manifest.identity).replace('"melanoma"', json.dumps(HOSTILE)))
    identity["teacher"]["prompts"] = {HOSTILE: [HOSTILE]}
    provenance = {
        "teacher": HOSTILE, "created": HOSTILE, "skipped": [{"key": HOSTILE, "reason": HOSTILE}], HOSTILE: HOSTILE,
        "skipped_files": {HOSTILE: 3}, "task": HOSTILE,
    }  # fmt: skip
    return resealed(tiny_cache, identity=identity, provenance=provenance)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def harmless(code: int, out: str, err: str) -> str:
    """Both streams, every line of which is printable."""
    assert code in (0, 1), err
    assert "Traceback" not in err
    for line in (out + err).splitlines():
        assert line.replace("\r", "").isprintable(), line
    return out + err


def test_every_command_shows_them_and_obeys_none(cli: Cli, data: Path, cache: Path, tmp_path: Path) -> None:
    assert SHOWN in harmless(*cli("cache", "info", cache))
    assert json.loads(cli("cache", "info", cache, "--json")[1])["provenance"]["teacher"] == HOSTILE
    assert "\x1b" not in cli("cache", "info", cache, "--json")[1]
    harmless(*cli("cache", "info", cache, "--data", data))
    harmless(*cli("cache", "verify", cache))
    run, student = tmp_path / "run", ("--student", "shufflenet_v2_x0_5", "--student-size", 32)
    said = cli("train", data, cache, "-o", run, *student, "--epochs", 1, "--workers", 0, "--anyway")
    assert SHOWN in harmless(*said)
    assert said[0] == 0
    harmless(*cli("evaluate", run, data, "--workers", 0, "-o", tmp_path / "scores"))
    harmless(*cli("report", run, data, "--workers", 0))
    page = (run / "report.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    exported = tmp_path / "m.pt"
    harmless(*cli("export", run, "-o", exported))
    image = next(path for path in sorted((data / "test").rglob("*")) if path.is_file())
    assert json.dumps(HOSTILE) in harmless(*cli("predict", exported, image, "--format", "json"))
    terminal = Terminal()
    write_predictions(exported, [image], terminal, PredictConfig())
    assert SHOWN in harmless(0, terminal.getvalue(), "")


def test_a_mismatch_with_them_is_told_in_printable_lines(cli: Cli, tiny_data: Path, cache: Path, tiny_cache: Path,
                                                         tmp_path: Path) -> None:  # fmt: skip
    student = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--workers", 0)
    assert SHOWN in harmless(*cli("train", tiny_data, cache, "-o", tmp_path / "run", *student))
    assert r"\x1b" in harmless(*cli("cache", "merge", cache, tiny_cache, "-o", tmp_path / "m.h5"))


def test_a_training_refuses_numbers_that_are_none_before_its_first_step(
    cli: Cli, tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    from reliability.mutants import arrays_of
    from reliability.strange import fit_seal, write

    arrays = arrays_of(tiny_cache)
    arrays["logits/0"][7, 1] = float("nan")
    fit_seal(arrays)
    write(tmp_path / "nan.h5", arrays, {})
    assert cli("cache", "info", tmp_path / "nan.h5")[0] in (0, 1)
    code, _, err = cli("train", tiny_data, tmp_path / "nan.h5", "-o", tmp_path / "run", "--workers", 0,
                       "--student", "shufflenet_v2_x0_5", "--student-size", 32)  # fmt: skip
    assert code == 1
    said = f"{tmp_path / 'nan.h5'} is not a sound cache: logits/0 is not finite in row 7"
    assert err.splitlines()[-1].startswith(f"Error: {said}")
    assert not (tmp_path / "run").exists()
