"""Make a small SigLIP model with random weights: the start of the demo's teacher, of tests and of measurements.

Never fits (`pipeline.fit.teacher` does). The result is an ordinary `save_pretrained` folder, loaded by the same code
as MedSigLIP. Run: softlabel demo, or python benchmarks/fit_small_teacher.py DATA -o DIR
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import SettingError
from pipeline.teachers.hub import quiet_transformers


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
