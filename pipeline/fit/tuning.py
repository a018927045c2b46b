"""A dual encoder as it is fitted: which weights learn, what they say of a batch, what is wrong with that.

Never reads an image, never steps an optimizer (`pipeline.fit.teacher` does). The logits are the ones that the
zero-shot head of `cache build` will give: cos(image, class text) * scale + bias, with several prompts of a class
normalised, averaged and normalised. Run: softlabel teacher fit DATA --from MODEL -o DIR
B batch, C classes, T texts, D embedding, S pixels.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import SettingError, TeacherError
from pipeline.fit.folder import FitFolder
from pipeline.runs import RunFolder
from pipeline.teachers.dual_encoder import load_dual_encoder
from pipeline.teachers.preprocessing import read_preprocessing
from pipeline.teachers.prompts import Prompts
from pipeline.teachers.teacher import weights_digest

RESOLVED_PRECISIONS = ("fp32", "bf16", "fp16")
PRECISIONS = ("auto", *RESOLVED_PRECISIONS)
_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MAX_CLIP_SCALE = math.log(100)
"""Radford et al. 2021, section 2.5: more than 100 makes training unstable."""


def resolve_fit_precision(precision: str, device: str) -> str:
    """`auto` -> bf16 on CUDA that computes in it, else fp16 there; fp32 on a CPU and on mps.

    Gradients need bf16's range more than fp16's digits; fp16 goes with a loss scale.
    """
    if device == "mps" and precision in _DTYPE:
        raise SettingError(f"precision on mps must be fp32 or auto, got {precision}")
    if precision != "auto":
        return precision
    if device != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def sigmoid_loss(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Mean over images of the sum over texts of -log sigmoid(+-logit), plus where the text is the image's class.

    In nats, float32 scalar (Zhai et al. 2023, section 3.2, between the images of a batch and one text a class).
    """
    signs_BC = 2 * F.one_hot(labels_B, logits_BC.shape[1]).to(logits_BC.dtype) - 1
    return -F.logsigmoid(signs_BC * logits_BC).sum(dim=1).mean()


