"""`softlabel teacher fit`: one line of result, a line an epoch, and each mistake one error line."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.fit.steps import Steps

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fit(
    cli: Cli, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run `teacher fit` on the tiny data, into tmp_path/T."""

    def fit(*words: object, source: object = tiny_teacher) -> tuple[int, str, str]:
        line = ("teacher", "fit", tiny_data, "--from", source, "-o", tmp_path / "T", "--workers", 0, *words)
        monkeypatch.setattr(sys, "argv", ["softlabel", *map(str, line)])
        return cli(*line)

    return fit


def test_from_a_model_to_a_cache_of_the_fitted_teacher(
    fit: Callable[..., tuple[int, str, str]], cli: Cli, tiny_data: Path, tmp_path: Path
) -> None:
    code, out, err = fit("--epochs", 2, "--lr", "1e-3", "--batch-size", 8, "--last-layers", 1, "--weight-decay", 0.1)
    assert code == 0, err
    assert out.startswith(f"{tmp_path / 'T'}: best epoch ")
    assert len(out.splitlines()) == 1
    for said in ("prompt  melanoma: melanoma", "(text tower frozen, 1 of 2 image blocks)", "30 train, 15 val (split"):
        assert said in err
    assert sum(line.startswith("epoch ") for line in err.splitlines()) == 2
    build = ("cache", "build", tiny_data, "-o", tmp_path / "t.h5", "--teacher", tmp_path / "T", "--views", 1)
    code, out, err = cli(*build)
    assert code == 0, err
    assert "60 views of 60 images" in out


def test_ctrl_c_ends_with_the_line_that_goes_on_and_it_does(
    fit: Callable[..., tuple[int, str, str]], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, left = Steps.__call__, 0

    def interrupted(self: Steps, *arguments: Any) -> float:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Steps, "__call__", interrupted)
    words = ("--epochs", 2, "--batch-size", 8, "--train-text", "--gradient-checkpointing")
    left = 2
    code, _, err = fit(*words)
    assert code == 130
    assert "--resume" not in err, "in the first epoch there is nothing to resume"
    left = 6
    code, _, err = fit(*words)
    assert code == 130
    line = shlex.split(err.strip().splitlines()[-1])
    assert line[0] == "softlabel"
    assert line[-1] == "--resume"
    code, _, err = cli(*line[1:])
    assert code == 0, err
    assert "resumed after epoch 1 of 2" in err
    assert (tmp_path / "T" / "model.safetensors").exists()
    code, _, err = cli("teacher", "fit", line[3], "--from", line[5], "-o", tmp_path / "T", "--resume")
    assert (code, "finished already" in err) == (0, True), "settings that are not named are the fit's own"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--last-layers", 3), "last_layers must be in 0..2, the blocks of this image tower, got 3"),
        (("--epochs", 0), "epochs must be in 1..65534, got 0"),
        (("--lr", 0), "lr_peak must be in 1e-09..10, got 0.0"),
        (("--batch-size", 0), "batch_size must be in 1..1e+06, got 0"),
        (("--val-fraction", 0.9), "val_fraction must be in 0.01..0.5, got 0.9"),
        (("--weight-decay", -1), "weight_decay must be in 0..10, got -1.0"),
        (("--device", "mps"), "this machine has no device 'mps'"),
        (("--prompts", "nothing.yaml"), "cannot read the prompts in nothing.yaml"),
        (("--resume",), "holds no interrupted fit: start one without --resume"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: tuple[object, ...], said: str, fit: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, err = fit(*words)
    assert (code, out) == (1, "")
    error = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1
    assert said in error[0]
    assert "Traceback" not in err
    assert not (tmp_path / "T").exists()


def test_what_is_no_model_and_a_folder_in_use_are_refused(
    fit: Callable[..., tuple[int, str, str]], tiny_data: Path, tmp_path: Path
) -> None:
    code, _, err = fit(source=tiny_data)
    assert (code, "is not a SigLIP or CLIP model" in err) == (1, True)
    (tmp_path / "T").mkdir()
    (tmp_path / "T" / "mine").write_text("mine")
    code, _, err = fit()
    assert (code, "T is not empty: choose another -o" in err) == (1, True)
    (tmp_path / "T" / "mine").unlink()
    (tmp_path / "T").rmdir()
    (tmp_path / "T").write_text("mine")
    code, _, err = fit()
    assert (code, "T is a file, where a folder is to be written" in err) == (1, True)


def test_what_is_fitted_elsewhere_is_told_from_what_is_not_there(
    fit: Callable[..., tuple[int, str, str]], tiny_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "student.pt").write_bytes(b"PK")
    for source in (tiny_run, tmp_path / "student.pt", "torchvision:resnet18", "timm:vit_base"):
        code, _, err = fit(source=source)
        assert (code, f"Error: {source} is no SigLIP or CLIP model" in err) == (1, True)
        assert "softlabel cache build --teacher" in err
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "fit_config.json").write_text("{}")
    code, _, err = fit(source=tmp_path / "half")
    assert (code, "half is not finished: go on with it by `softlabel teacher fit ... --resume`" in err) == (1, True)


@pytest.mark.parametrize("words", [(), ("DATA", "-o", "T"), ("DATA", "--from", "M"), ("DATA", "--precision", "fp8")])
def test_a_wrong_command_line_is_a_usage_error(words: tuple[str, ...], cli: Cli) -> None:
    code, _, err = cli("teacher", "fit", *words)
    assert code == 2
    assert "Usage: softlabel teacher fit" in err or "Try 'softlabel teacher fit" in err
