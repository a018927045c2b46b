"""ImageNet weights of a library's architecture: from a file in torch's cache folder, or over the network.

Never trains. Where there is no network, the error says which file to put where.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from pipeline.card import IMAGENET_MEAN, IMAGENET_STD
from pipeline.errors import SettingError, first_line
from pipeline.network import check_network
from pipeline.students.build import construct_timm
from pipeline.students.names import StudentSource, require_timm
from pipeline.students.weights import READING_ERRORS, Weights

_OF_GOOGLE = ("googlenet", "inception_v3")
"""Torchvision feeds their weights with pixels in -1..1; a student sees ImageNet's normalisation and adapts."""
_ERRORS = (*READING_ERRORS, AttributeError, ImportError)


def imagenet_weights(source: StudentSource, size_px: int) -> Weights:
    """The default pretrained weights, for images of this size; SettingError where there are none."""
    if source.kind == "torchvision":
        return _of_torchvision(source.model, size_px)
    if source.kind == "timm":
        return _of_timm(source.model, size_px)
    raise SettingError(f"there are no ImageNet weights of {source.name}: take --init RUN or FILE, or leave it out")


def _of_torchvision(name: str, size_px: int) -> Weights:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = torchvision_file(weights)
    try:
        check_torchvision_file(file)
        state: dict[str, Tensor] = dict(weights.get_state_dict(progress=False, check_hash=True))
    except _ERRORS as error:
        raise SettingError(
            f"cannot load the ImageNet weights of {name}: {first_line(error)}; without a network, put {weights.url} "
            f"as {file.name} into {file.parent}, or start without them: --init none"
        ) from error
    if name.startswith("vit_"):
        patch_px = state["conv_proj.weight"].shape[-1]
        state = dict(torchvision.models.vision_transformer.interpolate_embeddings(size_px, patch_px, state))
    told = ", made for pixels in -1..1" if name in _OF_GOOGLE else ""
    return Weights(state, f"torchvision's {name} {weights.name}{told}", tuple(weights.meta["categories"]))


def check_torchvision_file(file: Path) -> None:
    """What torchvision itself does late or never: an existing file is the right one, an absent one can be had."""
    if file.exists():
        check_hash(file)
    else:
        check_network("download.pytorch.org")


def torchvision_file(weights: Any) -> Path:
    """Where torch keeps a file that torchvision downloads."""
    return _downloads() / str(weights.url).rsplit("/", 1)[-1]


def _downloads() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def check_hash(file: Path) -> None:
    """ValueError where a file is not what the end of its name says; torchvision checks only what it downloads."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not digest.startswith(file.stem.rpartition("-")[2]):
        raise ValueError(f"{file} is damaged (its sha256 is {digest[:8]}...): remove it")


def _of_timm(model: str, size_px: int) -> Weights:
    timm = require_timm()
    try:
        described = timm.get_pretrained_cfg(model)
    except RuntimeError as error:
        raise SettingError(f"timm has no such weights: {first_line(error)}") from error
    if described is None or not described.has_weights:
        raise SettingError(f"timm has no pretrained weights of '{model}': take --init RUN or FILE, or leave it out")
    url = described.url
    if described.hf_hub_id:
        url = f"https://huggingface.co/{described.hf_hub_id}/resolve/main/model.safetensors"
    suffix = Path(str(url)).suffix
    file = _downloads() / f"{described.architecture}.{described.tag or 'default'}{suffix}"
    try:
        if not file.exists() and described.hf_hub_id and not _in_hub_cache(described.hf_hub_id):
            check_network("huggingface.co")
        # timm renames what older files call otherwise, and fits position embeddings to the size. `custom_load` is of
        # the .npz files that some models came with first.
        place = {"file": str(file), "custom_load": suffix == ".npz"} if file.exists() else {}
        module = construct_timm(model, size_px, pretrained=True, pretrained_cfg_overlay=place)
    except _ERRORS as error:
        raise SettingError(
            f"cannot load timm's pretrained {model}: {first_line(error)}; without a network, put {url} as {file.name} "
            f"into {file.parent}, or start without them: --init none"
        ) from error
    # Whatever its classes are (ImageNet's 1,000 or 21,841): not those of the data.
    other = tuple(described.mean) != IMAGENET_MEAN or tuple(described.std) != IMAGENET_STD
    told = f", made for pixels of mean {described.mean[0]:g}, std {described.std[0]:g}" if other else ""
    return Weights(dict(module.state_dict()), f"timm's pretrained {model}{told}", ())


def _in_hub_cache(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)
