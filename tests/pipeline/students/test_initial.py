"""Weights from elsewhere: what is taken, what is left out, and that all of it is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.card import StudentCard
from pipeline.errors import RunError, SettingError
from pipeline.formats import torchscript
from pipeline.inference import load_student
from pipeline.runs import CHECKPOINT_FORMAT, RunFolder
from pipeline.students.build import build_student
from pipeline.students.initial import _plan
from pipeline.students.prepare import prepare_student
from pipeline.students.weights import Weights

CLASSES = ("akiec", "mel", "nv")
NAME = "squeezenet1_1"


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, Tensor]:
    """Weights of the same architecture and number of classes."""
    state = build_student(NAME, 3, 64, seed=7).state_dict()
    return state | {"classifier.1.bias": torch.tensor([1.0, 2.0, 3.0])}  # it starts as 0, whatever the seed


def started_from(init: object, student: str = NAME, classes: tuple[str, ...] = CLASSES) -> tuple[nn.Module, str]:
    """(the student, what was said)."""
    built = prepare_student(student, classes, 64, seed=1, init=str(init))
    return built.module, "\n".join(built.init_report)


def differing(model: nn.Module, state: dict[str, Tensor]) -> set[str]:
    """Names of tensors that are not those of the state."""
    own = model.state_dict()
    return {name for name in own if name not in state or not torch.equal(own[name], state[name])}


def test_none_leaves_the_random_weights(elsewhere: dict[str, Tensor]) -> None:
    model, said = started_from("none")
    assert not differing(model, build_student(NAME, 3, 64, seed=1).state_dict())
    assert said == ""


def write(path: Path, state: dict[str, Tensor], form: str) -> Path:
    """A file as other tools leave it."""
    if form == "safetensors":
        save_file(state, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    wrapped = {
        "bare": state,
        "model": {"model": state, "epoch": 3},
        "state_dict": {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        "compiled": {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        "twice": {f"module.model.{name}": tensor for name, tensor in state.items()},
        "half": {name: tensor.half() for name, tensor in state.items()},
    }[form]
    torch.save(wrapped, path)
    return path


@pytest.mark.parametrize("form", ["bare", "model", "state_dict", "compiled", "twice", "safetensors"])
def test_a_file_is_read_in_every_usual_form(form: str, elsewhere: dict[str, Tensor], tmp_path: Path) -> None:
    model, said = started_from(write(tmp_path / "w.pth", elsewhere, form))
    assert not differing(model, elsewhere)
    n_tensors = len(elsewhere)
    assert said.startswith(f"{n_tensors} of {n_tensors} tensors from {tmp_path}")
    assert "the classifier is taken as it is: nothing says for which classes" in said


def test_half_precision_becomes_single(elsewhere: dict[str, Tensor], tmp_path: Path) -> None:
    model, _ = started_from(write(tmp_path / "w.pth", elsewhere, "half"))
    assert not differing(model, {name: tensor.half().float() for name, tensor in elsewhere.items()})


def test_a_classifier_of_another_number_of_classes_is_left_out_and_said(tmp_path: Path) -> None:
    state = build_student(NAME, 1000, 64, seed=7).state_dict()
    state["classifier.1.bias"] += 1
    model, said = started_from(write(tmp_path / "w.pth", state, "bare"))
    assert differing(model, state) == {"classifier.1.weight", "classifier.1.bias"}
    assert "the classifier starts at random: that one is for 1000 classes, here are 3" in said


def test_missing_other_and_unexpected_tensors_are_listed(elsewhere: dict[str, Tensor], tmp_path: Path) -> None:
    state = dict(elsewhere)
    del state["features.3.squeeze.weight"]
    state["features.0.weight"] = torch.zeros(64, 3, 5, 5)
    state |= {f"ema.{i}": torch.zeros(1) for i in range(8)}
    model, said = started_from(write(tmp_path / "w.pth", state, "bare"))
    assert differing(model, elsewhere) == {"features.3.squeeze.weight", "features.0.weight"}
    assert "1 missing there, start at random: features.3.squeeze.weight" in said
    assert "1 of another shape there, start at random: features.0.weight [64, 3, 5, 5] for [64, 3, 3, 3]" in said
    assert "8 there, but not in this student: ema.0, ema.1, ema.2, ema.3, ema.4 and 3 more" in said


def test_weights_of_which_nothing_fits_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", {"a.weight": torch.zeros(3, 3)}, "bare")
    with pytest.raises(
        SettingError, match=r"nothing of .*w.pth fits squeezenet1_1: its tensors are a.weight; those of"
    ):
        started_from(path)


def test_weights_that_are_not_finite_are_refused(elsewhere: dict[str, Tensor], tmp_path: Path) -> None:
    state = elsewhere | {"features.0.bias": torch.full((64,), float("nan"))}
    with pytest.raises(SettingError, match=r"NaN or infinity in features\.0\.bias"):
        started_from(write(tmp_path / "w.pth", state, "bare"))


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("imagnet", "no such file or run folder: imagnet; did you mean 'imagenet'"),
        ("none.pth", "no such file or run folder: none.pth; --init takes none, imagenet, a run"),
    ],
)
def test_an_unknown_origin_is_told(init: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=message):
        started_from(init)


def test_a_file_that_could_run_code_or_holds_no_weights_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "text.safetensors").write_text("weights")
    for name, message in (("module.pt", "safely"), ("list.pt", "state dict"), ("text.pt", "safely")):
        with pytest.raises(SettingError, match=message) as caught:
            started_from(tmp_path / name)
        assert "weights_only" not in str(caught.value), "torch's advice would run a stranger's code"
    with pytest.raises(SettingError, match="safely"):
        started_from(tmp_path / "text.safetensors")


@pytest.fixture
def run_of(tmp_path: Path, card_of: Callable[..., StudentCard]) -> Callable[..., Path]:
    """A run folder with these weights and classes."""

    def run_of(state: dict[str, Tensor], classes: tuple[str, ...]) -> Path:
        checkpoint = {
            "format": CHECKPOINT_FORMAT, "epoch": 1, "best": {"epoch": 1}, "metrics": [], "config": {},
            "ids": {"recipe_id": ""}, "model": {}, "best_model": state,
        }  # fmt: skip
        RunFolder(tmp_path / "run").save(checkpoint, dataclasses.replace(card_of(NAME), tasks={"class": classes}))
        return tmp_path / "run"

    return run_of


def test_a_run_of_the_same_classes_gives_all_its_weights(
    elsewhere: dict[str, Tensor], run_of: Callable[..., Path]
) -> None:
    run = run_of(elsewhere, CLASSES)
    for origin in (run, run / "best.pt"):
        model, said = started_from(origin)
        assert not differing(model, elsewhere)
        assert "classifier" not in said, "nothing is left out, nothing is unknown"


def test_classes_in_another_order_are_put_into_this_one_by_name(
    elsewhere: dict[str, Tensor], run_of: Callable[..., Path]
) -> None:
    model, said = started_from(run_of(elsewhere, ("nv", "akiec", "mel")))
    assert torch.equal(model.state_dict()["classifier.1.bias"], elsewhere["classifier.1.bias"][[1, 2, 0]])
    assert torch.equal(model.state_dict()["classifier.1.weight"], elsewhere["classifier.1.weight"][[1, 2, 0]])
    assert "the classifier is taken in the order of these classes, by name" in said


@given(st.permutations(("akiec", "bcc", "mel", "nv")), st.permutations(("akiec", "bcc", "mel", "nv")))
def test_the_logit_of_a_class_is_the_same_in_any_order(theirs: list[str], ours: list[str]) -> None:
    trained, started = (nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4)) for _ in range(2))
    plan = _plan(started, Weights(trained.state_dict(), "a run", tuple(theirs)), ours)
    started.load_state_dict(plan.take)
    inputs = torch.randn(2, 3)
    found = dict(zip(ours, started(inputs).unbind(1), strict=True))
    for name, logits in zip(theirs, trained(inputs).unbind(1), strict=True):
        torch.testing.assert_close(found[name], logits)


def test_a_run_of_other_classes_does_not_give_its_classifier(
    elsewhere: dict[str, Tensor], run_of: Callable[..., Path]
) -> None:
    model, said = started_from(run_of(elsewhere, ("nv", "akiec", "bcc")))
    assert differing(model, elsewhere) == {"classifier.1.weight", "classifier.1.bias"}
    assert "the classifier starts at random: that one is for others" in said


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        started_from(tmp_path)


def test_an_exported_file_gives_its_weights_and_classes(
    elsewhere: dict[str, Tensor], tmp_path: Path, card_of: Callable[..., StudentCard]
) -> None:
    model = build_student(NAME, 3, 64)
    model.load_state_dict(elsewhere)
    (tmp_path / "m.pt").write_bytes(torchscript.to_bytes(model, card_of(NAME)))
    model, _ = started_from(tmp_path / "m.pt", classes=("class 2", "class 0", "class 1"))
    assert torch.equal(model.state_dict()["classifier.1.bias"], elsewhere["classifier.1.bias"][[2, 0, 1]])
    assert differing(model, elsewhere) == {"classifier.1.weight", "classifier.1.bias"}


def test_an_exported_file_of_smaller_weights_says_what_to_take(
    tmp_path: Path, card_of: Callable[..., StudentCard]
) -> None:
    (tmp_path / "m.pt").write_bytes(torchscript.to_bytes(build_student(NAME, 3, 64), card_of(NAME), "fp16"))
    with pytest.raises(SettingError, match=r"m\.pt was exported with --weights fp16 or int8, .*: --init takes the run"):
        started_from(tmp_path / "m.pt")


def test_a_run_starts_a_users_own_student_as_well(own: Callable[..., str], tiny_run: Path, tmp_path: Path) -> None:
    file = own()
    first = prepare_student(file, CLASSES, 32, seed=5).module
    torch.save(first.state_dict(), tmp_path / "w.pt")
    second, _ = started_from(tmp_path / "w.pt", file)
    assert not differing(second, first.state_dict())
    with pytest.raises(SettingError, match=r"there are no ImageNet weights of my_model\.py:build"):
        started_from("imagenet", file)
    with pytest.raises(SettingError, match=r"nothing of shufflenet_v2_x0_5 of .* fits my_model.py:build"):
        started_from(tiny_run, file)


def test_a_started_run_answers_as_the_one_it_started_from(tiny_run: Path) -> None:
    student = load_student(tiny_run, "cpu")
    built = prepare_student(student.card.student, student.card.classes, 32, init=str(tiny_run))
    noise = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(built.module.eval()(noise), student.module(noise))
