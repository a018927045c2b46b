"""The run folder: what stands in it, what follows from what, and what is said of a damaged file."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from data.scan import scan_data
from pipeline.errors import RunError
from pipeline.inference import load_student
from pipeline.runs import METRIC_COLUMNS, RunFolder
from pipeline.train import saved_config, train
from pipeline.training.config import TrainConfig

from .run_metrics import metrics

CONFIG = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=2, batch_size=8)


def test_a_run_folder_holds_what_the_documentation_says(tiny_run: Path, tiny_data: Path) -> None:
    assert {path.name for path in tiny_run.iterdir()} == {
        "last.pt", "best.pt", "metrics.csv", "config.json", "classes.json", "report.html",
    }  # fmt: skip
    assert (tiny_run / "metrics.csv").read_text().splitlines()[0] == ",".join(METRIC_COLUMNS)
    assert [row["epoch"] for row in metrics(tiny_run)] == ["1", "2"]
    assert json.loads((tiny_run / "classes.json").read_text()) == list(scan_data(tiny_data).classes["class"])
    assert json.loads((tiny_run / "config.json").read_text())["temperature"] == 4.0
    torch.load(tiny_run / "last.pt", weights_only=True)
    torch.load(tiny_run / "best.pt", weights_only=True)


def test_best_and_metrics_follow_from_last_after_a_kill_between_them(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    for name in ("best.pt", "metrics.csv", "config.json", "classes.json", "report.html"):
        (run / name).unlink()
    train(tiny_data, tiny_cache, run, saved_config(run), resume=True, workers=0)
    assert metrics(run) == metrics(tiny_run)
    one, other = (torch.load(path / "best.pt", weights_only=True) for path in (run, tiny_run))
    assert one["epoch"] == other["epoch"]
    assert (run / "report.html").exists()
    assert all(torch.equal(weights, other["model"][name]) for name, weights in one["model"].items())


@pytest.mark.parametrize("program", [b"\x80\x02h\x05.", b"\x80\x02s."], ids=["no such entry", "empty stack"])
def test_a_checkpoint_with_flipped_bits_is_one_line(program: bytes, tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    with zipfile.ZipFile(run / "last.pt") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(run / "last.pt", "w") as archive:
        for name, part in content.items():
            archive.writestr(name, program if name.endswith("data.pkl") else part)
    with pytest.raises(RunError, match=r"last\.pt is damaged"):
        saved_config(run)


def test_a_damaged_best_student_is_written_again_from_the_last_state(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "best.pt").write_bytes((tiny_run / "best.pt").read_bytes()[:1000])
    with pytest.raises(RunError, match=r"best\.pt is damaged .*; delete it, and `softlabel train .* --resume` writes"):
        load_student(run, "cpu")
    (run / "best.pt").unlink()
    train(tiny_data, tiny_cache, run, saved_config(run), resume=True, workers=0, report=False)
    one, other = (RunFolder(folder).load_best() for folder in (run, tiny_run))
    assert all(torch.equal(weights, other.weights[name]) for name, weights in one.weights.items())
    (run / "best.pt").write_bytes(b"")
    (run / "last.pt").unlink()
    with pytest.raises(RunError, match="train this run anew"):
        load_student(run, "cpu")
