"""The exported file: a module and its card, loaded with nothing but torch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.card import CARD_NAME, StudentCard
from pipeline.errors import RunError
from pipeline.formats.torchscript import load, to_bytes
from pipeline.students.build import build_student

CARD = StudentCard(
    student="shufflenet_v2_x0_5", tasks={"class": ("ächzen", 'a "quoted" one', "nv")}, size_px=32,
    mean=(0.1, 0.2, 1 / 3), geometry="pad", cache_id="ab" * 32, taught=True, teacher="a SigLIP",
)  # fmt: skip

# Run by a Python that sees neither this repository nor installed packages of these names.
USE_WITHOUT_SOFTLABEL = """
import json, sys, warnings

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pipeline", "data", "cache", "softlabel", "torchvision", "transformers", "h5py"):
            raise ImportError(f"{name} is not to be had on a course server")

sys.meta_path.insert(0, Blocker())
warnings.simplefilter("ignore")
import torch

extra = {"softlabel.json": ""}
module = torch.jit.load(sys.argv[1], _extra_files=extra)
logits = module(torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32))
print(json.dumps({"logits": logits.tolist(), "classes": json.loads(extra["softlabel.json"])["classes"],
                  "training": module.training}))
"""


@pytest.fixture(scope="module")
def student() -> nn.Module:
    return build_student("shufflenet_v2_x0_5", 3, 32, seed=4)


@pytest.fixture(scope="module")
def exported(student: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "student_model.pt"
    path.write_bytes(to_bytes(student, CARD))
    return path


def test_module_and_card_come_back(exported: Path, student: nn.Module) -> None:
    module, card = load(exported)
    assert card == CARD
    assert not module.training
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(module(pixels), student.eval()(pixels), rtol=0, atol=1e-5)


def test_the_file_loads_with_nothing_but_torch(exported: Path, student: nn.Module) -> None:
    command = [sys.executable, "-I", "-c", USE_WITHOUT_SOFTLABEL, str(exported)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["classes"] == list(CARD.classes)
    assert found["training"] is False
    with torch.inference_mode():
        expected = student.eval()(torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32))
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=0, atol=1e-5)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.tuples(*[st.floats(0.01, 1)] * 3)


@given(
    tasks=st.dictionaries(texts, st.lists(texts, min_size=2, max_size=5).map(tuple), min_size=1, max_size=3),
    teacher=texts,
    mean=numbers,
    std=numbers,
    size_px=st.integers(1, 1024),
    taught=st.booleans(),
)
def test_every_card_comes_back_from_its_json(
    tasks: dict[str, tuple[str, ...]],
    teacher: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    size_px: int,
    taught: bool,
) -> None:  # fmt: skip
    card = dataclasses.replace(CARD, tasks=tasks, teacher=teacher, mean=mean, std=std, size_px=size_px, taught=taught)
    assert StudentCard.from_json(card.to_json()) == card


@pytest.mark.parametrize(
    "text", ["", "not json", "[]", "null", "3", "{}", '{"student": "x"}', CARD.to_json()[:-3], '{"more": 1}']
)
def test_a_damaged_card_is_refused(text: str) -> None:
    with pytest.raises(RunError, match="card is damaged"):
        StudentCard.from_json(text)


def test_a_card_with_an_unknown_field_is_refused_by_its_name() -> None:
    with pytest.raises(RunError, match="hue"):
        StudentCard.from_json(json.dumps(json.loads(CARD.to_json()) | {"hue": 1}))


def test_the_card_carries_the_notice_of_the_teachers_licence() -> None:
    assert "Health AI Developer Foundations Terms of Use" in json.loads(CARD.to_json())["notice"]


# The warning is part of the scripted graph.
@pytest.mark.filterwarnings("ignore:Scripted GoogleNet always returns")
def test_a_model_that_returns_several_outputs_when_scripted_exports_its_logits(tmp_path: Path) -> None:
    model = build_student("googlenet", 3, 64).eval()
    card = StudentCard(
        student="googlenet", tasks={"class": ("a", "b", "c")}, size_px=64, geometry="warp", cache_id="",
        taught=True, teacher="",
    )  # fmt: skip
    (tmp_path / "m.pt").write_bytes(to_bytes(model, card))
    inputs = torch.zeros(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(load(tmp_path / "m.pt")[0](inputs), model(inputs))


def test_a_file_that_is_not_there_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no such model file: .*softlabel export RUN -o"):
        load(tmp_path / "none.pt")
    with pytest.raises(RunError, match="no such model file"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 not a zip", b"\x80\x02}q\x00."])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(RunError, match="is not an exported model") as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_other_zip_files_and_checkpoints_are_refused(tmp_path: Path, student: nn.Module) -> None:
    with zipfile.ZipFile(tmp_path / "images.pt", "w") as archive:
        archive.writestr("a.txt", "x")
    torch.save(student.state_dict(), tmp_path / "best.pt")
    for name, said in (("images.pt", "is not a TorchScript model"), ("best.pt", "is a checkpoint, no exported model")):
        with pytest.raises(RunError, match=said) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_truncated_model_is_refused(exported: Path, tmp_path: Path) -> None:
    content = exported.read_bytes()
    for n_bytes in (10, len(content) // 2, len(content) - 10):
        (tmp_path / "cut.pt").write_bytes(content[:n_bytes])
        with pytest.raises(RunError):
            load(tmp_path / "cut.pt")


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_torchscript_of_other_origin_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "foreign.pt")
    with pytest.raises(RunError, match=f"has no {CARD_NAME} inside"):
        load(tmp_path / "foreign.pt")


def test_a_card_of_an_older_version_has_a_single_task() -> None:
    old = {name: value for name, value in json.loads(CARD.to_json()).items() if name != "tasks"}
    assert StudentCard.from_json(json.dumps({**old, "task": "class"})) == CARD


def test_the_columns_of_several_tasks_are_named_by_both() -> None:
    card = dataclasses.replace(CARD, tasks={"modality": ("CT", "MR"), "side": ("left", "right")})
    assert card.classes == ("modality: CT", "modality: MR", "side: left", "side: right")
    assert card.every_task.columns == {"modality": slice(0, 2), "side": slice(2, 4)}


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_a_file_says_nothing_of_the_machine_that_made_it(weights: str, student: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(to_bytes(student, CARD, weights))
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        content = b"".join(map(archive.read, archive.namelist()))
    assert str(Path(torch.__file__).parent).encode() not in content
    assert str(Path(__file__).parent).encode() not in content
