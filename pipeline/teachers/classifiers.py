"""Image classifiers as teachers: of torchvision, of timm, of transformers, or any module that gives logits.

Never trains. Where the last layer is linear, it becomes the head and what flows into it the embedding, so that a probe
can replace it later; else the outputs are the logits. B batch, C classes, D embedding, S pixels.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.card import IMAGENET_MEAN, IMAGENET_STD
from pipeline.errors import SettingError, TeacherError, did_you_mean, first_line
from pipeline.network import check_network
from pipeline.students.build import build_student
from pipeline.students.names import student_names
from pipeline.students.pretrained import check_torchvision_file, torchvision_file
from pipeline.students.weights import read_state_dict
from pipeline.teachers.description import TeacherDescription
from pipeline.teachers.heads import Head, LinearHead, OutputHead
from pipeline.teachers.hub import LOADING_ERRORS
from pipeline.teachers.preprocessing import read_preprocessing
from pipeline.teachers.teacher import LoadedModel, json_digest, weights_digest

log = logging.getLogger(__name__)

_UNNAMED = re.compile(r"LABEL_\d+")
_SAME_ANSWER = 1e-2
"""Share of the largest logit by which an answer may depend on the image beside it: rounding is under 1e-4."""
_NOT_OF_THE_COMPUTATION = ("id2label", "label2id", "transformers_version", "dtype", "problem_type", "_name_or_path")
_TRANSFORMING = ("googlenet", "inception_v3")
"""Of torchvision, with weights of Google that want other pixels: `transform_input` makes them of the usual ones."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A classifier as its library gives it, on the CPU in float32."""

    module: nn.Module
    """Normalised float32 [B, 3, S, S] -> logits [B, C]."""
    kind: str
    architecture: str
    size_px: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    outputs: tuple[str, ...] | None = None
    """Class names in the order of the outputs; None where the model does not say."""
    image_processor: Any = None
    digest: str | None = None
    """What stands for the weights, where their tensors are not all."""
    config_digest: str | None = None
    """What stands for the settings that neither name nor weights show, such as the number of attention heads."""
    fitted_on: frozenset[bytes] | None = None


def classifier_teacher(found: Classifier, description: TeacherDescription, data_classes: Sequence[str]) -> LoadedModel:
    """Take a classifier apart. What `description` says wins over what the model says of itself.

    Outputs without names are taken for the sorted class names of the data, as torchvision's ImageFolder numbers them.
    """
    size_px = description.size_px or found.size_px
    digest = found.digest or weights_digest(found.module)  # of the whole: taking it apart removes the last layer
    tower, linear, n_outputs = _take_apart(found.module.eval(), found.kind, size_px)
    outputs = _unique(_output_names(description.classes or found.outputs, n_outputs, data_classes))
    order = sorted(range(n_outputs), key=outputs.__getitem__)
    head: Head = OutputHead(tuple(order)) if linear is None else linear.columns(order)
    identity = {
        "kind": found.kind,
        "architecture": found.architecture,
        "weights_sha256": digest,
        "outputs": list(outputs),
        "head": "outputs" if linear is None else "linear",
        **({"config_sha256": found.config_digest} if found.config_digest else {}),
    }
    return LoadedModel(
        tower=tower, head=head, classes=tuple(outputs[i] for i in order), size_px=size_px,
        mean=description.mean or found.mean, std=description.std or found.std, identity=identity,
        image_processor=found.image_processor, fitted_on=found.fitted_on,
    )  # fmt: skip


def _output_names(declared: Sequence[str] | None, n_outputs: int, data_classes: Sequence[str]) -> list[str]:
    if declared is not None and len(declared) == n_outputs:
        return list(declared)
    if declared is not None:
        raise TeacherError(f"the teacher has {n_outputs} outputs, but {len(declared)} class names are given for them")
    if n_outputs == len(data_classes):
        names = sorted(data_classes)
        log.info("the teacher does not name its outputs: taken for %s, in this order", ", ".join(names))
        return names
    raise TeacherError(
        f"the teacher has {n_outputs} outputs and does not name them, the images have {len(data_classes)} classes: "
        "name the outputs by --teacher-config FILE, YAML with a line `classes: [...]` in the order of the outputs"
    )


