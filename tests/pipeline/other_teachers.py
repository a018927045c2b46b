"""Small models of every kind of teacher, saved as their own libraries save them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import nn


def save_clip(folder: Path, size_px: int = 32) -> Path:
    """A CLIPModel of a few thousand weights with a word tokenizer that ends each text by its end token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz ()-"
    vocabulary = {"<end>": 0, "<start>": 1, "<unk>": 2, **{letter: 3 + i for i, letter in enumerate(letters)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<unk>",
        model_max_length=77,
    )  # fmt: skip
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    config = CLIPConfig(
        text_config={**tower, **special, "vocab_size": len(vocabulary), "max_position_embeddings": 77},
        vision_config={**tower, "image_size": size_px, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    with torch.no_grad():  # fresh embeddings are so small that every answer is alike
        model.vision_model.embeddings.patch_embedding.weight.mul_(20)
        model.text_model.embeddings.token_embedding.weight.mul_(50)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": size_px}, crop_size={"height": size_px, "width": size_px}
    ).save_pretrained(folder)
    return folder


def save_transformers_classifier(folder: Path, classes: list[str] | None, n_classes: int) -> Path:
    """A ViTForImageClassification; without class names its configuration says LABEL_0, LABEL_1, ..."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    names = classes or [f"LABEL_{i}" for i in range(n_classes)]
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight.normal_()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


class SmallNet(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 4, stride=4)
        self.linear = nn.Linear(8, n_classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.linear(torch.relu(self.convolution(pixels)).mean(dim=(2, 3)))


def save_torchscript(path: Path, n_classes: int) -> Path:
    """A scripted classifier that says nothing of itself."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit calls itself deprecated
        torch.jit.script(SmallNet(n_classes).eval()).save(str(path))
    return path


def save_state_dict(path: Path, model: nn.Module) -> Path:
    """What a training script leaves: weights under `state_dict`, names with the prefix of DataParallel."""
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, path)
    return path


def write_description(path: Path, **fields: object) -> Path:
    """A --teacher-config file; JSON is YAML, too."""
    path.write_text(json.dumps(fields))
    return path
