"""A classifier taken apart: its identity, and answers that are not one row of logits an image."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import googlenet, shufflenet_v2_x0_5

from pipeline.card import IMAGENET_MEAN, IMAGENET_STD
from pipeline.errors import SettingError, TeacherError
from pipeline.teachers.classifiers import Classifier, classifier_teacher, torchvision_classifier
from pipeline.teachers.description import TeacherDescription
from pipeline.teachers.loading import open_teacher
from pipeline.teachers.prompts import PromptSource
from pipeline.teachers.teacher import Teacher

from . import other_teachers as make

CLASSES = ("a", "b", "c")
SMALL = TeacherDescription(size_px=32)


def opened(source: object, described: TeacherDescription = SMALL, precision: str = "fp32") -> Teacher:
    return open_teacher(str(source), CLASSES, PromptSource(), description=described, device="cpu", precision=precision)


def test_teachers_that_differ_in_their_last_layer_alone_are_two_teachers(tmp_path: Path) -> None:
    model = shufflenet_v2_x0_5(num_classes=3)
    first = make.save_state_dict(tmp_path / "first.pt", model)
    with torch.no_grad():
        model.fc.weight.neg_()
    second = make.save_state_dict(tmp_path / "second.pt", model)
    left, again, right = (
        opened(f"torchvision:shufflenet_v2_x0_5:{path}").identity["weights_sha256"] for path in (first, first, second)
    )
    assert left == again != right


def test_settings_of_a_transformers_classifier_are_part_of_its_identity_and_its_names_are_not(tmp_path: Path) -> None:
    folder = make.save_transformers_classifier(tmp_path / "hf", list(CLASSES), 3)

    def identity_with(**changes: object) -> str:
        other = shutil.copytree(folder, tmp_path / "other", dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text()) | changes
        (other / "config.json").write_text(json.dumps(config))
        return str(opened(other, TeacherDescription(classes=CLASSES)).identity["config_sha256"])

    same = identity_with()
    assert identity_with(id2label={"2": "z", "0": "x", "1": "y"}, transformers_version="4.1") == same
    for changes in ({"num_attention_heads": 1}, {"hidden_act": "relu"}, {"layer_norm_eps": 0.1}):
        assert identity_with(**changes) != same


class Forgetful(nn.Module):
    """Says something else in training mode."""

    def __init__(self, forgetting: nn.Module) -> None:
        super().__init__()
        self.convolution, self.forgetting, self.linear = nn.Conv2d(3, 8, 4, 4), forgetting, nn.Linear(8, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.linear(torch.relu(self.forgetting(self.convolution(pixels))).mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("forgetting", [nn.Dropout(0.5), nn.BatchNorm2d(8)], ids=["dropout", "batch statistics"])
def test_a_program_that_was_traced_in_training_mode_is_refused(forgetting: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Forgetful(forgetting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit calls itself deprecated
        for name in ("train", "eval"):
            example = torch.randn(2, 3, 32, 32)
            torch.jit.trace(getattr(model, name)(), example, check_trace=False).save(str(tmp_path / f"{name}.pt"))
    with pytest.raises(TeacherError, match=r"in several ways: it was saved in training mode; call model.eval\(\)"):
        opened(tmp_path / "train.pt")
    assert opened(tmp_path / "eval.pt").classes == CLASSES


def test_a_size_that_a_torchvision_model_asserts_against_is_told() -> None:
    class Asserts(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            torch._assert(pixels.shape[-1] == 224, "Wrong image height!")
            return pixels

    with pytest.raises(TeacherError, match=r"cannot take 32 x 32 pixels \(Wrong image height!\)"):
        classifier_teacher(
            Classifier(module=Asserts(), kind="torchvision", architecture="", size_px=224), SMALL, CLASSES
        )


def test_files_that_hold_no_weights_are_told(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({0: torch.zeros(1)}, path)
    with pytest.raises(TeacherError, match="holds no state dict"):
        opened(f"torchvision:shufflenet_v2_x0_5:{path}")
    path.write_bytes(b"\x80\x020")  # a pickle that takes from an empty stack
    with pytest.raises(TeacherError, match="no weights that can be loaded safely"):
        opened(f"torchvision:shufflenet_v2_x0_5:{path}")


@pytest.mark.parametrize(
    "config",
    ["5", '{"architectures": 3, "model_type": "vit"}', '{"model_type": "vit", "id2label": 5}',
     '{"model_type": "siglip", "text_config": 5}'],
)  # fmt: skip
def test_a_folder_whose_configuration_is_nonsense_is_told(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(TeacherError, match="is not a SigLIP or CLIP model or an image classifier: "):
        opened(tmp_path)


def test_an_unknown_tag_of_timm_is_told(tmp_path: Path) -> None:
    for source in ("timm:test_vit.nope", f"timm:test_vit.nope:{make.write_description(tmp_path / 'w.pt')}"):
        with pytest.raises(SettingError, match=r"Invalid pretrained tag \(nope\)"):
            opened(source)


def test_no_code_of_a_checkpoint_runs_and_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass EvilConfig: pass\n")
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    with pytest.raises(TeacherError, match="is not a SigLIP or CLIP model or an image classifier: "):
        opened(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_weights_of_torchvision_that_are_not_what_their_name_says_are_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").write_bytes(b"a pickle, say")
    with pytest.raises(TeacherError, match=r"f37072fd.pth is damaged \(its sha256 is [0-9a-f]{8}...\): remove it"):
        opened("torchvision:resnet18")


def test_an_input_transform_is_said_as_the_normalisation_that_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """GoogLeNet's official weights come with one, which no tensor shows."""
    torch.manual_seed(0)
    model = googlenet(weights=None, aux_logits=False, init_weights=False, transform_input=True, num_classes=3).eval()
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, **options: model)
    monkeypatch.setattr("pipeline.students.pretrained.check_network", lambda host: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    pixels = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    transformed = model._transform_input((pixels - mean) / std)
    found = torchvision_classifier("googlenet", "", 3, TeacherDescription())
    torch.testing.assert_close((pixels - torch.tensor(found.mean).view(3, 1, 1)) / found.std[0], transformed)
    assert found.module.transform_input is False
    monkeypatch.undo()
    path = make.save_state_dict(tmp_path / "googlenet.pt", model)
    with caplog.at_level(logging.INFO):
        torchvision_classifier("googlenet", str(path), 3, TeacherDescription())
    assert "is taken for one without transform_input" in caplog.text


def test_a_precision_that_a_program_cannot_compute_in_is_told(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit calls itself deprecated
        torch.jit.freeze(torch.jit.script(make.SmallNet(3).eval())).save(str(tmp_path / "frozen.pt"))
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(TeacherError, match=r"cannot compute 2 views of 32 px in bf16 on cpu .*try --precision fp32"):
        opened(tmp_path / "frozen.pt", precision="bf16").embed(pixels)
    assert opened(tmp_path / "frozen.pt").embed(pixels).shape == (2, 3)
