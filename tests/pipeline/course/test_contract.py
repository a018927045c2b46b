"""What --for-course makes of a student: the same answers, in the order and from the inputs that the server has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.card import IMAGENET_MEAN, IMAGENET_STD, StudentCard
from pipeline.course.check import check_file
from pipeline.course.contract import for_course, problems_of
from pipeline.errors import CourseError
from pipeline.formats import torchscript
from pipeline.inference import normalise
from pipeline.students.build import build_student

CARD = StudentCard(
    student="shufflenet_v2_x0_5", tasks={"class": ("2. nv", "10. mel", "1. bcc")}, size_px=224, geometry="warp",
    mean=(0.5, 0.5, 0.5), std=(0.5, 0.4, 0.3), cache_id="ab" * 32, taught=True, teacher="a SigLIP",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:Scripted GoogleNet always returns")
@pytest.mark.parametrize(
    ("student", "weights"), [("shufflenet_v2_x0_5", "fp32"), ("shufflenet_v2_x0_5", "int8"), ("googlenet", "fp32")]
)
def test_the_file_answers_the_servers_inputs_in_the_servers_order(student: str, weights: str, tmp_path: Path) -> None:
    model = build_student(student, 3, 224, seed=1).eval()
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = model(normalise(pixels, CARD, "cpu")).detach()
    module, card = for_course(model, replace(CARD, student=student))
    assert card.classes == ("1. bcc", "10. mel", "2. nv")
    assert (card.mean, card.std) == (IMAGENET_MEAN, IMAGENET_STD)
    path = tmp_path / "student_model.pt"
    path.write_bytes(torchscript.to_bytes(module, card, weights))
    as_server = torchscript.load_program(path.read_bytes())
    found = as_server(normalise(pixels, card, "cpu")).detach()
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected[:, [2, 1, 0]], atol=(1e-4 if weights == "fp32" else 0.1) * scale, rtol=0)
    assert check_file(path, n_classes=3).classes == card.classes


def test_a_student_by_the_contract_is_left_as_it_is() -> None:
    card = replace(CARD, mean=IMAGENET_MEAN, std=IMAGENET_STD, tasks={"class": ("a", "b")})
    module = nn.Identity()
    assert for_course(module, card) == (module, card)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=12, unique=True))
def test_every_class_keeps_its_logit(names: list[str]) -> None:
    card = replace(CARD, mean=IMAGENET_MEAN, std=IMAGENET_STD, tasks={"class": tuple(names)})
    module, mended = for_course(nn.Identity(), card)
    assert list(mended.classes) == sorted(names)
    assert list(problems_of(mended)) == []
    logits = torch.arange(len(names), dtype=torch.float32)[None]
    order = torch.arange(len(names)) if isinstance(module, nn.Identity) else module.order
    found = logits[0, order].tolist()
    assert dict(zip(mended.classes, found, strict=True)) == dict(zip(names, logits[0].tolist(), strict=True))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tasks": {"a": ("x", "y"), "b": ("z", "w")}}, "answers 2 tasks, expected one"),
        ({"size_px": 96}, "was made for images of 96 px, expected 224"),
        ({"geometry": "pad"}, "was made for images by 'pad', expected warp"),
    ],
)
def test_what_no_export_can_mend_says_how_to_train(change: dict[str, object], told: str) -> None:
    with pytest.raises(CourseError, match=rf"this student {told}, .*: train one by `softlabel train DATA CACHE"):
        for_course(nn.Identity(), replace(CARD, **change))
