"""A loaded teacher of any kind: uint8 views -> embeddings -> raw logits, on a device, in mixed precision.

Never trains and never loads: `pipeline.teachers.loading` makes one from a folder, a file or a name. The tower runs in
mixed precision on the device, the head in float64 on the CPU (`pipeline.teachers.heads`).
B batch, C classes, D embedding, S pixels.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import OutOfMemory, TeacherError, first_line, is_out_of_memory
from pipeline.teachers.heads import Head, OutputHead

log = logging.getLogger(__name__)

RESOLVED_PRECISIONS = ("fp32", "fp16", "bf16")
PRECISIONS = ("auto", *RESOLVED_PRECISIONS)
_TORCH_DTYPE = {"fp16": torch.float16, "bf16": torch.bfloat16}
_N_COMPARED = 16
"""Rows of the first batch that are computed in float32 as well: at most, since that takes twice the memory."""


def resolve_precision(precision: str, device: str) -> str:
    """`auto` -> fp16 on a GPU (8 to 20 times closer to fp32 than bf16 there), fp32 on a CPU.

    On CPUs bf16 is between twice as fast and half as fast as fp32, and no flag of the processor says which: measured
    at MedSigLIP's size on two that both have avx512_bf16 (docs/results.md).
    """
    if precision != "auto":
        return precision
    return "fp32" if device == "cpu" else "fp16"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """What a loader hands over: a model taken apart into tower and head, on the CPU in float32."""

    tower: nn.Module
    """Normalised float32 [B, 3, S, S] -> un-normalised embeddings [B, D]; logits where the head is an OutputHead."""
    head: Head
    classes: tuple[str, ...]
    """Names of the logits' columns, in sorted order."""
    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    identity: dict[str, Any]
    """Everything that the logits depend on, but for pixels and precision."""
    image_processor: Any = None
    """The checkpoint's own, where it has one: only to say how far its pixels are from ours."""
    fitted_on: frozenset[bytes] | None = None
    """Keys of the images that it was fitted on; None where nobody knows."""


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """What a cache claims of its teacher, in plain values: all that a build must know before it needs an answer."""

    classes: tuple[str, ...]
    """Names of the logits' columns, in sorted order."""
    identity: dict[str, Any]
    """Everything that the logits depend on, but for pixels and precision."""
    preprocessing: dict[str, Any]
    """Size, mean and std of the pixels."""
    embedding_size: int | None
    """D; None where the outputs are all there is."""
    is_fitted: bool
    """Whether it says which images it was fitted on."""
    n_parameters: int


@dataclass(frozen=True)
class PrecisionCheck:
    """Some rows in the teacher's precision against the same rows in float32."""

    n_rows: int
    worst_logit: float
    """Largest absolute difference of a logit."""
    argmax_agreement: float
    """Share of rows whose largest logit is of the same class."""


