"""Dropout of the features that the classifier reads: the one of these regularisers that every architecture can have.

Never changes a weight, nor a name of the state: a run with dropout starts, and is loaded, like one without.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import SettingError

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class DroppingLinear(nn.Linear):
    """A linear layer behind a dropout: a module of its own in front would rename the weights."""

    def __init__(self, linear: nn.Linear, p: float) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias, self.p = linear.weight, linear.bias, p

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, D] -> [B, C], float32."""
        return functional.linear(functional.dropout(inputs, self.p, self.training), self.weight, self.bias)


def classifier_names(model: nn.Module, n_classes: int) -> list[str]:
    """The modules that make the logits: what timm says of itself, else the last layer with one output a class."""
    described = getattr(model, "pretrained_cfg", None)
    told = described.get("classifier") if isinstance(described, dict) else None
    if told:
        return [told] if isinstance(told, str) else list(told)
    layers = [
        name for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == n_classes)
        or (isinstance(module, nn.Conv2d) and module.out_channels == n_classes)
    ]  # fmt: skip
    return layers[-1:]


def set_head_dropout(model: nn.Module, student: str, n_classes: int, p: float) -> None:
    """Let a torchvision model drop features with probability p, in the dropouts of its head.

    One without gets a dropout before its last layer. Those in the blocks of transformers stay as they are.
    """
    last = next(iter(classifier_names(model, n_classes)), "")
    head = last.split(".")[0]
    dropouts = [
        module for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and name.split(".")[0] in (head, "dropout")
    ]  # fmt: skip
    for dropout in dropouts:
        dropout.p = p
    if dropouts:
        return
    linear = model.get_submodule(last)
    if not isinstance(linear, nn.Linear) or not last:
        raise SettingError(f"{student} ends in no linear layer that a dropout could stand before: leave it out")
    model.set_submodule(last, DroppingLinear(linear, p))


def set_own_dropout(model: nn.Module, student: str, p: float) -> None:
    """Set every dropout that a user's model has; SettingError where there is none: only the file can say where."""
    dropouts = [module for module in model.modules() if isinstance(module, _DROPOUTS)]
    if not dropouts:
        raise SettingError(
            f"{student} has no nn.Dropout whose probability could be set to {p:g}: put one where you want it, "
            "or leave --dropout out"
        )
    for dropout in dropouts:
        dropout.p = p


@torch.no_grad()
def check_dropout_acts(model: nn.Module, student: str, size_px: int) -> None:
    """SettingError where a timm model took a drop rate and dropped nothing: some architectures ignore theirs."""
    trained = copy.deepcopy(model).train()
    for module in trained.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # else the answers could differ by the rounding of its statistics
    noise = torch.randn(2, 3, size_px, size_px)
    try:
        acts = not torch.equal(trained(noise), trained(noise))
    except (RuntimeError, ValueError, AssertionError):
        return  # not of this size: said where sizes are checked
    if not acts:
        raise SettingError(f"{student} ignores its drop rate in timm: leave --dropout out, or choose another student")
