"""A report of a real run: gathered from its folder, its cache and the images; and the command that writes it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cache import CacheError
from pipeline.errors import RunError
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.export import export
from pipeline.report.content import ReportContent, shown_samples
from pipeline.report.gather import PICTURE_PX, gather
from pipeline.report.page import render_report

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A finished run that may be changed."""
    return shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("report*.html"))


@pytest.fixture(scope="module")
def gathered(tiny_run: Path, tiny_data: Path) -> ReportContent:
    """With the validation images."""
    return gather(tiny_run, tiny_data, workers=0)


def test_what_is_gathered_is_what_evaluate_measures(gathered: ReportContent, tiny_run: Path, tiny_data: Path) -> None:
    measured = evaluate(tiny_run, tiny_data, EvaluateConfig(split="val", n_resamples=40), workers=0).splits["val"]
    answers = gathered.answers["class"]
    assert answers.keys == measured.answers.keys
    assert (answers.student_NC == measured.answers.student_NC).all()
    assert answers.teacher_NC is not None
    best = max(gathered.rows, key=lambda row: row["val_macro_f1"])
    assert measured.student.metrics.macro_f1 == pytest.approx(best["val_macro_f1"])


def test_a_gathered_run_knows_its_size_settings_and_ids(gathered: ReportContent, tiny_run: Path) -> None:
    export(tiny_run, tiny_run.parent / "m.pt")
    assert gathered.n_parameters == 346_917
    assert gathered.exported_bytes == pytest.approx((tiny_run.parent / "m.pt").stat().st_size, rel=0.01)
    assert {"recipe_id", "cache_id"} <= gathered.ids.keys()
    assert gathered.settings["student"] == "shufflenet_v2_x0_5"
    assert "cache" not in gathered.settings
    assert {verdict.slug for verdict in gathered.verdicts} >= {"validation-set-too-small"}


def test_the_page_of_a_training_is_that_of_the_command(gathered: ReportContent, tiny_run: Path) -> None:
    assert render_report(gathered) == (tiny_run / "report.html").read_text(encoding="utf-8")


def test_without_images_there_are_curves_and_nothing_is_said_of_the_teacher(tiny_run: Path) -> None:
    content = gather(tiny_run)
    assert (content.answers, len(content.rows)) == ({}, 2)
    assert [verdict.slug for verdict in content.verdicts] == [""]


def test_pictures_are_of_the_images_that_are_shown(tiny_run: Path, tiny_data: Path) -> None:
    content = gather(tiny_run, tiny_data, split="test", with_images=True, workers=0)
    answers = content.answers["class"]
    shown = {answers.keys[n] for group in shown_samples(answers) for n in group.numbers}
    assert content.pictures.keys() == shown
    for picture in content.pictures.values():
        height = re.search(rb"\xff\xc0..\x08(..)(..)", picture, re.DOTALL)
        assert height is not None
        assert [int.from_bytes(side, "big") for side in height.groups()] == [PICTURE_PX] * 2


def test_a_cache_that_is_gone_leaves_out_the_teacher(
    run: Path, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "cache": str(run / "gone.h5")}))
    with caplog.at_level("INFO"):
        content = gather(run, tiny_data, workers=0)
    assert content.answers["class"].teacher_NC is None
    assert "no verdicts on the teacher" in caplog.text
    with pytest.raises(CacheError, match=r"gone\.h5"):
        gather(run, tiny_data, cache=run / "gone.h5", workers=0)


def test_verdicts_are_never_on_the_teacher_of_another_cache(
    run: Path, tiny_data: Path, tiny_cache: Path, resealed: Callable[..., Path]
) -> None:
    assert any(one.slug.startswith("t") for one in gather(run, tiny_data, workers=0).verdicts)
    other = resealed(tiny_cache, identity={"teacher": {"kind": "another"}})
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "cache": str(other)}))
    content = gather(run, tiny_data, workers=0)
    assert not [one.line for one in content.verdicts if one.slug.startswith("t")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.csv", None, "metrics.csv is missing or damaged"),
        ("metrics.csv", "epoch,val_macro_f1\n", "has no epoch yet"),
        ("metrics.csv", "epoch,val_macro_f1\n1,one\n", "missing or damaged"),
        ("metrics.csv", "epoch,loss\n1,1\n", "missing or damaged"),
        ("config.json", "{}", "config.json is missing or damaged"),
        ("config.json", "[]", "config.json is missing or damaged"),
        ("best.pt", None, "no epoch of"),
    ],
)
def test_a_damaged_run_is_said(name: str, content: str | None, said: str, run: Path) -> None:
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(RunError, match=said):
        gather(run)


def test_the_command_writes_pages_that_say_what_they_are_of(cli: Cli, run: Path, tiny_data: Path) -> None:
    code, out, err = cli("report", run)
    assert code == 0, err
    assert re.fullmatch(rf"{re.escape(str(run))}/report\.html: 0 verdicts \(name DATA .*\), \d+ kB\n", out)
    code, out, err = cli("report", run, tiny_data, "--split", "test", "--with-images", "--workers", 0)
    assert code == 0, err
    assert re.search(r"report-test-images\.html: \d verdicts, \d+ kB, 1\d images in it", out)
    names = {path.name for path in tiny_data.glob("test/*/*")}
    html = (run / "report-test-images.html").read_text(encoding="utf-8")
    assert "Scores on test: 15 images" in html
    assert not any(name in html for name in names)
    code, out, err = cli("report", run)
    assert (code, out) == (1, "")
    assert "report.html exists: choose another name by -o, or delete it" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "no such run folder or model file: nothing"),
        (("DATA",), "is not a run folder"),
        (("EXPORTED",), "is a file; a report needs the run folder"),
        (("SEEDS",), "holds 2 runs: report one of them, such as"),
        (("RUN", "--with-images"), "--with-images needs the images: `softlabel report RUN DATA --with-images"),
        (("RUN", "--split", "test", "--cache", "CACHE"), "--split and --cache needs the images"),
        (("RUN", "DATA", "-o", "nowhere/page.html"), "the folder of nowhere/page.html does not exist"),
        (("RUN", "nothing"), "no such folder: nothing"),
        (("RUN", "DATA", "--cache", "EXPORTED"), "m.pt"),
    ],
)
def test_a_users_mistake_is_one_error_line_and_leaves_nothing(
    words: tuple[str, ...], said: str, cli: Cli, run: Path, tiny_data: Path, tiny_cache: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.pt").write_bytes(b"exported")
    for seed in (0, 1):
        (tmp_path / "seeds" / f"seed-{seed}").mkdir(parents=True)
    given = {
        "RUN": run, "DATA": tiny_data, "CACHE": tiny_cache, "EXPORTED": tmp_path / "m.pt", "SEEDS": tmp_path / "seeds"
    }  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    code, out, err = cli("report", *(given.get(word, word) for word in words))
    assert (code, out) == (1, ""), err
    assert said in err
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_swapped_arguments_are_told_their_order(cli: Cli, run: Path, tiny_data: Path) -> None:
    code, _, err = cli("report", tiny_data, run)
    assert (code, "the order is `softlabel report MODEL DATA`" in err) == (1, True), err
