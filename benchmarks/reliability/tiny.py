"""Make everything small that a campaign builds with: the teacher, and the segments of a cache on its way."""

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize, one_hot
from transformers import AutoTokenizer

from cache import SegmentedWriter
from data.reading import read_sample
from data.samples import FOLDER_TASK, SampleSet
from data.scan import scan_data
from data.views import CLEAN_ROW, render
from pipeline.teachers.prompts import Prompts, default_prompts
from pipeline.teachers.small import SmallSiglip, new_siglip

SEGMENT_ROWS = 16
SIZE_PX = 32
RIDGE = 0.01
"""Of unit embeddings: with less, the few train images are known by heart and their logits lie close together."""


def write_teacher(
    folder: Path, images: Path, width: int = 32, seed: int = 0, *, patch_px: int = 8, layers: int = 2
) -> Path:
    """A SigLIP model of a few thousand weights that knows these images a little: well above chance, far from right."""
    found = scan_data(images)
    prompts = default_prompts(found.classes[FOLDER_TASK])
    texts = [text for class_texts in prompts.values() for text in class_texts]
    model = new_siglip(
        SmallSiglip(size_px=SIZE_PX, patch_px=patch_px, width=width, layers=layers, heads=2), texts, folder, seed
    )
    with torch.no_grad():
        # A fresh model's answers are nearly constant: a large probe token gives them some variety.
        model.vision_model.head.probe.normal_(generator=torch.Generator().manual_seed(seed))
        model.logit_scale.fill_(4.72)  # MedSigLIP's
        model.logit_bias.fill_(-16.5)
    model.eval()
    _fit_text_head(
        model, AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False), found, prompts
    )
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def _fit_text_head(model: Any, tokenizer: Any, images: SampleSet, prompts: Prompts) -> None:
    """Give the text tower the last layer with which each class's prompt embeds to its ridge regression weights.

    The regression is of one class against the others, on the unit embeddings of the clean train images; milliseconds.
    """
    train, classes = images.of_split("train"), list(prompts)
    pixels = torch.stack([render(read_sample(sample), CLEAN_ROW, SIZE_PX, "warp") for sample in train])
    image_ND = normalize(model.vision_model(pixel_values=pixels.float() / 127.5 - 1).pooler_output.double())
    labels_N = torch.tensor([classes.index(sample.labels[FOLDER_TASK]) for sample in train])
    wanted_NC = one_hot(labels_N, len(classes)).double() - 1 / len(classes)
    gram_DD = image_ND.T @ image_ND + RIDGE * torch.eye(image_ND.shape[1])
    weights_DC = torch.linalg.solve(gram_DD, image_ND.T @ wanted_NC)
    texts = [class_texts[0] for class_texts in prompts.values()]
    tokens = tokenizer(texts, padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
    text_CD = model.text_model(input_ids=tokens).last_hidden_state[:, -1].double()
    mean_D = text_CD.mean(dim=0)
    head = model.text_model.head
    layer_DD = torch.linalg.lstsq(text_CD - mean_D, normalize(weights_DC.T), driver="gelsd").solution.T
    head.weight.copy_(layer_DD)
    head.bias.copy_(-layer_DD @ mean_D)


def shrink_segments() -> None:
    """From now on, in this process and those forked from it."""
    defaults: dict[str, Any] = SegmentedWriter.__init__.__kwdefaults__ or {}
    assert "segment_rows" in defaults
    defaults["segment_rows"] = SEGMENT_ROWS
