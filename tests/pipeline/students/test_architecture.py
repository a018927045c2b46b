"""A user's architecture in a run folder: small, faithful, and loaded without a look at the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.card import StudentCard
from pipeline.errors import RunError, SettingError
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.export import export
from pipeline.inference import load_student
from pipeline.predict import predict
from pipeline.runs import CHECKPOINT_FORMAT, RunFolder
from pipeline.students.architecture import pack_architecture, unpack_architecture
from pipeline.students.prepare import prepare_student
from pipeline.teachers.scripted import student_classifier
from pipeline.train import TrainConfig, saved_config, train

Own = Callable[..., str]


class _Odd(nn.Module):
    """With what a state dict does not hold: a buffer that is no part of it, a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 3)
        self.register_buffer("shift", torch.full((3,), 2.0), persistent=False)
        self.gain = torch.full((3,), 3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1)) * self.gain + self.shift


def test_an_architecture_and_its_weights_answer_as_the_model_does() -> None:
    torch.manual_seed(0)
    model, noise = _Odd().eval(), torch.randn(2, 3, 8, 8)
    found = unpack_architecture(pack_architecture(model), model.state_dict())
    torch.testing.assert_close(found(noise), model(noise))
    assert bool(model.head.weight.all()), "the model keeps its weights"


def test_an_architecture_takes_no_room_for_weights() -> None:
    large = nn.Sequential(nn.Flatten(), nn.Linear(192, 4000), nn.Linear(4000, 500))
    assert pack_architecture(large).nbytes < 30_000 < 11_000_000 < sum(p.nbytes for p in large.parameters())


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_a_damaged_architecture_is_told(cut: int) -> None:
    packed = pack_architecture(nn.Linear(2, 2))
    with pytest.raises(RunError, match="architecture is damaged"):
        unpack_architecture(packed[:cut], nn.Linear(2, 2).state_dict())


def test_weights_of_another_model_are_told() -> None:
    packed = pack_architecture(nn.Linear(2, 2))
    for other in (nn.Linear(2, 3), nn.Linear(2, 2, bias=False), nn.Sequential(nn.Linear(2, 2))):
        with pytest.raises(RunError, match=r"architecture is damaged|not those of its architecture"):
            unpack_architecture(packed, other.state_dict())


