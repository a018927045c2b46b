"""A SigLIP-family teacher (MedSigLIP by default): uint8 views -> image embeddings -> zero-shot logits.

Never trains. The text tower runs once, on the CPU in float32, and is dropped; the image tower runs in mixed
precision on the device; normalising and the product with the text embeddings run in float64 on the CPU and are
rounded to float32 once, so that a row's bits depend on neither its neighbours nor the thread count.
B batch, C classes, D embedding, S pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import socket
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.errors import TeacherError, first_line
from pipeline.teachers.prompts import Prompts

log = logging.getLogger(__name__)

DEFAULT_TEACHER = "google/medsiglip-448"
RESOLVED_PRECISIONS = ("fp32", "fp16", "bf16")
PRECISIONS = ("auto", *RESOLVED_PRECISIONS)
_TORCH_DTYPE = {"fp16": torch.float16, "bf16": torch.bfloat16}
# What transformers raises for what is missing, not a model, damaged, or of other shapes.
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError)
_PROMPT_POOLING = "normalise-mean-normalise"


def resolve_precision(precision: str, device: str) -> str:
    """`auto` -> fp16 on a GPU (8 to 20 times closer to fp32 than bf16 there), fp32 on a CPU.

    On CPUs bf16 is between twice as fast and half as fast as fp32, and no flag of the processor says which: measured
    at MedSigLIP's size on two that both have avx512_bf16 (docs/results.md).
    """
    if precision != "auto":
        return precision
    return "fp32" if device == "cpu" else "fp16"


@dataclass(frozen=True)
class ZeroShotHead:
    """The text side, after its tower is gone: logits = cos(image, text) * scale + bias (Zhai et al. 2023, eq. 1)."""

    text_CD: NDArray[np.float64]
    """One unit vector a class, float64 [C, D]."""
    scale: float
    bias: float

    def logits(self, embedding_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw logits, float32 [B, C], of un-normalised image embeddings, float32 [B, D]."""
        image_BD = embedding_BD.astype(np.float64)
        image_BD /= np.linalg.norm(image_BD, axis=1, keepdims=True)
        return (image_BD @ self.text_CD.T * self.scale + self.bias).astype(np.float32)


class SiglipTeacher:
    """A loaded teacher. `identity` and `preprocessing` say everything that its logits depend on."""

    def __init__(self, source: str, prompts: Prompts, *, device: str, precision: str) -> None:
        """Load from a folder or, by name, from the Hugging Face cache or hub; TeacherError says what to do if not."""
        self.device, self.precision = device, precision
        model, tokenizer, image_processor = _load(source)
        self.size_px, self._mean, self._std = _preprocessing(image_processor, model.config.vision_config)
        self.head, token_digest = _zero_shot_head(model, tokenizer, prompts)
        self.identity = {
            "kind": "siglip",
            "weights_sha256": _weights_digest(model),
            "architecture": _architecture(model.config),
            "tokenizer_sha256": _digest(sorted(tokenizer.get_vocab().items())),
            "prompts": {name: list(texts) for name, texts in prompts.items()},
            "prompt_pooling": _PROMPT_POOLING,
            "prompt_tokens_sha256": token_digest,
            "logit_scale": self.head.scale.hex(),
            "logit_bias": self.head.bias.hex(),
            "head": "zero_shot",
        }
        self.preprocessing = {
            "size_px": self.size_px,
            "mean": [value.hex() for value in self._mean],
            "std": [value.hex() for value in self._std],
        }
        self.n_parameters = sum(p.numel() for p in model.vision_model.parameters())
        tower: nn.Module = model.vision_model
        del model
        # On a CPU autocast at batch 4 and more costs 5 GB at MedSigLIP's size; bf16 weights do not.
        self._weights_dtype = _TORCH_DTYPE["bf16"] if (device, precision) == ("cpu", "bf16") else torch.float32
        self._tower = tower.to(device=device, dtype=self._weights_dtype).eval().requires_grad_(False)
        self._mean_3 = torch.tensor(self._mean, device=device).view(1, 3, 1, 1)
        self._std_3 = torch.tensor(self._std, device=device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def embed(self, pixels: Tensor) -> NDArray[np.float32]:
        """Un-normalised pooled embeddings, float32 [B, D], of uint8 views [B, 3, S, S].

        Rows that come out non-finite in half precision are computed again in float32; TeacherError if that fails too.
        """
        embedding = self._forward(pixels, self.precision)
        bad = ~torch.isfinite(embedding).all(dim=1)
        if bad.any() and self._weights_dtype == torch.float32:
            log.info("%d of %d rows overflow in %s: computed again in fp32", bad.sum(), len(bad), self.precision)
            embedding[bad] = self._forward(pixels, "fp32")[bad]
            bad = ~torch.isfinite(embedding).all(dim=1)
        if bad.any():
            raise TeacherError(
                f"the teacher answers {int(bad.sum())} of {len(bad)} views with infinite or undefined numbers in "
                f"{self.precision}: try --precision fp32; if that fails too, its weights are damaged"
            )
        return embedding.numpy()

    def _forward(self, pixels: Tensor, precision: str) -> Tensor:
        inputs = pixels.to(self.device).float().div_(255).sub_(self._mean_3).div_(self._std_3)
        autocast: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if precision != "fp32" and self._weights_dtype == torch.float32:
            autocast = torch.autocast(self.device, _TORCH_DTYPE[precision])
        with autocast:
            pooled: Tensor = self._tower(pixel_values=inputs.to(self._weights_dtype)).pooler_output
        return pooled.float().cpu()


def _load(source: str) -> tuple[Any, Any, Any]:
    """(model in float32, tokenizer, image processor), from a folder, else the local hub cache, else the hub."""
    is_folder = Path(source).is_dir()
    if not is_folder and (Path(source).is_absolute() or source.startswith((".", "~")) or source.count("/") != 1):
        raise TeacherError(
            f"no such teacher folder: {source}; expected a folder or a hub name such as {DEFAULT_TEACHER}"
        )
    try:
        return _from_pretrained(source, local_files_only=True)
    except _LOADING_ERRORS as error:
        if is_folder:
            raise TeacherError(f"{source} is not a SigLIP teacher: {first_line(error)}") from error
    try:
        _check_hub_is_reachable()
        return _from_pretrained(source, local_files_only=False)
    except _LOADING_ERRORS as error:
        raise TeacherError(
            f"cannot load the teacher {source}: it is no folder here, and {first_line(error)}\n"
            f"If it is gated, accept its terms at https://huggingface.co/{source} and run `hf auth login`; "
            "without a network, pass a folder that holds it: --teacher DIR\n"
            "To see the whole pipeline without any download: softlabel demo"
        ) from error


def _check_hub_is_reachable() -> None:
    """ConnectionError at once: without a network, a download is tried six times over half a minute."""
    from huggingface_hub import constants

    if urllib.request.getproxies():
        return  # only the proxy knows
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    try:
        socket.create_connection((host, 443), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"no network connection to {host}") from error


def _from_pretrained(source: str, *, local_files_only: bool) -> tuple[Any, Any, Any]:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    quiet_transformers()
    config = AutoConfig.from_pretrained(source, local_files_only=local_files_only)
    if config.model_type != "siglip":  # the fixed-size SigLIP 2 checkpoints call themselves siglip, too
        raise ValueError(f"its model type is '{config.model_type}', expected 'siglip'")
    # AutoModel, never AutoModelForImageClassification: that one ignores the pooling head and has a random classifier.
    model, loading = AutoModel.from_pretrained(
        source,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=local_files_only,
        output_loading_info=True,
    )
    if lacking := sorted(loading["missing_keys"]):
        raise ValueError(f"its file lacks {len(lacking)} weights, which would be random (first: {lacking[0]})")
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local_files_only)
    return model.eval(), tokenizer, AutoImageProcessor.from_pretrained(source, local_files_only=local_files_only)


