"""A dual encoder fitted to two tasks at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data.options import ScanOptions
from data.scan import scan_data
from pipeline.fit.folder import fitted_on
from pipeline.fit.steps import Steps
from pipeline.fit.teacher import FitConfig, fit_teacher
from pipeline.fit.tuning import DualEncoderTuning, sigmoid_loss
from pipeline.tasks import UNLABELLED, Tasks
from pipeline.teachers.prompts import PromptSource


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, two_tasks_scan: ScanOptions) -> PromptSource:
    classes = scan_data(tiny_data, two_tasks_scan).classes
    texts = {"dx": {name: name for name in classes["dx"]}, "tone": {"dark": "a dark spot", "pale": "a pale spot"}}
    path = tmp_path_factory.mktemp("prompts") / "prompts.yaml"
    path.write_text(json.dumps(texts))
    return PromptSource(file=path)


def test_a_fit_learns_from_every_image_with_a_label_in_any_task(
    tiny_data: Path, tiny_teacher: Path, two_tasks_scan: ScanOptions, source: PromptSource, tmp_path: Path
) -> None:
    config = FitConfig(epochs=1, lr_peak=1e-3, batch_size=8)
    fit_teacher(
        tiny_data, tiny_teacher, tmp_path / "t", config, prompts=source, device="cpu", workers=0, scan=two_tasks_scan
    )
    told = json.loads((tmp_path / "t" / "fit_config.json").read_text())
    assert told["prompts"]["tone: dark"] == ["a dark spot"]
    assert len(told["prompts"]) == 7
    train = scan_data(tiny_data, two_tasks_scan).of_split("train")
    assert fitted_on(tmp_path / "t") == {sample.key for sample in train if sample.labels}
    assert len(train) - len([sample for sample in train if sample.labels]) == 2


def test_the_loss_is_the_mean_over_the_tasks_of_their_labelled_images(
    tiny_data: Path, tiny_teacher: Path, two_tasks_scan: ScanOptions, source: PromptSource
) -> None:
    tasks = Tasks(scan_data(tiny_data, two_tasks_scan).classes)
    model = DualEncoderTuning(str(tiny_teacher), source.texts_of(tasks), device="cpu", precision="fp32")
    steps = Steps(model, tasks, lr_peak=1e-3, weight_decay=0.0, total_steps=1)
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[4, 0], [UNLABELLED, 1], [2, UNLABELLED]])
    dx = sigmoid_loss(logits[[0, 2], :5], torch.tensor([4, 2]))
    tone = sigmoid_loss(logits[:2, 5:], torch.tensor([0, 1]))
    assert steps._loss(logits, labels) == pytest.approx(float(dx + tone) / 2)
