"""Which precision `auto` is, and what each computes in."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.precision import autocast, loss_scaler, resolve_precision


def test_auto_is_fp32_but_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {resolve_precision("auto", device) for device in ("cpu", "mps")} == {"fp32"}
    for has_bf16, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bf16: has)
        assert resolve_precision("auto", "cuda") == expected


def test_a_precision_that_is_asked_for_is_taken() -> None:
    assert resolve_precision("fp16", "cpu") == "fp16"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_forward_pass_computes_in_it(precision: str, dtype: torch.dtype) -> None:
    with autocast(precision, "cpu"):
        assert torch.nn.functional.linear(torch.ones(2, 4), torch.ones(3, 4)).dtype == dtype
    assert loss_scaler(precision, "cpu").is_enabled() == (precision == "fp16")
