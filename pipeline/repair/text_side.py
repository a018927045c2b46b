"""The text side of a teacher: its zero-shot head for some prompts, and what tells it from other teachers.

Loads the whole checkpoint, whose weights the digest covers, and runs its text tower alone.
Run: softlabel cache rehead t.h5 --prompts new.yaml -o new.h5
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.teachers.dual_encoder import load_dual_encoder, zero_shot_head
from pipeline.teachers.heads import ZeroShotHead
from pipeline.teachers.prompts import Prompts

_OF_THE_TEACHER = ("kind", "weights_sha256", "architecture", "tokenizer_sha256")


@dataclass(frozen=True)
class TextSide:
    """A head, the facts of an identity that name the teacher, and those that name the head."""

    head: ZeroShotHead
    teacher: dict[str, Any]
    prompted: dict[str, Any]


def load_text_side(source: str, prompts: Prompts) -> TextSide:
    """From a folder or, by name, from the Hugging Face cache or hub; TeacherError says what to do if not."""
    dual = load_dual_encoder(source)
    head, token_digest = zero_shot_head(dual, prompts)
    identity = dual.identity(head, prompts, token_digest)
    prompted = {name: value for name, value in identity.items() if name not in _OF_THE_TEACHER}
    digest = hashlib.sha256(head.text_CD.astype(np.float32).tobytes()).hexdigest()
    return TextSide(
        head, {name: identity[name] for name in _OF_THE_TEACHER}, {**prompted, "text_embeddings_sha256": digest}
    )
