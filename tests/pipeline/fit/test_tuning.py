"""A dual encoder as it is fitted: it says what the teacher will say, and only what should learn gets gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.samples import FOLDER_TASK
from data.scan import scan_data
from pipeline.errors import SettingError
from pipeline.fit.tuning import DualEncoderTuning, resolve_fit_precision, sigmoid_loss
from pipeline.teachers.loading import open_teacher
from pipeline.teachers.prompts import Prompts, default_prompts

from ..other_teachers import save_clip


@pytest.fixture(scope="module")
def prompts(tiny_data: Path) -> Prompts:
    """Two texts for each class but the last, which has one."""
    single = default_prompts(scan_data(tiny_data).classes[FOLDER_TASK])
    *several, last = single.items()
    return {**{name: (*texts, "a photo of " + texts[0]) for name, texts in several}, last[0]: last[1]}


@pytest.fixture(scope="module")
def tuned(tiny_teacher: Path, prompts: Prompts) -> Callable[..., DualEncoderTuning]:
    def tuned(**settings: Any) -> DualEncoderTuning:
        return DualEncoderTuning(str(tiny_teacher), prompts, **{"device": "cpu", "precision": "fp32", **settings})

    return tuned


def noise(n: int, size_px: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size_px, size_px), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def gradients(model: DualEncoderTuning) -> dict[str, torch.Tensor]:
    model.train()
    loss = model.loss(model.logits(noise(5), model.class_texts()), torch.arange(5))
    loss.backward()
    return {name: p.grad for name, p in model.learning.items() if p.grad is not None}


@pytest.mark.parametrize("freeze_text", [True, False])
def test_the_logits_are_those_of_the_zero_shot_head(
    freeze_text: bool, tuned: Callable[..., DualEncoderTuning], tiny_teacher: Path, prompts: Prompts
) -> None:
    teacher = open_teacher(str(tiny_teacher), list(prompts), prompts, device="cpu", precision="fp32")
    expected = teacher.head.logits(teacher.embed(noise(5)))
    model = tuned(freeze_text=freeze_text)
    model.train(False)
    found = model.logits(noise(5), model.class_texts())
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-4)
    assert expected.std() > 0.05


def test_texts_embedded_once_give_the_gradients_of_texts_in_the_loop(
    tuned: Callable[..., DualEncoderTuning],
) -> None:
    once, in_the_loop = gradients(tuned()), gradients(tuned(freeze_text=False))
    assert in_the_loop.keys() - once.keys() == {name for name in in_the_loop if name.startswith("text_model.")} != set()
    for name, gradient in once.items():
        torch.testing.assert_close(gradient, in_the_loop[name], atol=1e-5, rtol=1e-4)


def test_the_last_layers_are_the_named_parameters_and_no_others(tuned: Callable[..., DualEncoderTuning]) -> None:
    everything = {name for name in tuned().learning if name.startswith("vision_model.")}
    above = {name for name in everything if name.startswith(("vision_model.post_layernorm.", "vision_model.head."))}
    last = {name for name in everything if name.startswith("vision_model.encoder.layers.1.")}
    first = {name for name in everything if name.startswith("vision_model.encoder.layers.0.")}
    assert all((last, first, above, everything - above - last - first))
    always = {"logit_scale", "logit_bias"}
    assert tuned(last_layers=0).learning.keys() == above | always
    assert tuned(last_layers=1).learning.keys() == above | last | always
    assert tuned(last_layers=2).learning.keys() == above | last | first | always
    assert tuned().learning.keys() == everything | always
    assert gradients(tuned(last_layers=1)).keys() == above | last | always


@pytest.mark.parametrize("n_layers", [-1, 3])
def test_more_layers_than_there_are_is_refused_with_their_number(
    n_layers: int, tuned: Callable[..., DualEncoderTuning]
) -> None:
    with pytest.raises(SettingError, match=rf"last_layers must be in 0\.\.2, the blocks .*, got {n_layers}"):
        tuned(last_layers=n_layers)


def test_gradient_checkpointing_computes_activations_again_and_changes_no_gradient(
    tuned: Callable[..., DualEncoderTuning],
) -> None:
    passes = []
    results = []
    for checkpointing in (False, True):
        model = tuned(gradient_checkpointing=checkpointing)
        count: list[int] = []
        model.model.vision_model.encoder.layers[0].mlp.register_forward_pre_hook(
            lambda *_, count=count: count.append(1)
        )
        results.append(gradients(model))
        passes.append(len(count))
    assert passes == [1, 2]
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient)


def test_the_sigmoid_loss_is_that_of_the_paper() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    softplus = [math.log1p(math.exp(x)) for x in (-2.0, -1.0, 0.5, -3.0)]  # -log sigmoid(z) = log(1 + exp(-z))
    assert sigmoid_loss(logits, torch.tensor([0, 1])).item() == pytest.approx(sum(softplus) / 2)


@pytest.fixture
def clip(prompts: Prompts, tmp_path: Path) -> DualEncoderTuning:
    """A tiny CLIP."""
    folder = save_clip(tmp_path / "clip")
    return DualEncoderTuning(str(folder), prompts, device="cpu", precision="fp32", last_layers=0)


def test_clip_learns_by_cross_entropy_over_the_class_texts(clip: DualEncoderTuning, prompts: Prompts) -> None:
    assert not clip.pairwise
    labels = torch.tensor([0, 4, 2])
    logits = clip.logits(noise(3), clip.class_texts())
    inputs = (noise(3).float() / 255 - clip._mean_3) / clip._std_3
    expected = clip.model(input_ids=clip._tokens_TL[-1:], pixel_values=inputs).logits_per_image
    torch.testing.assert_close(logits[:, -1:], expected)  # the class with one text
    by_hand = -torch.log_softmax(logits.double(), dim=1)[range(3), labels].mean().item()
    assert clip.loss(logits, labels).item() == pytest.approx(by_hand, rel=1e-5)
    assert {name.split(".")[0] for name in clip.learning} == {"logit_scale", "vision_model", "visual_projection"}
    assert not any("pre_layrnorm" in name or "layers.0." in name for name in clip.learning)
    with torch.no_grad():
        clip.model.logit_scale.fill_(5)
    clip.keep_in_range()
    assert clip.model.logit_scale.exp().item() == pytest.approx(100)


def test_the_precision_of_a_fit_is_resolved_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_fit_precision("auto", "cpu") == resolve_fit_precision("auto", "mps") == "fp32"
    assert resolve_fit_precision("fp16", "cpu") == "fp16"
    for supported, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported, **_: supported)
        assert resolve_fit_precision("auto", "cuda") == expected
    with pytest.raises(SettingError, match="precision on mps must be fp32 or auto, got bf16"):
        resolve_fit_precision("bf16", "mps")
