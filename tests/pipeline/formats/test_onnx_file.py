"""ONNX files: the answers of the module that they were made from, its card, and nothing of this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.card import StudentCard
from pipeline.errors import RunError, SettingError
from pipeline.formats import onnx_file, onnx_int8, torchscript
from pipeline.formats.fresh import FreshProcess

Write = Callable[[str], Path]


@pytest.fixture(scope="module")
def model(small: nn.Module, small_card: StudentCard) -> Any:
    return onnx_file.to_model(small, small_card)


@pytest.fixture
def write(
    model: Any, small: nn.Module, small_card: StudentCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Write:
    """`write(weights)`: a file of the one model that was exported."""
    import onnx

    def write(weights: str) -> Path:
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        monkeypatch.setattr(onnx_file, "to_model", lambda module, card: copied)
        path = tmp_path / f"{weights}.onnx"
        path.write_bytes(onnx_file.to_bytes(small, small_card, weights))
        return path

    return write


@pytest.mark.parametrize(("weights", "off_by"), [("fp32", 1e-5), ("fp16", 1e-3), ("int8", 3e-2)])
def test_a_file_answers_as_its_module_and_carries_the_card(
    weights: str, off_by: float, write: Write, small: nn.Module, small_card: StudentCard, noise: Tensor
) -> None:
    loaded, card = onnx_file.load(write(weights))
    assert card == small_card
    found = loaded(noise)
    assert float((found - small(noise).detach()).abs().max()) < off_by
    np.testing.assert_allclose(loaded(noise[:1]).numpy(), found[:1].numpy(), atol=1e-5)


def test_smaller_weights_make_smaller_files(write: Write) -> None:
    plain, half, eight = (write(weights).stat().st_size for weights in ("fp32", "fp16", "int8"))
    n_layers = 16 * 9 * 64 + 64 * 3
    assert plain - half == pytest.approx(2 * n_layers, abs=600)
    assert half - eight == pytest.approx(n_layers, abs=600)


def test_a_file_says_nothing_of_the_machine_that_made_it(write: Write) -> None:
    content = write("fp32").read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert str(Path(__file__).parent).encode() not in content


def test_a_program_can_be_written_too(small: nn.Module, small_card: StudentCard, noise: Tensor, tmp_path: Path) -> None:
    program = torchscript.load_program(torchscript.program(small))
    path = tmp_path / "own.onnx"
    path.write_bytes(onnx_file.to_bytes(program, small_card, "int8"))
    found = onnx_file.load(path)[0](noise)
    assert float((found - small(noise).detach()).abs().max()) < 3e-2


def test_int8_arithmetic_is_nearly_as_the_module_and_runs_without_torch(
    model: Any,
    small: nn.Module,
    small_card: StudentCard,
    noise: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_file, "to_model", lambda module, card: model)
    path = tmp_path / "int8.onnx"
    path.write_bytes(onnx_int8.to_bytes(small, small_card, [noise.numpy(), noise.numpy()]))
    _, card = onnx_file.load(path)
    assert card == small_card
    with FreshProcess(path, "onnx", threads=1) as process:
        found = process.logits(noise.numpy())
        assert process.runtime.startswith("onnxruntime ")
    off = np.abs(found - small(noise).detach().numpy()).max()
    assert 0 < off < 0.1


def test_what_is_no_onnx_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("hello")
    with pytest.raises(RunError, match=r"m\.onnx is not an ONNX model: "):
        onnx_file.load(tmp_path / "m.onnx")


def test_a_model_of_others_has_no_card(model: Any, tmp_path: Path) -> None:
    import onnx

    foreign = onnx.ModelProto()
    foreign.CopyFrom(model)
    del foreign.metadata_props[:]
    (tmp_path / "m.onnx").write_bytes(foreign.SerializeToString())
    with pytest.raises(RunError, match=r"has no softlabel\.json inside: it was not made by `softlabel export`"):
        onnx_file.load(tmp_path / "m.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_not_installed_is_named(
    package: str, small: nn.Module, small_card: StudentCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingError, match=rf"ONNX files need {package}: pip install '\.\[onnx\]'"):
        onnx_file.to_model(small, small_card)


class Unspeakable(nn.Module):
    """What no exporter has words for."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.linalg.eig(inputs.mean(1)).eigenvalues.real


def test_a_model_without_words_in_onnx_says_to_take_torchscript(small_card: StudentCard) -> None:
    with pytest.raises(SettingError, match=r"small cannot be written as ONNX \(.*\): take --format torchscript"):
        onnx_file.to_model(Unspeakable(), small_card)


def test_onnx_runtime_notes_nothing_of_who_runs_what(write: Write, noise: Tensor, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
        path = write("fp32")
        with FreshProcess(path, "onnx", threads=1) as process:
            process.logits(noise.numpy())
    assert list(home.iterdir()) == []