@pytest.fixture(scope="module")
def own_run(tiny_data: Path, tiny_cache: Path, small_network: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a user's file, which afterwards is gone."""
    folder = tmp_path_factory.mktemp("own")
    file = folder / "net.py"
    file.write_text(small_network)
    config = TrainConfig(student=f"{file}:build", student_size_px=32, epochs=1, batch_size=8)
    run = train(tiny_data, tiny_cache, folder / "run", config, workers=0).path
    file.write_text("raise RuntimeError('nobody may run this')")
    return run


def test_a_finished_run_is_used_without_its_file(own_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    image = next(tiny_data.glob("test/*/*"))
    found = evaluate(own_run, tiny_data, EvaluateConfig(split="test"), device="cpu", workers=0)
    assert found.splits["test"].student.metrics.n_samples == 15
    exported = export(own_run, tmp_path / "m.pt").path
    (of_run,), (of_file,) = predict(own_run, [image], device="cpu"), predict(exported, [image], device="cpu")
    assert of_run.probabilities == pytest.approx(of_file.probabilities, abs=1e-5)
    taught = student_classifier(own_run)
    assert taught.architecture == "net.py:build"
    assert taught.module(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_a_run_goes_on_only_with_its_own_file(
    own_run: Path, tiny_data: Path, tiny_cache: Path, small_network: str, caplog: pytest.LogCaptureFixture
) -> None:
    file, config = own_run.parent / "net.py", saved_config(own_run)

    def resume() -> None:
        train(tiny_data, tiny_cache, own_run, config, resume=True, workers=0)

    with pytest.raises(SettingError, match=r"net.py:build fails in the import .*RuntimeError: nobody may run this"):
        resume()
    file.write_text(small_network.replace("8", "9"))
    with pytest.raises(RunError, match=r"net.py:build makes another model than the run's; restore it"):
        resume()
    file.write_text(small_network + "\n# a remark\n")
    resume()
    assert "net.py:build has changed since the run began" in caplog.text
    file.unlink()
    with pytest.raises(SettingError, match=r"no such file: .*net.py"):
        resume()


def test_the_command_line_names_a_mistake_in_the_file(
    cli: Callable[..., tuple[int, str, str]], own: Own, tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    words = ("train", tiny_data, tiny_cache, "-o", tmp_path / "run", "--student-size", 32, "--student")
    for student, message in (
        (own(function="biuld"), "my_model.py has no function 'biuld'; did you mean 'build'? (it has Net, build)"),
        (own("import torch\n1 / 0\n", file="other.py"), "ZeroDivisionError: division by zero (other.py, line 2)"),
        ("timm:resnet10", "no timm model is called 'resnet10'; did you mean 'resnet10"),
    ):
        code, out, err = cli(*words, student)
        assert (code, out) == (1, "")
        assert message in err
        assert "Traceback" not in err
        assert not (tmp_path / "run").exists()


def test_the_best_weights_are_those_of_the_run(own_run: Path) -> None:
    last = RunFolder(own_run).load_last()
    found = load_student(own_run, "cpu").module.state_dict()
    assert found.keys() == last["best_model"].keys()
    assert all(torch.equal(found[name], last["best_model"][name]) for name in found)


def test_a_run_that_lost_its_architecture_is_refused_and_never_runs_a_file(
    own: Own, classes: tuple[str, ...], tmp_path: Path, card_of: Callable[..., StudentCard]
) -> None:
    student = own("raise RuntimeError('nobody may run this')")
    checkpoint = {
        "format": CHECKPOINT_FORMAT, "epoch": 1, "best": {"epoch": 1}, "metrics": [], "config": {},
        "ids": {"recipe_id": ""}, "model": {}, "best_model": {},
    }  # fmt: skip
    RunFolder(tmp_path / "run").save(checkpoint, card_of(student))
    with pytest.raises(RunError, match=r"best.pt lacks the architecture of its student .*:build: train this run anew"):
        load_student(tmp_path / "run", "cpu")


def resumable(student: str, classes: tuple[str, ...]) -> dict[str, object]:
    """What a checkpoint holds of a student."""
    built = prepare_student(student, classes, 32, seed=1)
    return {"model": built.module.state_dict(), "ids": built.ids, "architecture": built.architecture}


def test_a_run_goes_on_with_its_file_and_says_where_that_has_changed(
    own: Own, own_with: Own, classes: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = resumable(own(), classes)
    prepare_student(own(), classes, 32, seed=2).check_resumes(checkpoint)
    assert not caplog.records
    prepare_student(own_with(dropout="nn.Dropout(0.25)"), classes, 32, seed=2).check_resumes(checkpoint)
    assert "my_model.py:build has changed since the run began" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": "9"}, r"stem.weight: the run has \[8, 3, 3, 3\], my_model.py:build \[9, 3, 3, 3\]"),
        ({"features": "x = torch.tanh(self.norm(self.stem(x))).mean((2, 3))"}, "answers otherwise than when the run"),
    ],
)
def test_a_run_does_not_go_on_with_another_architecture(
    changes: dict[str, str], message: str, own: Own, own_with: Own, classes: tuple[str, ...]
) -> None:
    checkpoint = resumable(own(), classes)
    with pytest.raises(RunError, match=message):
        prepare_student(own_with(**changes), classes, 32, seed=1).check_resumes(checkpoint)


def test_a_library_of_another_version_is_said(classes: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    built = prepare_student("squeezenet1_1", classes, 32)
    state = built.module.state_dict()
    built.check_resumes({"model": state, "ids": {"student_library": "torchvision 0.1"}})
    assert "squeezenet1_1 was of torchvision 0.1, is of torchvision 0." in caplog.text
    caplog.clear()
    built.check_resumes({"model": state, "ids": {}})
    assert not caplog.records, "a run of an older version of ours did not write it"


def test_weights_of_another_library_version_name_it_when_loaded(
    tmp_path: Path, card_of: Callable[..., StudentCard]
) -> None:
    checkpoint = {
        "format": CHECKPOINT_FORMAT, "epoch": 1, "best": {"epoch": 1}, "metrics": [], "config": {},
        "ids": {"recipe_id": "", "student_library": "timm 0.9.0"}, "model": {},
        "best_model": {"fc.weight": torch.zeros(3, 8)},
    }  # fmt: skip
    RunFolder(tmp_path / "run").save(checkpoint, card_of("timm:test_resnet"))
    with pytest.raises(RunError, match=r"not those of a timm:test_resnet of timm .*: install timm==0\.9\.0"):
        load_student(tmp_path / "run", "cpu")
