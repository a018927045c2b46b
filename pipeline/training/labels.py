"""What the hard loss is told about labels: which are kept, what each class weighs, how frequent it is.

Knows no images and no logits. N samples, C classes of a task, K columns of all T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from data.errors import BadSamples
from data.splits import stratified_subset
from pipeline.errors import SettingError, did_you_mean
from pipeline.process import derived_seed
from pipeline.tasks import UNLABELLED, Tasks


def keep_labels(keys: Sequence[bytes], labels_NT: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """The labels of a random `fraction` of the samples with the class shares of the whole; the others UNLABELLED.

    Drawn by the combination of a sample's labels in all tasks; depends on the samples' content and on `seed`, not on
    their order. At least one of each combination is kept, also of one that is too small for its share.
    """
    if fraction >= 1:
        return labels_NT
    label_of = {
        key: ",".join(map(str, labels)) for key, labels in zip(keys, labels_NT.tolist(), strict=True)
        if any(label != UNLABELLED for label in labels)
    }  # fmt: skip
    try:
        kept = stratified_subset(label_of, fraction, seed)
    except BadSamples as error:
        raise SettingError(
            f"label_fraction {fraction:g} cannot be drawn by class from {len(label_of):,} images: {error}"
        ) from error
    for label in sorted(set(label_of.values()) - {label_of[key] for key in kept}):
        own = [key for key in label_of if label_of[key] == label]
        kept.add(min(own, key=lambda key: derived_seed(seed, key.hex(), "label")))
    return np.where([[key in kept] for key in keys], labels_NT, UNLABELLED)


def _side_by_side(
    of_task: Callable[[NDArray[np.int64], str], NDArray[np.float32]], labels_NT: NDArray[np.int64], tasks: Tasks
) -> NDArray[np.float32]:
    """What `of_task(labels_N, task)` says of the classes of each task, float32 [K]."""
    return np.concatenate([of_task(labels_NT[:, number], task) for number, task in enumerate(tasks)])


def class_counts(labels_N: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """Labelled samples of each class, int64 [C]."""
    return np.bincount(labels_N[labels_N != UNLABELLED], minlength=n_classes)


def class_weights(setting: str, labels_NT: NDArray[np.int64], tasks: Tasks) -> NDArray[np.float32] | None:
    """Weight of each class in the hard loss, float32 [K], of mean 1 over a task's labelled samples; None for `none`.

    `auto`: inverse to the class's share. Else a YAML file, class: weight, with several tasks `task: class`: weight;
    SettingError where it does not fit.
    """
    if setting == "none":
        return None
    given = None if setting == "auto" else _read_weights(Path(setting), tasks.outputs)
    named = None if given is None else np.array([given[name] for name in tasks.outputs])

    def of_task(labels_N: NDArray[np.int64], task: str) -> NDArray[np.float32]:
        return _task_weights(setting, labels_N, len(tasks[task]), None if named is None else named[tasks.columns[task]])

    return _side_by_side(of_task, labels_NT, tasks)


def _task_weights(
    setting: str, labels_N: NDArray[np.int64], n_classes: int, given_C: NDArray[np.float64] | None
) -> NDArray[np.float32]:
    counts = class_counts(labels_N, n_classes)
    weights = 1 / np.maximum(counts, 1) if given_C is None else given_C
    mean = (weights * counts).sum() / max(1, counts.sum())
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


def logit_offsets(tau: float, labels_NT: NDArray[np.int64], tasks: Tasks) -> NDArray[np.float32] | None:
    """tau * log(class share in its task), float32 [K] (Menon et al. 2021, eq. 10); None for tau 0.

    A class without a labelled sample counts as one, so that its logit stays finite.
    """
    if not tau:
        return None

    def of_task(labels_N: NDArray[np.int64], task: str) -> NDArray[np.float32]:
        counts = np.maximum(class_counts(labels_N, len(tasks[task])), 1)
        return (tau * np.log(counts / counts.sum())).astype(np.float32)

    return _side_by_side(of_task, labels_NT, tasks)
