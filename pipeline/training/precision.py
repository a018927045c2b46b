"""Mixed precision of a training step: autocast, and for fp16 the loss scaling that it needs. Knows no model."""

from __future__ import annotations

import torch

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: str) -> str:
    """`auto` -> fp32, bf16 or fp16.

    On a CPU that is fp32: bf16 and fp16 were slower for compact students, whose depthwise convolutions, norms and
    shuffles only gain casts (1.5 times slower at 96 px on a processor with bf16 instructions).
    """
    if precision != "auto":
        return precision
    if device != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def autocast(precision: str, device: str) -> torch.autocast:
    """The context of a forward pass; does nothing for fp32."""
    return torch.autocast(device, dtype=_DTYPES[precision], enabled=precision != "fp32")


def loss_scaler(precision: str, device: str) -> torch.amp.GradScaler:
    """Scales the loss of fp16 so that small gradients are not rounded to 0; does nothing for the others."""
    return torch.amp.GradScaler(device, enabled=precision == "fp16")
