"""Fit a small SigLIP model to an image folder, from scratch: a teacher for demos, tests and measurements.

The result is an ordinary `save_pretrained` folder, loaded by the same code as MedSigLIP. The loss is SigLIP's
pairwise sigmoid loss (Zhai et al. 2023, section 3) between the images of a batch and one text a class.
B batch, C classes, D embedding, S pixels.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data.loaders import read_sample
from data.samples import FOLDER_TASK, SampleSet
from data.views import ViewPolicy, draw, render
from pipeline.errors import OutputExists, SettingError
from pipeline.teachers.hub import quiet_transformers
from pipeline.teachers.prompts import Prompts

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SmallSiglip:
    """The shape of a small SigLIP model. Its text tower has the same width and one layer."""

    size_px: int = 64
    patch_px: int = 8
    width: int = 96
    layers: int = 3
    heads: int = 4

    def __post_init__(self) -> None:
        if self.size_px % self.patch_px:
            raise SettingError(f"size_px must be a multiple of patch_px, got {self.size_px} and {self.patch_px}")
        if self.width % self.heads:
            raise SettingError(f"width must be a multiple of heads, got {self.width} and {self.heads}")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How the small teacher is fitted."""

    shape: SmallSiglip = SmallSiglip()
    epochs: int = 20
    batch_size: int = 32
    lr_peak: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr_peak"):
            if getattr(self, name) <= 0:
                raise SettingError(f"{name} must be positive, got {getattr(self, name)}")


def new_siglip(shape: SmallSiglip, texts: Sequence[str], out: Path, seed: int = 0) -> Any:
    """A SiglipModel with random weights and a tokenizer trained on `texts`, saved in `out` and returned."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor, SiglipTokenizer

    quiet_transformers()
    out.mkdir(parents=True, exist_ok=True)
    (out / "spiece.model").write_bytes(_train_sentencepiece(texts))
    tokenizer = SiglipTokenizer(
        vocab_file=str(out / "spiece.model"), model_max_length=64, model_input_names=["input_ids"]
    )
    tower = {
        "hidden_size": shape.width,
        "intermediate_size": 4 * shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
    }
    text_tokens = {"max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": None, "eos_token_id": 1}
    config = SiglipConfig(
        text_config={**tower, **text_tokens, "num_hidden_layers": 1, "vocab_size": tokenizer.vocab_size},
        vision_config={**tower, "image_size": shape.size_px, "patch_size": shape.patch_px},
    )
    torch.manual_seed(seed)
    model = SiglipModel(config)
    with torch.no_grad():  # the paper's starting point: temperature 10, bias -10
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-10)
    image_processor = SiglipImageProcessor(size={"height": shape.size_px, "width": shape.size_px}, resample=3)
    model.save_pretrained(out)
    SiglipProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(out)
    return model


def _train_sentencepiece(texts: Sequence[str]) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(list(texts) * 20), model_writer=model, model_type="unigram",
        vocab_size=64, hard_vocab_limit=False, normalization_rule_name="identity", minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>",
    )  # fmt: skip
    return model.getvalue()


def sigmoid_loss(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Mean over images of the sum over texts of -log sigmoid(+-logit), plus where the text is the image's class."""
    signs_BC = 2 * F.one_hot(labels_B, logits_BC.shape[1]).to(logits_BC.dtype) - 1
    return -F.logsigmoid(signs_BC * logits_BC).sum(dim=1).mean()


def fit_teacher(images: SampleSet, prompts: Prompts, out: Path, config: FitConfig) -> None:
    """Fit a small SigLIP to the train split of `images` and save it in `out`, which must not exist yet."""
    if out.exists():
        raise OutputExists(f"{out} exists: choose another folder, or delete it to fit again")
    texts = [text for class_texts in prompts.values() for text in class_texts]
    pool_TC = _mean_over_texts(prompts)
    model = new_siglip(config.shape, texts, out, config.seed)
    tokens = _tokenise(out, texts)
    train = images.of_split("train")
    classes = list(prompts)
    labels_N = torch.tensor([classes.index(sample.labels[FOLDER_TASK]) for sample in train])
    pixels = [read_sample(sample) for sample in train]
    steps = config.epochs * math.ceil(len(train) / config.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr_peak, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr_peak, total_steps=steps, pct_start=0.1)
    model.train()
    progress = tqdm(range(config.epochs), desc="fit teacher", unit="epoch", disable=None)
    for epoch in progress:
        for rows in _batches(len(train), config, epoch):
            views = [
                render(pixels[i], draw(ViewPolicy(), train[i].key, epoch + 1, config.seed), config.shape.size_px)
                for i in rows
            ]
            batch = torch.stack(views).float().div_(127.5).sub_(1)
            logits_BT = model(input_ids=tokens, pixel_values=batch).logits_per_image
            loss = sigmoid_loss(logits_BT @ pool_TC, labels_N[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval().save_pretrained(out)


def _mean_over_texts(prompts: Prompts) -> Tensor:
    """float32 [T, C]: several texts of a class count as one, whose logit is their mean."""
    rows = [F.one_hot(torch.tensor(i), len(prompts)) / len(texts) for i, texts in enumerate(prompts.values())]
    return torch.stack([row for row, texts in zip(rows, prompts.values(), strict=True) for _ in texts])


def _tokenise(folder: Path, texts: Sequence[str]) -> Tensor:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens: Tensor = tokenizer(list(texts), padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
    return tokens


def _batches(n_samples: int, config: FitConfig, epoch: int) -> Iterator[list[int]]:
    order = np.random.default_rng([config.seed, epoch]).permutation(n_samples)
    for start in range(0, n_samples, config.batch_size):
        yield order[start : start + config.batch_size].tolist()
