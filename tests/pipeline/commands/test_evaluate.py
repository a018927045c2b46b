"""The command line of evaluate: what it prints and writes, and what it says to each mistake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.export import export

from ..conftest import TwoTasks

Cli = Callable[..., tuple[int, str, str]]


def test_a_folder_and_json_have_the_same_numbers(cli: Cli, tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    images = sorted(tiny_data.glob("*/*/*.png"))
    rows = [f"{path.relative_to(tiny_data).as_posix()},{i // 2},{i % 7 + 40}" for i, path in enumerate(images)]
    table.write_text("\n".join(["path,lesion,age", *rows]))
    words = ("--csv", table, "--group-column", "lesion", "--subgroup-column", "age, lesion_side")
    code, _, err = cli("evaluate", tiny_run, tiny_data, *words)
    assert (code, "has no column lesion_side; it has path, lesion, age" in err) == (1, True)
    words = (*words[:-1], "age", "--sensitivity-of", "melanoma,melanocytic nevus", "--json", tmp_path / "e.json")
    words = (*words, "--split", "test")
    code, out, err = cli("evaluate", tiny_run, tiny_data, "-o", tmp_path / "scores", *words)
    assert code == 0, err
    assert f"{tmp_path / 'scores'}: scores, tables, figures and predictions" in out
    assert "the threshold was chosen on val" in out
    found = json.loads((tmp_path / "e.json").read_text())
    assert found == json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert list(found["splits"]) == ["test"]
    assert (tmp_path / "scores" / "test" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = cli("evaluate", tiny_run, tiny_data, "-o", tmp_path / "scores")
    assert (code, "is not empty: choose another -o" in err) == (1, True)


@pytest.mark.parametrize(
    ("words", "said", "exit_code"),
    [
        (("RUN", "DATA", "--sensitivity-of", "melanom"), "no class is called 'melanom'; did you mean 'melanoma'?", 1),
        (("RUN", "DATA", "--sensitivity-of", "melanoma,,nevus"), "expected names with commas between them", 2),
        (("RUN", "DATA", "--at-specificity", "90"), "at_specificity must be in 0.01..1, got 90.0", 1),
        (("RUN", "DATA", "--subgroup-column", "sex"), "name it by --csv FILE", 1),
        (("RUN", "DATA", "--csv", "none.csv", "--group-column", "x"), "cannot read none.csv", 1),
        (("RUN", "DATA", "--split", "dev"), "'dev' is not one of", 2),
        (("DATA", "RUN"), "the order is `softlabel evaluate MODEL DATA`", 1),
        (("CACHE", "DATA"), "is a cache, no student", 1),
        (("RUN", "CACHE"), "is a cache, no folder of images", 1),
        (("RUN", "DATA", "--cache", "none.h5"), "none.h5", 1),
        (("RUN", "DATA", "-o", "DATA"), "is not empty: choose another -o", 1),
        (("RUN", "DATA", "--objective", "course"), "--objective course needs --size-factor", 1),
        (("RUN", "DATA", "--size-factor", "0.35"), "pass --objective course as well", 1),
        (("RUN", "DATA", "--objective", "course", "--size-factor", "small"), "such as 0.02/MB; got 'small'", 1),
        (("RUN", "DATA", "--objective", "f1", "--size-factor", "0.35"), "'f1' is not 'course'", 2),
    ],
)
def test_a_mistake_is_one_message(
    words: tuple[str, ...], said: str, exit_code: int, cli: Cli, tiny_run: Path, tiny_data: Path, tiny_cache: Path
) -> None:
    given = {"RUN": tiny_run, "DATA": tiny_data, "CACHE": tiny_cache}
    code, out, err = cli("evaluate", *(given.get(word, word) for word in words))
    assert (code, out) == (exit_code, "")
    assert said in err


def test_the_courses_score_is_shown_of_the_student_alone(
    cli: Cli, tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    export(tiny_run, tmp_path / "m.pt")
    n_bytes = (tmp_path / "m.pt").stat().st_size
    asked = ("--split", "test", "--objective", "course", "--size-factor", "0.02/MB")
    found = {}
    for model in (tiny_run, tmp_path / "m.pt"):
        code, out, err = cli("evaluate", model, tiny_data, *asked, "--json", tmp_path / f"{model.name}.json")
        assert code == 0, err
        assert "the course's own is not public" in out
        split = json.loads((tmp_path / f"{model.name}.json").read_text())["splits"]["test"]
        found[model] = split["objective"]
        student = split["student"]
        expected = 10 * student["macro_f1"] - 0.02 * n_bytes / 1e6
        assert list(found[model]) == ["name", "size_factor", "n_bytes", "macro_f1", "score", "interval"]
        assert found[model]["score"] == pytest.approx(expected)
        width = student["intervals"]["macro_f1"]["high"] - student["intervals"]["macro_f1"]["low"]
        assert found[model]["interval"]["high"] - found[model]["interval"]["low"] == pytest.approx(10 * width)
        assert f"10 x macro F1 - {0.02 * n_bytes / 1e6:.3f} = {expected:.3f} [" in out
    assert found[tiny_run] == found[tmp_path / "m.pt"]
    assert found[tiny_run]["n_bytes"] == n_bytes
    plain = json.loads(cli("evaluate", tiny_run, tiny_data, "--split", "test", "--json", "-")[1])
    assert "objective" not in plain["splits"]["test"]


def test_the_courses_score_of_several_seeds_has_a_mean_and_a_spread(
    cli: Cli, tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        shutil.copytree(tiny_run, tmp_path / f"seed-{seed}")
    asked = ("--split", "test", "--objective", "course", "--size-factor", "0.35", "--json", tmp_path / "e.json")
    code, out, err = cli("evaluate", tmp_path, tiny_data, *asked)
    assert code == 0, err
    (row,) = (line.split() for line in out.splitlines() if line.startswith("objective  "))
    assert row[2:4] == ["+-", "0.000"]
    assert row[1] == row[-1] == row[-2]
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["spread"]["test"]["objective"]["mean"] == pytest.approx(
        10 * found["spread"]["test"]["macro_f1"]["mean"] - 0.35
    )
    assert found["seeds"]["seed-1"]["splits"]["test"]["objective"]["size_factor"] == 0.35


def test_the_course_has_one_task(cli: Cli, two_tasks: TwoTasks, tiny_data: Path, tmp_path: Path) -> None:
    shutil.copytree(two_tasks.run, tmp_path / "seed-0")
    for model in (two_tasks.run, tmp_path):
        asked = ("--objective", "course", "--size-factor", "0.35", *two_tasks.words)
        code, out, err = cli("evaluate", model, tiny_data, *asked)
        assert (code, out) == (1, "")
        assert "the course has one task, and " in err
        assert " answers dx, tone" in err


def test_the_defaults_of_the_command_line_are_those_of_the_settings() -> None:
    from pipeline.commands.evaluate import evaluate as command
    from pipeline.evaluate import EvaluateConfig

    parsed = command.make_context("softlabel", ["RUN", "DATA"]).params
    shared = {name: value for name, value in parsed.items() if hasattr(EvaluateConfig(), name)}
    assert len(shared) == 10
    assert shared == {name: getattr(EvaluateConfig(), name) for name in shared}


def test_an_unsplit_folder_is_measured_and_not_written_to(
    cli: Cli, tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    unsplit = shutil.copytree(tiny_data / "train", tmp_path / "images")
    code, out, err = cli("evaluate", tiny_run, unsplit)
    assert code == 0, err
    assert "train: 20 images" in out
    assert not (unsplit / "splits.csv").exists()
