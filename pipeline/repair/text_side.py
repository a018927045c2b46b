"""The text side of a teacher: its zero-shot head for some prompts, and what tells it from other teachers.

Loads the whole checkpoint, whose weights the digest covers, and runs its text tower alone.
Run: softlabel cache rehead t.h5 --prompts new.yaml -o new.h5
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.teachers import siglip
from pipeline.teachers.prompts import Prompts

KINDS = ("siglip",)
"""What a cache may call its teacher for it to have a text side that this version knows."""


@dataclass(frozen=True)
class TextSide:
    """A head, the facts of an identity that name the teacher, and those that name the head."""

    head: siglip.ZeroShotHead
    teacher: dict[str, Any]
    prompted: dict[str, Any]


def load_text_side(source: str, prompts: Prompts) -> TextSide:
    """From a folder or, by name, from the Hugging Face cache or hub; TeacherError says what to do if not."""
    model, tokenizer, _ = siglip._load(source)
    head, token_digest = siglip._zero_shot_head(model, tokenizer, prompts)
    teacher = {
        "kind": "siglip",
        "weights_sha256": siglip._weights_digest(model),
        "architecture": siglip._architecture(model.config),
        "tokenizer_sha256": siglip._digest(sorted(tokenizer.get_vocab().items())),
    }
    prompted = {
        "prompts": {name: list(texts) for name, texts in prompts.items()},
        "prompt_pooling": siglip._PROMPT_POOLING,
        "prompt_tokens_sha256": token_digest,
        "text_embeddings_sha256": hashlib.sha256(head.text_CD.astype(np.float32).tobytes()).hexdigest(),
        "logit_scale": head.scale.hex(),
        "logit_bias": head.bias.hex(),
    }
    return TextSide(head, teacher, prompted)
