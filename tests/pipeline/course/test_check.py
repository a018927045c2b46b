"""Whether a file is what the course takes: each rule, broken once."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.course.check import CheckedFile, _check_logits, check_file
from pipeline.errors import CourseError, OverBudget, PipelineError

from .conftest import CARD, Cli, WriteFile, tiny_student
from .loopback import CourseService


class Pair(nn.Module):
    """Answers with two tensors."""

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs, inputs


class Mixing(nn.Module):
    """Each row depends on the others."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        means = inputs.mean(dim=(1, 2, 3)).unsqueeze(1).repeat(1, 10)
        return 1000 * (means - means.mean(dim=0, keepdim=True))


def test_a_file_by_the_contract_is_described(student_file: Path, really_checked: Callable[..., CheckedFile]) -> None:
    found = really_checked(student_file, n_classes=10, budget_mb=25.0)
    assert (found.n_classes, found.classes) == (10, CARD.classes)
    assert found.content == student_file.read_bytes()
    assert found.sha256 == hashlib.sha256(student_file.read_bytes()).hexdigest()
    assert found.runtime == f"torch {torch.__version__}"
    assert "1. class, 10. class, 2. class" in found.to_text()
    assert found.to_text().startswith(f"{student_file}: 0.01 MB, runs in torch ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size_px": 96}, "was made for images of 96 px, expected 224"),
        ({"geometry": "pad"}, "was made for images by 'pad', expected warp"),
        ({"mean": (0.5, 0.5, 0.5)}, "another mean and std than ImageNet's"),
        ({"std": (0.5, 0.5, 0.5)}, "another mean and std than ImageNet's"),
        ({"tasks": {"a": CARD.classes[:5], "b": CARD.classes[5:]}}, "answers 2 tasks, expected one"),
        ({"tasks": {"class": CARD.classes[::-1]}}, "has its classes in another order than sorted()"),
        (
            {"tasks": {"class": tuple(f"{number}. class" for number in range(1, 11))}},  # as a numeric sort has them
            "has its classes in another order than sorted()",
        ),
    ],
)
def test_a_card_by_another_contract_is_refused_with_the_export_or_the_training_that_keeps_it(
    changes: dict[str, Any], said: str, write_file: WriteFile
) -> None:
    path = write_file(tiny_student(), dataclasses.replace(CARD, **changes))
    with pytest.raises(CourseError) as caught:
        check_file(path)
    assert said in str(caught.value)
    if said.startswith(("was made for images", "answers")):  # which no export can mend
        assert "train one by `softlabel train DATA CACHE -o RUN --student-size 224`" in str(caught.value)
    else:
        assert str(caught.value).endswith(f"write it with `softlabel export RUN --for-course -o '{path}'`")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (tiny_student().train(), "is in training mode: call eval() before torch.jit.script"),
        (nn.Sequential(nn.Conv2d(1, 2, 1)).eval(), "does not run on float32 [1, 3, 224, 224]: RuntimeError: "),
        (Pair().eval(), "answers with tuple, expected a tensor of torch.float32"),
    ],
)
def test_a_module_that_the_server_could_not_use_is_refused(module: nn.Module, said: str, write_file: WriteFile) -> None:
    with pytest.raises(PipelineError) as caught:
        check_file(write_file(module))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_answers_in_half_precision_are_refused(write_file: WriteFile) -> None:
    class Half(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.mean(dim=(1, 2)).half()

    with pytest.raises(CourseError, match=r"answers with torch.float16, expected a tensor of torch.float32"):
        check_file(write_file(Half().eval()))


def test_rows_that_mix_are_found_by_the_process_that_has_only_torch(write_file: WriteFile) -> None:
    with pytest.raises(CourseError, match="answers an image with other logits where it has others beside it"):
        check_file(write_file(Mixing().eval()))


@pytest.mark.parametrize(
    ("alone", "together", "said"),
    [
        (np.zeros((1, 7)), np.zeros((4, 7)), "answers 1 image with shape [1, 7], expected [1, 10]"),
        (np.zeros(10), np.zeros((4, 10)), "answers 1 image with shape [10], expected [1, 10]"),
        (np.zeros((1, 10)), np.zeros((1, 10)), "answers 4 images with shape [1, 10], expected [4, 10]"),
        (np.zeros((1, 10)), np.full((4, 10), np.nan), "logits that are not finite"),
        (np.full((1, 10), np.inf), np.zeros((4, 10)), "logits that are not finite"),
        (np.full((1, 10), 0.002), np.zeros((4, 10)), "answers an image with other logits"),
        (np.full((1, 10), 1000.5), np.full((4, 10), 1000.0), ""),
    ],
)
def test_logits_of_another_shape_not_finite_or_mixed_are_refused(
    alone: np.ndarray, together: np.ndarray, said: str
) -> None:
    if not said:
        _check_logits(Path("x.pt"), alone, together, 10)
        return
    with pytest.raises(CourseError) as caught:
        _check_logits(Path("x.pt"), alone, together, 10)
    assert said in str(caught.value)


def test_a_frozen_module_of_others_is_in_evaluation_mode(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.freeze(torch.jit.script(tiny_student())), tmp_path / "frozen.pt")
    assert check_file(tmp_path / "frozen.pt").classes is None


def test_a_file_of_the_budget_is_too_large_and_one_byte_less_is_not(write_file: WriteFile) -> None:
    path = write_file(tiny_student(), dataclasses.replace(CARD, size_px=96))
    with pytest.raises(OverBudget, match=r"the course server takes less than 0.0\d+ MB: write it with `softlabel"):
        check_file(path, budget_mb=path.stat().st_size / 1e6)
    with pytest.raises(CourseError, match="96 px"):  # which is asked after the size
        check_file(path, budget_mb=(path.stat().st_size + 1) / 1e6)


def test_other_files_are_one_sentence_and_nothing_is_asked_of_the_server(
    cli: Cli, service: CourseService, student_file: Path, tmp_path: Path
) -> None:
    content = student_file.read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "bad.pt").write_bytes(content[:-30] + b"PK\5\6" + b"\xff" * 18)
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a/archive_format", "pt2")
    mistakes = {
        "none.pt": "no such model file", "": "is a folder: export the run first", "cut.pt": "is not an exported model",
        "text.pt": "is not an exported model", "empty.pt": "is not an exported model", "bad.pt": "bad.pt",
        "model.onnx": "is onnx; the course server takes TorchScript", "zip.pt": "is torch-export; the course server",
    }  # fmt: skip
    for name, said in mistakes.items():
        code, out, err = cli("course", "submit", tmp_path / name)
        assert (code, out, err.count("\n")) == (1, "", 1), err
        assert said in err
        assert "softlabel export" in err
    assert service.asked == []