def _unique(names: Sequence[str]) -> list[str]:
    """ImageNet has two classes called crane and two called maillot."""
    counts: Counter[str] = Counter()
    found = []
    for name in names:
        counts[name] += 1
        found.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return found


@torch.inference_mode()
def _take_apart(module: nn.Module, kind: str, size_px: int) -> tuple[nn.Module, LinearHead | None, int]:
    """(tower, head if the last layer is linear, number of outputs); tried on noise."""
    # Unlike each other, or the statistics of a batch would be those of either.
    noise = torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    noise[1] = noise[1] / 4 + 1
    logits = _logits_of(module, noise)
    name, last = next(((n, m) for n, m in reversed(list(module.named_modules())) if type(m) is nn.Linear), ("", None))
    if kind == "torchscript" or last is None or last.out_features != logits.shape[1] or not name:
        return module, None, logits.shape[1]
    module.set_submodule(name, nn.Identity())
    embedding = module(noise)
    if embedding.shape == (2, last.in_features) and torch.equal(last(embedding), logits):
        bias = torch.zeros(last.out_features) if last.bias is None else last.bias
        return module, LinearHead(last.weight.double().numpy(), bias.double().numpy()), logits.shape[1]
    module.set_submodule(name, last)
    return module, None, logits.shape[1]


def _logits_of(module: nn.Module, noise: Tensor) -> Tensor:
    """Logits of two images; TeacherError where they are none, or are others the next time or without the other image.

    A program that was traced in training mode drops out and normalises by the batch for ever.
    """
    try:
        logits, again, alone = module(noise), module(noise), module(noise[:1])
    except (RuntimeError, ValueError, TypeError, AssertionError, LookupError) as error:
        size_px = noise.shape[-1]
        raise TeacherError(f"the teacher cannot take {size_px} x {size_px} pixels ({first_line(error)})") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(noise):
        raise TeacherError(f"the teacher answers with a {type(logits).__name__}, expected one row of logits an image")
    away = max(float((again - logits).abs().max()), float((alone - logits[:1]).abs().max()))
    if away > _SAME_ANSWER * float(logits.abs().max()):
        raise TeacherError(
            "the teacher answers the same pixels in several ways: it was saved in training mode; call model.eval() "
            "before torch.jit.trace, then save it again"
        )
    return logits


def torchvision_classifier(name: str, weights: str, n_classes: int, description: TeacherDescription) -> Classifier:
    """`weights` is a file with a state dict, or the name of weights that torchvision offers (empty: its default)."""
    import torchvision

    if name not in student_names():
        raise SettingError(f"no torchvision classifier is called '{name}'{did_you_mean(name, student_names())}")
    if Path(weights).is_file():
        if name in _TRANSFORMING and description.mean is None:
            log.info("%s is taken for one without transform_input; one with it: mean, std [0.5, 0.5, 0.5] by "
                     "--teacher-config", name)  # fmt: skip
        size_px = description.size_px or 224
        module = build_student(name, len(description.classes or ()) or n_classes, size_px)
        load_weights(module, Path(weights))
        return Classifier(module=module, kind="torchvision", architecture=name, size_px=size_px)
    choices = torchvision.models.get_model_weights(name)
    if weights and weights not in choices.__members__:
        offered = ", ".join(choices.__members__)
        raise SettingError(f"no file '{weights}', and {name} has no such weights; torchvision offers: {offered}")
    chosen = choices[weights] if weights else choices.DEFAULT
    file = torchvision_file(chosen)
    try:
        check_torchvision_file(file)
        module = torchvision.models.get_model(name, weights=chosen, progress=False)
    except LOADING_ERRORS as error:
        raise TeacherError(
            f"cannot load {name} {chosen.name}: {first_line(error)}; without a network, put {chosen.url} at {file}"
        ) from error
    shape = chosen.transforms()
    mean, std = tuple(shape.mean), tuple(shape.std)
    if getattr(module, "transform_input", False):  # which no weight shows: said as what it is, another normalisation
        module.transform_input = False
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return Classifier(
        module=module, kind="torchvision", architecture=name, size_px=int(shape.crop_size[0]),
        mean=mean, std=std, outputs=tuple(chosen.meta["categories"]),
    )  # fmt: skip


