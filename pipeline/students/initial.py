"""Weights from elsewhere as the start of a student: which tensors fit, which are left out, all of it said.

Never trains. `imagenet`, a run folder, or a file of weights. Run: softlabel train DATA t.h5 -o RUN --init imagenet
C classes, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from pipeline.errors import SettingError, did_you_mean
from pipeline.students.dropout import classifier_names
from pipeline.students.names import StudentSource
from pipeline.students.pretrained import imagenet_weights
from pipeline.students.weights import Weights, read_weights

_N_LISTED = 5
"""Names of tensors that a line shows; of the rest it gives the number."""
_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")
"""What DataParallel, torch.compile and training scripts put before every name."""


@dataclass
class _Plan:
    """What becomes of each tensor; names as the student has them."""

    take: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    other_shape: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    classifier: str = ""
    """What becomes of the classifier, in words; nothing to say where it fits as it is."""


def initialise(model: nn.Module, init: str, source: StudentSource, classes: Sequence[str], size_px: int) -> list[str]:
    """Give a model the weights of `init`; lines that say which. SettingError or RunError where none fit."""
    if init == "none":
        return []
    weights = imagenet_weights(source, size_px) if init == "imagenet" else _from_path(init)
    plan = _plan(model, weights, classes)
    if not any(tensor.ndim for name, tensor in plan.take.items() if name not in _head(model, len(classes))):
        raise SettingError(
            f"nothing of {weights.origin} fits {source.name}: its tensors are {_listed(weights.state)}; "
            f"those of the student {_listed(model.state_dict())}"
        )
    broken = [name for name, tensor in plan.take.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise SettingError(f"{weights.origin} holds NaN or infinity in {_listed(broken)}")
    model.load_state_dict(plan.take, strict=False)
    return _lines(plan, weights.origin, len(model.state_dict()))


def _from_path(init: str) -> Weights:
    path = Path(init)
    near = "" if path.suffix or path.exists() else did_you_mean(init, ("imagenet", "none"))
    if near:
        raise SettingError(f"no such file or run folder: {init}{near}")
    return read_weights(path)


def _head(model: nn.Module, n_classes: int) -> list[str]:
    state = model.state_dict()
    layers = [f"{layer}." for layer in classifier_names(model, n_classes)]
    return [name for name in state if any(name.startswith(layer) for layer in layers)]


def _plan(model: nn.Module, weights: Weights, classes: Sequence[str]) -> _Plan:
    own, head = model.state_dict(), _head(model, len(classes))
    theirs, plan = _unwrapped(weights.state, own), _Plan()
    plan.unexpected = [name for name in theirs if name not in own]
    for name, tensor in own.items():
        if name in head:
            continue
        if name not in theirs:
            plan.missing.append(name)
        elif theirs[name].shape != tensor.shape:
            plan.other_shape.append(f"{name} {list(theirs[name].shape)} for {list(tensor.shape)}")
        else:
            plan.take[name] = theirs[name]
    _plan_head(plan, {name: own[name] for name in head}, theirs, weights.classes, classes)
    return plan


def _plan_head(
    plan: _Plan, head: dict[str, Tensor], theirs: dict[str, Tensor], origin: tuple[str, ...] | None,
    classes: Sequence[str],
) -> None:  # fmt: skip
    """Take the classifier where its rows are known to be, or may be, those of our classes; by name, in our order."""
    found = {name: theirs[name] for name in head if name in theirs}
    if not found:
        why = "it has none of this name"
    elif any(tensor.shape[1:] != head[name].shape[1:] for name, tensor in found.items()):
        why = "that one reads other features"
    elif origin is not None and set(origin) != set(classes):
        why = _other_classes(len(origin) or len(next(iter(found.values()))), len(classes))
    elif any(tensor.shape != head[name].shape for name, tensor in found.items()):
        why = _other_classes(len(next(iter(found.values()))), len(classes))
    else:
        order = [origin.index(name) for name in classes] if origin else list(range(len(classes)))
        plan.take |= {name: tensor[order] for name, tensor in found.items()}
        plan.missing += [name for name in head if name not in found]
        if origin is None:
            plan.classifier = "the classifier is taken as it is: nothing says for which classes, in which order"
        elif order != sorted(order):
            plan.classifier = "the classifier is taken in the order of these classes, by name"
        return
    if head:
        plan.classifier = f"the classifier starts at random: {why}"


def _other_classes(n_theirs: int, n_ours: int) -> str:
    return f"that one is for {n_theirs} classes, here are {n_ours}" if n_theirs != n_ours else "that one is for others"


def _unwrapped(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state without a wrapper's prefix, where every name has it and none of the student's own."""
    for prefix in _WRAPPERS:
        if state and all(name.startswith(prefix) for name in state) and not any(n.startswith(prefix) for n in own):
            return _unwrapped({name.removeprefix(prefix): tensor for name, tensor in state.items()}, own)
    return state


def _lines(plan: _Plan, origin: str, n_tensors: int) -> list[str]:
    lines = [f"{len(plan.take)} of {n_tensors} tensors from {origin}"]
    lines += [plan.classifier] if plan.classifier else []
    said = {
        "missing there, start at random": plan.missing,
        "of another shape there, start at random": plan.other_shape,
        "there, but not in this student": plan.unexpected,
    }
    lines += [f"{len(names)} {what}: {_listed(names)}" for what, names in said.items() if names]
    return lines


def _listed(names: Sequence[str] | dict[str, Tensor]) -> str:
    names = list(names)
    more = f" and {len(names) - _N_LISTED} more" if len(names) > _N_LISTED else ""
    return ", ".join(names[:_N_LISTED]) + more
