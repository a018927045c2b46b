"""What a student may be called, and the library or file that the name then means."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import SettingError
from pipeline.students.build import build_student
from pipeline.students.names import StudentSource, find_source, student_names
from pipeline.students.prepare import prepare_student

CLASSES = ("akiec", "mel", "nv")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", StudentSource("torchvision", "resnet18", "resnet18")),
        ("timm:resnet18", StudentSource("timm", "timm:resnet18", "resnet18")),
        ("resnet10t", StudentSource("timm", "timm:resnet10t", "resnet10t")),
        ("timm:resnet10t.c3_in1k", StudentSource("timm", "timm:resnet10t.c3_in1k", "resnet10t.c3_in1k")),
        ("a b/net.py:Net", StudentSource("file", "net.py:Net", "Net", Path("a b/net.py"))),
        ("C:/net.py:build", StudentSource("file", "net.py:build", "build", Path("C:/net.py"))),
    ],
)
def test_a_name_has_one_source(name: str, expected: StudentSource) -> None:
    assert find_source(name) == expected


def test_both_libraries_make_the_same_name_in_their_own_way() -> None:
    ours, theirs = build_student("resnet18", 3, 32), build_student("timm:resnet18", 3, 32)
    assert type(ours).__module__.startswith("torchvision.")
    assert type(theirs).__module__.startswith("timm.")


def test_a_file_without_a_function_is_told_how_to_name_one() -> None:
    with pytest.raises(SettingError, match=r"which function of net.py .*--student net.py:build"):
        find_source("net.py")


def test_without_timm_its_names_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SettingError, match=r"timm is not installed: pip install '\.\[timm\]'"):
        find_source("timm:resnet10t")
    with pytest.raises(
        SettingError, match=r"no torchvision classifier is called 'resnet10t'.*timm has more, but is not"
    ):
        find_source("resnet10t")
    assert find_source("resnet18").kind == "torchvision"


def test_a_misspelt_timm_name_suggests_its_neighbour() -> None:
    with pytest.raises(SettingError, match=r"no timm model is called 'resnet10x'; did you mean 'resnet1"):
        find_source("timm:resnet10x")
    with pytest.raises(SettingError, match=r"no torchvision or timm classifier is called 'efficientnet_lite'; did you"):
        find_source("efficientnet_lite")


def test_names_of_torchvision_win() -> None:
    assert all(find_source(name).kind == "torchvision" for name in student_names())


@pytest.mark.parametrize("name", ["test_efficientnet", "test_byobnet", "test_vit", "test_convnext", "test_resnet"])
def test_families_of_timm_are_students_of_any_size(name: str) -> None:
    built = prepare_student(name, CLASSES, 96, seed=1)
    again = prepare_student(f"timm:{name}", CLASSES, 96, seed=1)
    assert built.source == again.source
    assert all(torch.equal(tensor, again.module.state_dict()[key]) for key, tensor in built.module.state_dict().items())
    assert built.ids["student_library"].startswith("timm 1.")
    assert built.architecture is None
    assert built.module(torch.zeros(2, 3, 96, 96)).shape == (2, 3)


def test_a_timm_model_that_cannot_be_exported_is_refused_honestly() -> None:
    with pytest.raises(
        SettingError, match=r"timm:hrnet_w18_small cannot be exported: TorchScript says .*; choose another"
    ):
        prepare_student("hrnet_w18_small", CLASSES, 64)