def timm_classifier(name: str, weights: str, n_classes: int, description: TeacherDescription) -> Classifier:
    """`weights` is a file with a state dict; empty takes the pretrained ones of the hub."""
    try:
        import timm
    except ImportError as error:
        raise SettingError("timm is not installed: pip install '.[timm]'") from error
    if not timm.is_model(name.split(".")[0]):
        raise SettingError(f"no timm model is called '{name}'{did_you_mean(name, timm.list_models())}")
    if weights:
        if not Path(weights).is_file():
            raise SettingError(f"no such weights file: {weights}")
        try:
            module = timm.create_model(name, pretrained=False, num_classes=len(description.classes or ()) or n_classes)
        except LOADING_ERRORS as error:
            raise SettingError(f"timm cannot make '{name}': {first_line(error)}") from error
        load_weights(module, Path(weights))
        outputs = None
    else:
        module, outputs = _pretrained_timm(timm, name)
    shape = timm.data.resolve_model_data_config(module)
    return Classifier(
        module=module, kind="timm", architecture=name, size_px=int(shape["input_size"][-1]),
        mean=tuple(shape["mean"]), std=tuple(shape["std"]), outputs=outputs,
    )  # fmt: skip


def _pretrained_timm(timm: Any, name: str) -> tuple[nn.Module, tuple[str, ...] | None]:
    from huggingface_hub import try_to_load_from_cache

    try:
        described = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise SettingError(f"timm has no such weights: {first_line(error)}") from error
    if described is None or not described.has_weights:
        raise SettingError(f"timm has no pretrained weights for '{name}': pass a file, timm:{name}:FILE")
    try:
        cached = try_to_load_from_cache(described.hf_hub_id or "", "model.safetensors") if described.hf_hub_id else None
        if not isinstance(cached, str):
            check_network("huggingface.co")
        module = timm.create_model(name, pretrained=True)
    except LOADING_ERRORS as error:
        raise TeacherError(
            f"cannot load timm's {name}: {first_line(error)}; without a network, pass a file: timm:{name}:FILE"
        ) from error
    if described.num_classes != 1000:
        return module, None
    info = timm.data.ImageNetInfo()
    return module, tuple(info.index_to_description(i) for i in range(1000))


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a state dict (.safetensors, or what torch.save wrote) in full; TeacherError lists what does not fit."""
    try:
        state = read_state_dict(path)
    except SettingError as error:
        raise TeacherError(str(error)) from error
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise TeacherError(f"{path} does not fit: {' '.join(str(error).split())[:400]}") from error


class _LogitsOf(nn.Module):
    """transformers answers with an object."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


def transformers_classifier(source: str, config: Any, local_files_only: bool) -> Classifier:
    """A fine-tuned checkpoint; ValueError where its classifier would be random, as for any model without one."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from pipeline.teachers.dual_encoder import check_no_random_weights

    model, loading = AutoModelForImageClassification.from_pretrained(
        source, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=local_files_only,
        trust_remote_code=False, output_loading_info=True,
    )  # fmt: skip
    check_no_random_weights(loading)
    image_processor = AutoImageProcessor.from_pretrained(
        source, local_files_only=local_files_only, trust_remote_code=False
    )
    size_px, mean, std = read_preprocessing(image_processor)
    names = [str(config.id2label[i]) for i in range(len(config.id2label))]
    return Classifier(
        module=_LogitsOf(model), kind="transformers", architecture=config.architectures[0], size_px=size_px,
        mean=mean, std=std, outputs=None if all(map(_UNNAMED.fullmatch, names)) else tuple(names),
        image_processor=image_processor, config_digest=_digest_of(config),
    )  # fmt: skip


def _digest_of(config: Any) -> str:
    """Of what a transformers configuration says of the computation; not its names, nor with what it was written."""
    told = json.loads(config.to_json_string())  # sorted, and without what is as the architecture has it
    return json_digest({name: value for name, value in told.items() if name not in _NOT_OF_THE_COMPUTATION})
