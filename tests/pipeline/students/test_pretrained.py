"""ImageNet weights, of files that stand where a download would put them; nothing here touches a network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from pipeline.errors import SettingError
from pipeline.students import pretrained
from pipeline.students.build import build_student
from pipeline.students.names import find_source
from pipeline.students.prepare import prepare_student

CLASSES = ("akiec", "mel", "nv")


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder of torch's downloads, and no network."""

    def refuse(host: str) -> None:
        raise ConnectionError(f"no network connection to {host}")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(pretrained, "check_network", refuse)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_weights_of_torchvision_start_a_student_but_for_its_classifier(
    downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = build_student("squeezenet1_1", 1000, 64, seed=9).state_dict()
    torch.save(state, downloads / "squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setattr(pretrained, "check_hash", lambda file: None)  # they are not the real ones
    built = prepare_student("squeezenet1_1", CLASSES, 64, seed=1, init="imagenet")
    found, untrained = built.module.state_dict(), build_student("squeezenet1_1", 3, 64, seed=1).state_dict()
    head = {"classifier.1.weight", "classifier.1.bias"}
    assert all(torch.equal(found[name], (untrained if name in head else state)[name]) for name in found)
    assert built.init_report == (
        "50 of 52 tensors from torchvision's squeezenet1_1 IMAGENET1K_V1",
        "the classifier starts at random: that one is for 1000 classes, here are 3",
    )


def test_position_embeddings_are_fitted_to_another_size(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "check_hash", lambda file: None)
    tiny = {"patch_size": 32, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}
    state = torchvision.models.VisionTransformer(image_size=224, **tiny).state_dict()
    file = pretrained.torchvision_file(torchvision.models.get_model_weights("vit_b_32").DEFAULT)
    torch.save(state, downloads / file.name)
    found = pretrained.imagenet_weights(find_source("vit_b_32"), 64).state
    assert state["encoder.pos_embedding"].shape == (1, 50, 8)
    assert found["encoder.pos_embedding"].shape == (1, 5, 8)


def test_without_a_network_the_file_and_its_place_are_named(downloads: Path) -> None:
    expected = (
        r"cannot load the ImageNet weights of squeezenet1_1: no network connection to download.pytorch.org; without a "
        r"network, put https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth as squeezenet1_1-b8a52dc0.pth "
        rf"into {re.escape(str(downloads))}, or start without them: --init none"
    )
    with pytest.raises(SettingError, match=expected):
        prepare_student("squeezenet1_1", CLASSES, 64, init="imagenet")


def test_a_damaged_download_is_told(downloads: Path) -> None:
    (downloads / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"half of")
    with pytest.raises(SettingError, match=r"b8a52dc0.pth is damaged \(its sha256 is .*\): remove it"):
        prepare_student("squeezenet1_1", CLASSES, 64, init="imagenet")


def test_weights_of_timm_start_a_student_at_any_size(downloads: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model("vit_tiny_patch16_224").state_dict()
    save_file(state, downloads / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors")
    built = prepare_student("timm:vit_tiny_patch16_224", CLASSES, 96, seed=1, init="imagenet")
    found = built.module.state_dict()
    assert torch.equal(found["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])
    assert (found["pos_embed"].shape, state["pos_embed"].shape) == ((1, 37, 192), (1, 197, 192))
    assert torch.equal(found["head.weight"], build_student("timm:vit_tiny_patch16_224", 3, 96, seed=1).head.weight)
    said = "\n".join(built.init_report)
    taken = f"{len(state) - 2} of {len(state)} tensors from timm's pretrained vit_tiny_patch16_224"
    assert f"{taken}, made for pixels of mean 0.5, std 0.5" in said
    assert "the classifier starts at random: that one is for 1000 classes, here are 3" in said


def test_without_a_network_the_file_of_timm_and_its_place_are_named(
    downloads: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    expected = (
        r"cannot load timm's pretrained resnet10t: no network connection to huggingface.co; without a network, put "
        r"https://huggingface.co/timm/resnet10t.c3_in1k/resolve/main/model.safetensors as "
        rf"resnet10t.c3_in1k.safetensors into {re.escape(str(downloads))}"
    )
    with pytest.raises(SettingError, match=expected):
        pretrained.imagenet_weights(find_source("timm:resnet10t"), 64)


@pytest.mark.parametrize("name", ["timm:nonsense_tag", "timm:resnet10t.nonsense"])
def test_weights_that_nobody_has_are_told(name: str, downloads: Path) -> None:
    with pytest.raises(SettingError, match=r"no timm model is called 'nonsense_tag'|timm has no such weights"):
        pretrained.imagenet_weights(find_source(name), 64)
