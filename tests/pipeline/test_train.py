"""Stage two: it learns, resumes exactly, refuses before it spends, and never touches test."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache import Table
from pipeline.errors import OutputExists, OverBudget, RunError, SettingError
from pipeline.inference import load_student
from pipeline.runs import RunFolder
from pipeline.targets import TeacherTargets
from pipeline.train import saved_config, train
from pipeline.training import learner
from pipeline.training import trainer as module
from pipeline.training.config import TrainConfig

from .run_metrics import metrics

CONFIG = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=2, batch_size=8)


def test_hard_and_soft_loss_are_apart_and_make_up_the_total(tiny_run: Path) -> None:
    for row in metrics(tiny_run):
        total = 0.3 * float(row["loss_hard"]) + 0.7 * float(row["loss_soft"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-4)
        assert float(row["loss_soft"]) > 0


def test_a_student_learns_its_teachers_answers(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path, resealed: Callable[..., Path]
) -> None:
    """What it can learn of 30 images in seconds: which classes the teacher says more often, whatever it sees."""

    def say_one_thing(table: Table) -> None:
        table.logits["class"][:] = np.array([4, 2, 0, -2, -4])

    config = dataclasses.replace(CONFIG, epochs=12, alpha=0.0)
    train(tiny_data, resealed(tiny_cache, say_one_thing), tmp_path / "run", config, workers=0, anyway=True)
    soft = [float(row["loss_soft"]) for row in metrics(tmp_path / "run")]
    assert soft[-1] < 0.5 * soft[0]


def test_without_a_teacher_the_soft_loss_takes_no_part(tiny_data: Path, tiny_cache: Path, tmp_path: Path) -> None:
    train(tiny_data, tiny_cache, tmp_path / "run", dataclasses.replace(CONFIG, teacher=False), workers=0, report=False)
    for row in metrics(tmp_path / "run"):
        assert float(row["loss_soft"]) == 0
        assert row["loss"] == row["loss_hard"]


def test_the_mean_target_of_a_view_is_that_of_its_image(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[bytes, set[bytes]] = {}
    loss, mean_logits = learner.distillation_loss, TeacherTargets.mean_logits

    def watched(self: TeacherTargets, rows: Any) -> Any:
        for row, logits in zip(rows, found := mean_logits(self, rows), strict=True):
            told.setdefault(self.reader.keys[self.reader.sample_of_row[row]].tobytes(), set()).add(logits.tobytes())
        return found

    def taught(student: Any, teacher: Any, *arguments: Any, **options: Any) -> Any:
        assert {row.numpy().tobytes() for row in teacher} <= set().union(*told.values())
        return loss(student, teacher, *arguments, **options)

    monkeypatch.setattr(TeacherTargets, "mean_logits", watched)
    monkeypatch.setattr(learner, "distillation_loss", taught)
    train(tiny_data, tiny_cache, tmp_path / "run", dataclasses.replace(CONFIG, target="mean"), workers=0, report=False)
    assert len(told) == 60, "of every image of the cache, once"
    assert all(len(targets) == 1 for targets in told.values())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["target"] == "mean"


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path
) -> None:
    train(tiny_data, tiny_cache, tmp_path / "same", CONFIG, workers=1, report=False)
    train(tiny_data, tiny_cache, tmp_path / "other", dataclasses.replace(CONFIG, seed=1), workers=0, report=False)
    assert metrics(tmp_path / "same") == metrics(tiny_run)
    assert metrics(tmp_path / "other") != metrics(tiny_run)


@pytest.mark.parametrize("during", ["first epoch", "second epoch"])
def test_a_resumed_run_equals_an_undisturbed_one(
    during: str, tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, stop_at = 0, {"first epoch": 2, "second epoch": 6}[during]
    loss = learner.distillation_loss

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise KeyboardInterrupt
        return loss(*arguments, **options)

    monkeypatch.setattr(learner, "distillation_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_data, tiny_cache, tmp_path / "run", CONFIG, workers=0, report=False)
    monkeypatch.setattr(learner, "distillation_loss", loss)
    if during == "first epoch":
        with pytest.raises(RunError, match=r"no epoch of .* has ended yet"):
            load_student(tmp_path / "run", "cpu")
    train(tiny_data, tiny_cache, tmp_path / "run", saved_config(tmp_path / "run"), resume=True, workers=0, report=False)
    assert metrics(tmp_path / "run") == metrics(tiny_run)
    one, other = (RunFolder(path).load_last() for path in (tmp_path / "run", tiny_run))
    for name, weights in one["model"].items():
        assert torch.equal(weights, other["model"][name]), name


def test_resuming_with_other_settings_lists_every_difference(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    before = (run / "last.pt").read_bytes()
    with pytest.raises(RunError, match=r"(?s)epochs: the run has 2, this call 9.*alpha: the run has 0\.3"):
        train(
            tiny_data,
            tiny_cache,
            run,
            dataclasses.replace(CONFIG, alpha=0.5, epochs=9),
            resume=True,
            workers=0,
            report=False,
        )
    assert (run / "last.pt").read_bytes() == before


def test_a_folder_that_is_not_empty_is_refused_with_both_remedies(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path
) -> None:
    with pytest.raises(OutputExists, match=r"--resume, or choose another -o"):
        train(tiny_data, tiny_cache, tiny_run, CONFIG)


def test_a_run_that_another_process_made_meanwhile_is_not_written_over(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce = module.Trainer.announce

    def overtaken(self: Any) -> Any:
        shutil.copytree(tiny_run, tmp_path / "run")
        return announce(self)

    monkeypatch.setattr(module.Trainer, "announce", overtaken)
    with pytest.raises(OutputExists, match="--resume"):
        train(tiny_data, tiny_cache, tmp_path / "run", CONFIG, workers=0, report=False)
    assert (tmp_path / "run" / "last.pt").read_bytes() == (tiny_run / "last.pt").read_bytes()


def test_resuming_where_there_is_nothing_says_so(tiny_data: Path, tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="start one without --resume"):
        train(tiny_data, tiny_cache, tmp_path / "run", CONFIG, resume=True)


def test_a_student_over_the_budget_is_refused_before_training(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    large = dataclasses.replace(CONFIG, student="shufflenet_v2_x2_0", budget_mb=6)
    with pytest.raises(OverBudget, match=r"the largest that fits is shufflenet_v2_x1_0"):
        train(tiny_data, tiny_cache, tmp_path / "run", large)
    assert not (tmp_path / "run").exists()


def test_validation_is_split_off_train_where_there_is_no_val_and_test_is_never_read(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    shutil.rmtree(data / "val")
    read = set()
    decode = module.StudentLoader.__call__

    def watched(self: Any, batches: Any) -> Any:
        read.update(item.sample.split for batch in batches for item in batch)
        return decode(self, batches)

    monkeypatch.setattr(module.StudentLoader, "__call__", watched)
    with caplog.at_level(logging.INFO):
        train(
            data,
            tiny_cache,
            tmp_path / "run",
            dataclasses.replace(CONFIG, epochs=1, val_fraction=0.2),
            workers=0,
            report=False,
        )
    assert read == {"train"}
    assert "24 train, 6 val (20% of train, by class)" in caplog.text


def test_a_size_that_the_student_cannot_take_is_refused_before_training(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match="alexnet cannot take images of 32 px"):
        train(tiny_data, tiny_cache, tmp_path / "run", dataclasses.replace(CONFIG, student="alexnet"))
    assert not (tmp_path / "run").exists()


def test_no_batch_has_a_single_image(tiny_data: Path, tiny_cache: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    next(data.glob("train/*/*.png")).unlink()
    config = dataclasses.replace(CONFIG, epochs=1, batch_size=2)  # 29 images: one batch of three
    assert train(data, tiny_cache, tmp_path / "run", config, workers=0, report=False).best_epoch == 1


def test_the_start_shows_the_teacher_beside_the_majority_share(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train(tiny_data, tiny_cache, tmp_path / "run", dataclasses.replace(CONFIG, epochs=1), workers=0, report=False)
    assert "always the largest class: 0.200" in caplog.text


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = learner.distillation_loss

    def broken(*arguments: Any, **options: Any) -> Any:
        return type(parts := loss(*arguments, **options))(*(part * float("nan") for part in parts))

    monkeypatch.setattr(learner, "distillation_loss", broken)
    with pytest.raises(RunError, match="lower --lr"):
        train(tiny_data, tiny_cache, tmp_path / "run", CONFIG, workers=0, report=False)
    assert RunFolder(tmp_path / "run").load_last()["epoch"] == 0


@pytest.mark.parametrize("name", ["fc.weight", "conv1.1.running_var"])
def test_weights_that_the_last_step_of_an_epoch_broke_are_never_saved(
    name: str, tiny_data: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss was finite; there is no later one that would tell."""
    step = learner.Learner.step

    def breaking(self: Any, inputs: Any, teacher: Any, labels: Any, number: int, total: int) -> Any:
        found = step(self, inputs, teacher, labels, number, total)
        if number == total - 1:
            self.model.state_dict()[name].fill_(float("inf"))
        return found

    monkeypatch.setattr(learner.Learner, "step", breaking)
    with pytest.raises(RunError, match=r"undefined after step 8 of 8.*holds the state after epoch 1\. .*lower --lr"):
        train(tiny_data, tiny_cache, tmp_path / "run", CONFIG, workers=0, report=False)
    last = RunFolder(tmp_path / "run").load_last()
    assert (last["epoch"], len(metrics(tmp_path / "run"))) == (1, 1)
    assert all(bool(values.isfinite().all()) for values in last["model"].values())


