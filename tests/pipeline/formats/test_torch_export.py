"""Files of torch.export: the answers of the module that they were made from, its card, and nothing of this machine."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.card import StudentCard
from pipeline.errors import RunError, SettingError
from pipeline.formats import torch_export, torchscript
from pipeline.formats.fresh import FreshProcess


@pytest.fixture(scope="module")
def file(small: nn.Module, small_card: StudentCard, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "m.pt2"
    path.write_bytes(torch_export.to_bytes(small, small_card))
    return path


def test_a_file_answers_as_its_module_here_and_elsewhere(
    file: Path, small: nn.Module, small_card: StudentCard, noise: Tensor
) -> None:
    module, card = torch_export.load(file)
    assert card == small_card
    expected = small(noise).detach()
    for n_images in (5, 1):
        torch.testing.assert_close(module(noise[:n_images]).detach(), expected[:n_images], atol=1e-5, rtol=0)
    with FreshProcess(file, "torch-export", threads=1) as process:
        torch.testing.assert_close(torch.tensor(process.logits(noise.numpy())), expected, atol=1e-5, rtol=0)


def test_a_file_says_nothing_of_the_machine_that_made_it(file: Path) -> None:
    content = file.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert str(Path(__file__).parent).encode() not in content


def test_a_program_is_refused_with_the_formats_that_take_it(small: nn.Module, small_card: StudentCard) -> None:
    program = torchscript.load_program(torchscript.program(small))
    with pytest.raises(SettingError, match="take --format torchscript or onnx"):
        torch_export.to_bytes(program, small_card)


class Branching(nn.Module):
    """Chooses by what it computes, which torch.export cannot follow."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1) if float(inputs.sum()) > 0 else inputs.mean((2, 3))


def test_a_module_that_cannot_be_followed_says_to_take_torchscript(small_card: StudentCard) -> None:
    with pytest.raises(SettingError, match=r"small cannot be written by torch\.export \(.*\): take --format torchscri"):
        torch_export.to_bytes(Branching(), small_card)


def test_what_is_no_such_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_text("hello")
    with pytest.raises(RunError, match=r"m\.pt2 is not a torch\.export file: "):
        torch_export.load(tmp_path / "m.pt2")


def test_a_file_of_others_has_no_card(small: nn.Module, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(small, (torch.zeros(1, 3, 32, 32),)), buffer)
    (tmp_path / "m.pt2").write_bytes(buffer.getvalue())
    with pytest.raises(RunError, match=r"has no softlabel\.json inside"):
        torch_export.load(tmp_path / "m.pt2")
