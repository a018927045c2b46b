"""What the hard loss is told about labels: which are kept, what each class weighs, how frequent it is.

Knows no images and no logits. N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from data.errors import BadSamples
from data.splits import stratified_subset
from pipeline.errors import SettingError, did_you_mean
from pipeline.losses.distillation import UNLABELLED
from pipeline.process import derived_seed


def keep_labels(keys: Sequence[bytes], labels_N: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """The labels of a random `fraction` of the samples with the class shares of the whole; the others UNLABELLED.

    Depends on the samples' content and on `seed`, not on their order. At least one of each class is kept,
    also of one that is too small for its share.
    """
    if fraction >= 1:
        return labels_N
    label_of = {key: str(label) for key, label in zip(keys, labels_N.tolist(), strict=True)}
    try:
        kept = stratified_subset(label_of, fraction, seed)
    except BadSamples as error:
        raise SettingError(
            f"label_fraction {fraction:g} cannot be drawn by class from {len(keys):,} images: {error}"
        ) from error
    for label in sorted(set(label_of.values()) - {label_of[key] for key in kept}):
        own = [key for key in label_of if label_of[key] == label]
        kept.add(min(own, key=lambda key: derived_seed(seed, key.hex(), "label")))
    return np.where([key in kept for key in keys], labels_N, UNLABELLED)


def class_counts(labels_N: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """Labelled samples of each class, int64 [C]."""
    return np.bincount(labels_N[labels_N != UNLABELLED], minlength=n_classes)


def class_weights(setting: str, labels_N: NDArray[np.int64], classes: Sequence[str]) -> NDArray[np.float32] | None:
    """Weight of each class in the hard loss, float32 [C], of mean 1 over the labelled samples; None for `none`.

    `auto`: inverse to the class's share. Else a YAML file, class: weight; SettingError where it does not fit.
    """
    if setting == "none":
        return None
    counts = class_counts(labels_N, len(classes))
    if setting == "auto":
        weights = 1 / np.maximum(counts, 1)
    else:
        given = _read_weights(Path(setting), classes)
        weights = np.array([given[name] for name in classes])
    mean = (weights * counts).sum() / counts.sum()
    if not mean > 0:
        raise SettingError(f"{setting}: the classes that have train images all weigh 0; expected a weight above 0")
    return (weights / mean).astype(np.float32)


def _read_weights(path: Path, classes: Sequence[str]) -> Mapping[str, float]:
    expected = "expected YAML with one line a class, such as `melanoma: 2.5`"
    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(
            f"--class-weights {path}: {error.strerror}; expected none, auto (inverse to the class's share), or a file "
            "of weights"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not YAML: {expected}") from error
    if not isinstance(found, dict) or not found:
        raise SettingError(f"{path} holds no weights: {expected}")
    named = {str(name): value for name, value in found.items()}
    problems = [f"unknown class '{name}'{did_you_mean(name, classes)}" for name in named if name not in classes]
    problems += [f"no weight for '{name}'" for name in classes if name not in named]
    problems += [
        f"the weight of '{name}' is {value!r}, expected a number from 0" for name, value in named.items()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf")
    ]  # fmt: skip
    if problems:
        raise SettingError(f"{path} does not fit these classes: {'; '.join(problems)}")
    return named


def logit_offsets(tau: float, labels_N: NDArray[np.int64], n_classes: int) -> NDArray[np.float32] | None:
    """tau * log(class share), float32 [C] (Menon et al. 2021, eq. 10); None for tau 0.

    A class without a labelled sample counts as one, so that its logit stays finite.
    """
    if not tau:
        return None
    counts = np.maximum(class_counts(labels_N, n_classes), 1)
    return (tau * np.log(counts / counts.sum())).astype(np.float32)