class Teacher:
    """A teacher at work. `identity`, `preprocessing` and `precision` say everything that its logits depend on."""

    def __init__(self, model: LoadedModel, *, device: str, precision: str) -> None:
        """Move the tower to the device; `precision` is a resolved one."""
        self.device, self.precision = device, precision
        self.head, self.classes, self.size_px = model.head, model.classes, model.size_px
        self.identity, self.fitted_on, self.image_processor = model.identity, model.fitted_on, model.image_processor
        self.mean, self.std = model.mean, model.std
        self.preprocessing = {
            "size_px": model.size_px,
            "mean": [float(value).hex() for value in model.mean],
            "std": [float(value).hex() for value in model.std],
        }
        self.n_parameters = sum(p.numel() for p in model.tower.parameters())
        self.n_recomputed = 0
        """Rows that were not finite in half precision and were computed again in float32."""
        # On a CPU autocast at batch 4 and more costs 5 GB at MedSigLIP's size; bf16 weights do not.
        half_weights = (device, precision) == ("cpu", "bf16")
        self._weights_dtype = torch.bfloat16 if half_weights else torch.float32
        # With half weights, the ones they were made of stay until the first batch has been compared with them.
        for parameter in model.tower.parameters():
            parameter.requires_grad_(False)
        self._exact_tower = copy.deepcopy(model.tower).eval() if half_weights else None
        self._tower = model.tower.to(device=device, dtype=self._weights_dtype).eval()
        self._mean_3 = torch.tensor(self.mean, device=device, dtype=torch.float32).view(1, 3, 1, 1)
        self._std_3 = torch.tensor(self.std, device=device, dtype=torch.float32).view(1, 3, 1, 1)

    @property
    def facts(self) -> TeacherFacts:
        """What a cache claims of it."""
        return TeacherFacts(
            classes=self.classes, identity=self.identity, preprocessing=self.preprocessing,
            embedding_size=self.head.input_size if self.has_embedding else None,
            is_fitted=self.fitted_on is not None, n_parameters=self.n_parameters,
        )  # fmt: skip

    @property
    def has_embedding(self) -> bool:
        """Whether `embed` gives embeddings; else it gives logits."""
        return not isinstance(self.head, OutputHead)

    def embed(self, pixels: Tensor) -> NDArray[np.float32]:
        """Un-normalised embeddings, float32 [B, D], of uint8 views [B, 3, S, S].

        Rows that come out non-finite in half precision are computed again in float32; TeacherError if that fails too.
        """
        embedding_BD, n_recomputed = self.embed_counted(pixels)
        self.n_recomputed += n_recomputed
        return embedding_BD

    @torch.inference_mode()
    def embed_counted(self, pixels: Tensor) -> tuple[NDArray[np.float32], int]:
        """The same, with how many rows were computed again, which the caller adds to `n_recomputed`; for a thread."""
        embedding, n_recomputed = self._forward(pixels, self.precision), 0
        bad = ~torch.isfinite(embedding).all(dim=1)
        if bad.any() and self.precision != "fp32" and self._weights_dtype == torch.float32:
            n_recomputed = int(bad.sum())
            log.info("%d of %d rows overflow in %s: computed again in fp32", bad.sum(), len(bad), self.precision)
            embedding[bad] = self._forward(pixels, "fp32")[bad]
            bad = ~torch.isfinite(embedding).all(dim=1)
        if bad.any():
            raise TeacherError(
                f"the teacher answers {int(bad.sum())} of {len(bad)} views with infinite or undefined numbers in "
                f"{self.precision}: try --precision fp32; if that fails too, its weights are damaged"
            )
        return embedding.numpy(), n_recomputed

    @torch.inference_mode()
    def compare_with_fp32(self, pixels: Tensor, embedding_BD: NDArray[np.float32]) -> PrecisionCheck:
        """The first rows of a batch again in float32, against what `embed` said of it; for the first batch only."""
        exact = self._forward(pixels[:_N_COMPARED], "fp32").numpy()
        self._exact_tower = None
        theirs, ours = self.head.logits(exact), self.head.logits(embedding_BD[:_N_COMPARED])
        agree = theirs.argmax(axis=1) == ours.argmax(axis=1)
        return PrecisionCheck(len(exact), float(np.abs(theirs - ours).max()), float(agree.mean()))

    def _forward(self, pixels: Tensor, precision: str) -> Tensor:
        try:
            return self._as_rows(self._outputs(pixels, precision))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                if precision == "fp32":
                    raise
                raise TeacherError(
                    f"the teacher cannot compute {len(pixels)} views of {self.size_px} px in {precision} on "
                    f"{self.device} ({first_line(error)}): try --precision fp32"
                ) from error
            raise OutOfMemory(
                f"{len(pixels)} views of {self.size_px} px at once do not fit into the memory of {self.device} in "
                f"{precision}: {first_line(error)}"
            ) from None

    def _outputs(self, pixels: Tensor, precision: str) -> Any:
        inputs = pixels.to(self.device).float().div_(255).sub_(self._mean_3).div_(self._std_3)
        if precision == "fp32":
            return (self._exact_tower or self._tower)(inputs)
        autocast: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self._weights_dtype == torch.float32:
            autocast = torch.autocast(self.device, _TORCH_DTYPE[precision])
        with autocast:
            return self._tower(inputs.to(self._weights_dtype))

    @staticmethod
    def _as_rows(output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 2:
            found = f"a tensor of {output.ndim} axes" if isinstance(output, Tensor) else type(output).__name__
            raise TeacherError(f"the teacher answers with {found}, expected one row of numbers a view")
        return output.float().cpu()


def weights_digest(model: nn.Module) -> str:
    """sha256 over the tensors by name, so that the same weights in another folder or file are the same teacher."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def json_digest(value: object) -> str:
    """sha256 of a plain value."""
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()
