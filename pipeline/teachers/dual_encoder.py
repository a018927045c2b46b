"""Dual encoders of transformers as teachers: SigLIP (MedSigLIP is one) and CLIP, with a zero-shot head made of prompts.

Never trains. The text tower runs once, on the CPU in float32, and is dropped.
B batch, C classes, D embedding, S pixels.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import TeacherError
from pipeline.teachers.heads import ZeroShotHead
from pipeline.teachers.hub import load_local_first, quiet_transformers
from pipeline.teachers.preprocessing import read_preprocessing
from pipeline.teachers.prompts import Prompts
from pipeline.teachers.teacher import LoadedModel, json_digest, weights_digest

log = logging.getLogger(__name__)

MODEL_TYPES = ("siglip", "clip")
_PROMPT_POOLING = "normalise-mean-normalise"


@dataclass(frozen=True)
class DualEncoder:
    """A whole checkpoint, on the CPU in float32."""

    model: Any
    """SiglipModel or CLIPModel."""
    tokenizer: Any
    image_processor: Any

    @property
    def kind(self) -> str:
        """siglip or clip."""
        return str(self.model.config.model_type)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token ids, int64 [texts, length], padded to the full length and meant to go without an attention mask.

        SigLIP was trained so: it pools the last position, and a mask or shorter padding shifts its logits by about 15.
        CLIP pools its end token, before which no padding stands.
        """
        length = self.model.config.text_config.max_position_embeddings
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        tokens: Tensor = self.tokenizer(list(texts), **options)["input_ids"]
        return tokens

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Un-normalised text embeddings, [texts, D]."""
        pooled: Tensor = self.model.text_model(input_ids=tokens).pooler_output
        return self.model.text_projection(pooled) if self.kind == "clip" else pooled

    def image_tower(self) -> nn.Module:
        """Normalised pixels [B, 3, S, S] -> un-normalised image embeddings [B, D]."""
        projection = self.model.visual_projection if self.kind == "clip" else nn.Identity()
        return _ImageTower(self.model.vision_model, projection)

    def class_embeddings(self, embedded_TD: Tensor, prompts: Prompts) -> Tensor:
        """One unit vector a class, [C, D], of the embeddings of all its texts: normalise, mean, normalise."""
        embedded_TD = embedded_TD / embedded_TD.norm(dim=-1, keepdim=True)
        bounds = itertools.accumulate((len(texts) for texts in prompts.values()), initial=0)
        mean_CD = torch.stack([embedded_TD[low:high].mean(dim=0) for low, high in itertools.pairwise(bounds)])
        return mean_CD / mean_CD.norm(dim=-1, keepdim=True)

    def identity(self, head: ZeroShotHead, prompts: Prompts, token_digest: str) -> dict[str, Any]:
        """What the logits depend on, but for pixels and precision."""
        return {
            "kind": self.kind,
            "weights_sha256": weights_digest(self.model),
            "architecture": _architecture(self.model.config),
            "tokenizer_sha256": json_digest(sorted(self.tokenizer.get_vocab().items())),
            "prompts": {name: list(texts) for name, texts in prompts.items()},
            "prompt_pooling": _PROMPT_POOLING,
            "prompt_tokens_sha256": token_digest,
            "logit_scale": head.scale.hex(),
            "logit_bias": head.bias.hex(),
            "head": "zero_shot",
            # CLIP pools the position of this token
            **({"text_end_token": self.model.config.text_config.eos_token_id} if self.kind == "clip" else {}),
        }


class _ImageTower(nn.Module):
    def __init__(self, vision: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.vision, self.projection = vision, projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        embedding: Tensor = self.projection(self.vision(pixel_values=pixel_values).pooler_output)
        return embedding


def load_dual_encoder(source: str) -> DualEncoder:
    """A checkpoint from a folder, else the local hub cache, else the hub; TeacherError says what to do if not."""
    quiet_transformers()

    def load(local_files_only: bool) -> DualEncoder:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(source, local_files_only=local_files_only, trust_remote_code=False)
        return dual_encoder_from(source, config, local_files_only)

    return load_local_first(source, load, "a SigLIP or CLIP model")


def zero_shot_teacher(dual: DualEncoder, prompts: Prompts, fitted_on: frozenset[bytes] | None = None) -> LoadedModel:
    """The image tower and the head that these prompts make."""
    size_px, mean, std = read_preprocessing(dual.image_processor)
    expected_px = dual.model.config.vision_config.image_size
    if size_px != expected_px:
        raise TeacherError(
            f"the teacher's processor makes {size_px} x {size_px} pixels, its model takes {expected_px} x {expected_px}"
        )
    head, token_digest = zero_shot_head(dual, prompts)
    return LoadedModel(
        tower=dual.image_tower(), head=head, classes=tuple(prompts), size_px=size_px, mean=mean, std=std,
        identity=dual.identity(head, prompts, token_digest), image_processor=dual.image_processor,
        fitted_on=fitted_on,
    )  # fmt: skip


@torch.inference_mode()
def zero_shot_head(dual: DualEncoder, prompts: Prompts) -> tuple[ZeroShotHead, str]:
    """The head and the digest of its token ids."""
    texts = [text for class_texts in prompts.values() for text in class_texts]
    tokens = dual.tokens(texts)
    n_tokens = tokens.shape[1]
    if cut := [t for t, ids in zip(texts, dual.tokenizer(texts)["input_ids"], strict=True) if len(ids) > n_tokens]:
        log.warning(
            "%d prompts are longer than the %d tokens that the teacher reads (first: %s)", len(cut), n_tokens, cut[0]
        )
    text_CD: NDArray[np.float64] = dual.class_embeddings(dual.embed_tokens(tokens).double(), prompts).numpy()
    bias = dual.model.logit_bias.double().item() if dual.kind == "siglip" else 0.0
    head = ZeroShotHead(text_CD, dual.model.logit_scale.double().exp().item(), bias)
    return head, json_digest(tokens.tolist())


def dual_encoder_from(source: str, config: Any, local_files_only: bool) -> DualEncoder:
    """The checkpoint that `config` configures; ValueError for another kind of model, OSError for what is absent."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    if config.model_type not in MODEL_TYPES:  # the fixed-size SigLIP 2 checkpoints call themselves siglip, too
        raise ValueError(f"its model type is '{config.model_type}', expected one of {', '.join(MODEL_TYPES)}")
    # AutoModel, never AutoModelForImageClassification: that one ignores the pooling head and has a random classifier.
    model, loading = AutoModel.from_pretrained(
        source, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=local_files_only,
        trust_remote_code=False, output_loading_info=True,
    )  # fmt: skip
    check_no_random_weights(loading)
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local_files_only, trust_remote_code=False)
    image_processor = AutoImageProcessor.from_pretrained(
        source, local_files_only=local_files_only, trust_remote_code=False
    )
    return DualEncoder(model.eval(), tokenizer, image_processor)


def check_no_random_weights(loading: dict[str, Any]) -> None:
    """ValueError where transformers filled weights that the file lacks with random numbers."""
    if lacking := sorted(loading["missing_keys"]):
        raise ValueError(f"its file lacks {len(lacking)} weights, which would be random (first: {lacking[0]})")


def _architecture(config: Any) -> dict[str, dict[str, Any]]:
    """What the answers depend on and the weights' names and shapes do not show, for each tower."""
    return {
        name: {
            "num_attention_heads": tower.num_attention_heads,
            "hidden_act": str(tower.hidden_act),
            "layer_norm_eps": float(tower.layer_norm_eps).hex(),
        }
        for name, tower in (("vision", config.vision_config), ("text", config.text_config))
    }
