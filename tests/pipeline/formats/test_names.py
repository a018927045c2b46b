"""Which format a file has, by what is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.card import StudentCard
from pipeline.errors import RunError
from pipeline.formats import onnx_file, reading, torch_export, torchscript
from pipeline.formats.names import format_of, is_export


def test_a_program_is_torchscript_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(torchscript.program(nn.Linear(2, 2)))
    assert format_of(tmp_path / "model.bin") == "torchscript"


def test_torch_export_is_known_from_within(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "m.pt2")
    assert format_of((tmp_path / "m.pt2").rename(tmp_path / "m.pt")) == "torch-export"


def test_onnx_is_known_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08")
    assert format_of(tmp_path / "m.onnx") == "onnx"


def test_a_file_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no such model file: .*m\.pt; make one with `softlabel export RUN -o"):
        format_of(tmp_path / "m.pt")


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_text("hello")
    with pytest.raises(RunError, match="is not an exported model, or not all of one: fetch it again, or make one with"):
        format_of(tmp_path / "m.pt")


def test_a_cut_archive_is_told_as_damaged(tmp_path: Path) -> None:
    content = bytearray(torchscript.program(nn.Linear(2, 2)))
    at = content.rindex(b"PK\x01\x02")
    content[at : at + 4] = b"XXXX"
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(RunError, match=r"m\.pt is damaged .*: write it anew with `softlabel export RUN"):
        format_of(tmp_path / "m.pt")


def test_a_checkpoint_says_to_name_its_run(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(2)}, tmp_path / "best.pt")
    with pytest.raises(RunError, match=r"best\.pt is a checkpoint, no exported model: name its run folder"):
        format_of(tmp_path / "best.pt")


def test_only_what_has_a_card_is_an_export(small: nn.Module, small_card: StudentCard, tmp_path: Path) -> None:
    for name, content in (
        ("export.pt", torchscript.to_bytes(small, small_card)), ("foreign.pt", torchscript.program(small)),
        ("text.pt", b"hello"), ("foreign.onnx", b"\x08\x08"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    assert [path.name for path in sorted(tmp_path.iterdir()) if is_export(path)] == ["export.pt"]
    assert not is_export(tmp_path)
    assert not is_export(Path("/dev/null"))


@pytest.mark.parametrize("name", ["m.pt", "m.pt2", "m.onnx"])
def test_a_byte_that_changed_is_noticed(name: str, small: nn.Module, small_card: StudentCard, tmp_path: Path) -> None:
    write = {"m.pt": torchscript.to_bytes, "m.pt2": torch_export.to_bytes, "m.onnx": onnx_file.to_bytes}[name]
    weight = small[7].weight.detach().numpy().tobytes()[:64]
    content = write(small, small_card)
    assert content.count(weight) == 1
    (tmp_path / name).write_bytes(content)
    reading.load(tmp_path / name)
    (tmp_path / name).write_bytes(content.replace(weight, bytes(byte ^ 0x41 for byte in weight)))
    with pytest.raises(RunError, match=rf"{name} is damaged \(.*\): fetch it again, or export it anew"):
        reading.load(tmp_path / name)


def test_a_file_of_another_format_is_named_where_torchscript_is_needed(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08")
    with pytest.raises(RunError, match="is a file of onnx, and TorchScript is needed here: export it as that"):
        torchscript.load_any(tmp_path / "m.onnx")