def test_the_best_epoch_is_the_one_of_the_highest_macro_f1(tiny_run: Path) -> None:
    rows = metrics(tiny_run)
    best = max(rows, key=lambda row: float(row["val_macro_f1"]))
    assert torch.load(tiny_run / "best.pt", weights_only=True)["epoch"] == int(best["epoch"])
    assert load_student(tiny_run, "cpu").card.student == "shufflenet_v2_x0_5"


def test_a_run_from_random_weights_that_diverges_blames_the_learning_rate(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    wild = dataclasses.replace(CONFIG, epochs=20, teacher=False, optimizer="sgd", momentum=0.99, lr_peak=10.0)
    with pytest.raises(RunError, match=r"the (loss|weights) .* step .*\(now 10\): lower --lr"):
        train(tiny_data, tiny_cache, tmp_path / "run", wild, workers=0, report=False)


def test_a_run_stops_early_counts_as_finished_and_stays_stopped(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    never_better = dataclasses.replace(CONFIG, epochs=20, early_stopping=2, lr_peak=1e-9)
    with caplog.at_level(logging.INFO):
        result = train(tiny_data, tiny_cache, tmp_path / "run", never_better, workers=0, report=False)
    rows = metrics(tmp_path / "run")
    assert len(rows) == result.best_epoch + 2 < 20
    assert "stopped  2 epochs without a better macro F1" in caplog.text
    RunFolder(tmp_path / "run").check_finished()
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    train(tiny_data, tiny_cache, tmp_path / "run", never_better, resume=True, workers=0, report=False)
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize(
    "setting",
    [
        {"label_fraction": 0.4}, {"n_views": 1}, {"sampler": "balanced"}, {"dropout": 0.9}, {"target": "mean"},
        {"class_weights": "FILE"}, {"teacher": False, "fresh_views": True}, {"teacher": False, "label_fraction": 0.4},
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_of_what_is_shown_and_told_changes_the_run(
    setting: dict[str, Any], tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path
) -> None:
    if "class_weights" in setting:
        names = json.loads((tiny_run / "classes.json").read_text())
        (tmp_path / "weights.yaml").write_text("".join(f"{name}: {i + 1}\n" for i, name in enumerate(names)))
        setting = {"class_weights": str(tmp_path / "weights.yaml")}
    config = dataclasses.replace(CONFIG, epochs=1, **setting)
    train(tiny_data, tiny_cache, tmp_path / "run", config, workers=0, report=False)
    assert metrics(tmp_path / "run")[0]["loss"] != metrics(tiny_run)[0]["loss"]


def test_a_run_starts_from_the_weights_of_another_and_goes_on_without_them(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = shutil.copytree(tiny_run, tmp_path / "source")
    config = dataclasses.replace(CONFIG, epochs=1, init=str(source), lr_peak=1e-9, ema_decay=0.0)
    with caplog.at_level(logging.INFO):
        train(tiny_data, tiny_cache, tmp_path / "run", config, workers=0, report=False)
    assert "init     " in caplog.text
    start, best = (load_student(path, "cpu").module.state_dict() for path in (tmp_path / "run", tiny_run))
    torch.testing.assert_close(start["fc.weight"], best["fc.weight"], rtol=1e-4, atol=1e-6)
    shutil.rmtree(source)
    train(tiny_data, tiny_cache, tmp_path / "run", config, resume=True, workers=0, report=False)


def test_a_file_of_class_weights_that_changes_in_between_is_refused(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path
) -> None:
    path, names = tmp_path / "weights.yaml", json.loads((tiny_run / "classes.json").read_text())
    path.write_text("".join(f"{name}: 1\n" for name in names))
    config = dataclasses.replace(CONFIG, epochs=1, class_weights=str(path))
    train(tiny_data, tiny_cache, tmp_path / "run", config, workers=0, report=False)
    path.write_text("".join(f"{name}: {i + 1}\n" for i, name in enumerate(names)))
    with pytest.raises(RunError, match="the file of class weights was changed since"):
        train(tiny_data, tiny_cache, tmp_path / "run", config, resume=True, workers=0, report=False)


def test_without_a_teacher_the_columns_of_its_targets_are_empty(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, teacher=False)
    train(tiny_data, tiny_cache, tmp_path / "run", config, workers=0, report=False)
    assert metrics(tmp_path / "run")[0]["train_agreement"] == ""
    assert float(metrics(tmp_path / "run")[0]["val_agreement"]) >= 0, "how far it agrees with the cache is known"
    assert 0 <= float(metrics(tiny_run)[0]["train_agreement"]) <= 1


@pytest.mark.parametrize(("epoch", "wall_s", "left"), [(1, 40.0, ", 26 min left"), (39, 40.0, ""), (40, 400.0, "")])
def test_the_line_of_an_epoch_says_how_long_it_will_go_on(epoch: int, wall_s: float, left: str) -> None:
    names = ("loss_hard", "loss_soft", "val_accuracy", "val_balanced_accuracy", "val_macro_f1")
    row = {"epoch": epoch, "wall_s": wall_s, "images_per_s": 66.6, **dict.fromkeys(names, 0.5)}
    assert module._epoch_line(row, 40).endswith(f"  67 images/s{left}")