class DualEncoderTuning:
    """A loaded dual encoder on its device, some of whose weights learn.

    With the text tower frozen, class texts are embedded once, the tower stays on the CPU and takes no optimizer memory.
    """

    def __init__(
        self, source: str, prompts: Prompts, *, device: str, precision: str, freeze_text: bool = True,
        last_layers: int | None = None, gradient_checkpointing: bool = False,
    ) -> None:  # fmt: skip
        """Load `source` as `cache build` does; TeacherError says what to do if that fails."""
        self.device, self.precision = device, precision
        _refuse_what_is_not_fitted_here(source)
        self._dual = load_dual_encoder(source)
        self.model = self._dual.model
        self.size_px, mean, std = read_preprocessing(self._dual.image_processor)
        self.weights_sha256 = weights_digest(self.model)
        self.pairwise = self._dual.kind == "siglip"
        """Whether it is SigLIP's loss (each image-text pair by itself) or CLIP's (one text among all)."""
        self.n_blocks = len(self.model.vision_model.encoder.layers)
        self._choose_what_learns(freeze_text, last_layers)
        self._tokens_TL = self._dual.tokens([text for class_texts in prompts.values() for text in class_texts])
        self._pool_CT = _mean_of_class(prompts)
        self._frozen_text_CD: Tensor | None = None
        if freeze_text:  # in float32 on the CPU, as the head of `cache build`
            with torch.no_grad():
                self._frozen_text_CD = self._embed_texts(contextlib.nullcontext()).to(device)
        self._move(freeze_text)
        self._tower = self._dual.image_tower()
        self._mean_3 = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std_3 = torch.tensor(std, device=device).view(1, 3, 1, 1)
        if gradient_checkpointing:
            _checkpoint_activations(self.model)

    def _choose_what_learns(self, freeze_text: bool, last_layers: int | None) -> None:
        if last_layers is not None and not 0 <= last_layers <= self.n_blocks:
            raise SettingError(
                f"last_layers must be in 0..{self.n_blocks}, the blocks of this image tower, got {last_layers}"
            )
        self.model.requires_grad_(False)
        for module in (*_image_side(self.model), *(() if freeze_text else _text_side(self.model))):
            module.requires_grad_(True)
        if last_layers is not None:
            vision = self.model.vision_model
            first = self.n_blocks - last_layers
            # CLIP has a norm between the patches and the first block; its name is the checkpoints' own spelling.
            below = [vision.embeddings, getattr(vision, "pre_layrnorm", None), *vision.encoder.layers[:first]]
            for module in below:
                if module is not None:
                    module.requires_grad_(False)
        for parameter in _scale_and_bias(self.model):
            parameter.requires_grad_(True)
        self.learning: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad
        }
        """Name -> parameter, of what learns."""

    def _move(self, freeze_text: bool) -> None:
        for module in (*_image_side(self.model), *(() if freeze_text else _text_side(self.model))):
            module.to(self.device)
        for parameter in _scale_and_bias(self.model):
            parameter.data = parameter.data.to(self.device)
        if not freeze_text:
            self._tokens_TL, self._pool_CT = self._tokens_TL.to(self.device), self._pool_CT.to(self.device)

    def class_texts(self) -> Tensor:
        """One unit vector a class, float32 [C, D]; with gradients where the text tower learns."""
        return self._embed_texts(self._half()) if self._frozen_text_CD is None else self._frozen_text_CD

    def _embed_texts(self, autocast: contextlib.AbstractContextManager[Any]) -> Tensor:
        with autocast:
            pooled = self._dual.embed_tokens(self._tokens_TL)
        return F.normalize(self._pool_CT @ F.normalize(pooled.float(), dim=1), dim=1)

    def logits(self, pixels: Tensor, text_CD: Tensor) -> Tensor:
        """Raw logits, float32 [B, C], of uint8 views [B, 3, S, S] and the `class_texts`."""
        inputs = pixels.to(self.device).float().div_(255).sub_(self._mean_3).div_(self._std_3)
        with self._half():
            pooled = self._tower(inputs)
        image_BD = F.normalize(pooled.float(), dim=1)
        logits_BC: Tensor = image_BD @ text_CD.T * self.model.logit_scale.exp()
        return logits_BC + self.model.logit_bias if self.pairwise else logits_BC

    def _half(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, _DTYPE[self.precision])

    def loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """The model's own loss between images and class texts, in nats, a scalar.

        SigLIP: the pairwise sigmoid loss. CLIP: cross-entropy over the class texts (Radford et al. 2021, section 2.3,
        of which only the image -> text half is defined where several images of a batch have one text).
        """
        labels_B = labels_B.to(logits_BC.device)
        return sigmoid_loss(logits_BC, labels_B) if self.pairwise else F.cross_entropy(logits_BC, labels_B)

    def train(self, mode: bool = True) -> None:
        """Switch dropout and the recomputing of activations on, or with False off."""
        self.model.train(mode)

    @torch.no_grad()
    def keep_in_range(self) -> None:
        """After a step: CLIP's scale stays at most 100."""
        if not self.pairwise:
            self.model.logit_scale.clamp_(max=_MAX_CLIP_SCALE)

    def weights(self) -> dict[str, Tensor]:
        """Name -> tensor, of what learns; the tensors are the model's own, not copies."""
        return {name: parameter.detach() for name, parameter in self.learning.items()}

    @torch.no_grad()
    def take(self, weights: dict[str, Tensor]) -> None:
        """Put in the weights of another time."""
        for name, parameter in self.learning.items():
            parameter.copy_(weights[name])

    def save(self, folder: Path) -> None:
        """Write an ordinary `save_pretrained` folder: the whole model in one file, tokenizer, image processor."""
        self.model.to("cpu").eval().save_pretrained(folder, max_shard_size=2**62)
        self._dual.tokenizer.save_pretrained(folder)
        self._dual.image_processor.save_pretrained(folder)


def _refuse_what_is_not_fitted_here(source: str) -> None:
    """TeacherError for teachers of other kinds, which the loader of dual encoders can only call unknown."""
    path = Path(source)
    if FitFolder(path).is_unfinished():
        raise TeacherError(f"the fit in {path} is not finished: go on with it by `softlabel teacher fit ... --resume`")
    run = RunFolder(path)
    if path.is_file() or run.best.exists() or run.last.exists() or source.startswith(("torchvision:", "timm:")):
        raise TeacherError(
            f"{source} is no SigLIP or CLIP model, which alone are fitted here: --from names the folder of one, or its "
            "Hugging Face name. A classifier that is fitted already teaches as it is: softlabel cache build --teacher"
        )


def _image_side(model: Any) -> list[nn.Module]:
    return [model.vision_model, *([model.visual_projection] if hasattr(model, "visual_projection") else [])]


def _text_side(model: Any) -> list[nn.Module]:
    return [model.text_model, *([model.text_projection] if hasattr(model, "text_projection") else [])]


def _checkpoint_activations(model: Any) -> None:
    # transformers 5.0 has only the first name, version 6 will have only the second.
    names = ("gradient_checkpointing_enable", "activation_checkpointing_enable")
    enable = next(getattr(model, name) for name in reversed(names) if hasattr(model, name))
    enable({"use_reentrant": False})


def _scale_and_bias(model: Any) -> list[nn.Parameter]:
    return [getattr(model, name) for name in ("logit_scale", "logit_bias") if hasattr(model, name)]


def _mean_of_class(prompts: Prompts) -> Tensor:
    """float32 [C, T]: row c takes the mean of the texts of class c."""
    pool_CT = torch.block_diag(*(torch.full((1, len(texts)), 1 / len(texts)) for texts in prompts.values()))
    return pool_CT