def quiet_transformers() -> None:
    """No progress bars for local files, no remarks on settings that are the checkpoint's own."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _preprocessing(image_processor: Any, vision_config: Any) -> tuple[int, list[float], list[float]]:
    size = image_processor.size
    if size["height"] != size["width"] or size["height"] != vision_config.image_size:
        raise TeacherError(
            f"the teacher's processor makes {size['height']} x {size['width']} pixels, "
            f"its model takes {vision_config.image_size} x {vision_config.image_size}"
        )
    if not (image_processor.do_rescale and image_processor.do_normalize) or not math.isclose(
        image_processor.rescale_factor, 1 / 255
    ):
        raise TeacherError(
            "the teacher's processor does not divide pixels by 255 and normalise them, as every SigLIP does: found "
            f"do_rescale {image_processor.do_rescale}, rescale_factor {image_processor.rescale_factor}, "
            f"do_normalize {image_processor.do_normalize}"
        )
    return size["height"], [float(v) for v in image_processor.image_mean], [float(v) for v in image_processor.image_std]


@torch.inference_mode()
def _zero_shot_head(model: Any, tokenizer: Any, prompts: Prompts) -> tuple[ZeroShotHead, str]:
    """The head and the digest of its token ids; several prompts of a class: normalise, mean, normalise."""
    texts = [text for class_texts in prompts.values() for text in class_texts]
    # Padded to the full length and without an attention mask, as the model was trained: SigLIP pools the last
    # position, and a mask or shorter padding shifts logits by about 15.
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")[
        "input_ids"
    ]
    embedded = model.text_model(input_ids=tokens).pooler_output.double().numpy()
    embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
    bounds = np.cumsum([0, *(len(class_texts) for class_texts in prompts.values())])
    text_CD = np.stack([embedded[low:high].mean(axis=0) for low, high in itertools.pairwise(bounds)])
    text_CD /= np.linalg.norm(text_CD, axis=1, keepdims=True)
    head = ZeroShotHead(text_CD, model.logit_scale.double().exp().item(), model.logit_bias.double().item())
    return head, _digest(tokens.tolist())


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


def _weights_digest(model: nn.Module) -> str:
    """sha256 over the tensors by name, so that the same weights in another folder or file are the same teacher."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()
