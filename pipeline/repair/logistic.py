"""A linear head on embeddings: multinomial logistic regression by scikit-learn. Knows neither caches nor images.

Embeddings are scaled to unit length, as the zero-shot head does, then each feature to mean 0 and variance 1, so that
one grid of C fits every teacher: on skin images unit length alone wanted C = 10, raw embeddings 0.01, at six times the
steps. The choice hardly matters to the answers: cross-validated NLL 0.582, unit length alone 0.581, raw 0.585.
N samples, R rows = views of them, B batch, C classes, D features.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import BadSamples
from pipeline.repair.calibration import nll_nats

log = logging.getLogger(__name__)

C_GRID = tuple(10.0**exponent for exponent in range(-5, 4))
"""Inverse strengths of the L2 penalty, weakest head first; the search ends where the score gets worse."""
# The order of two scores is clear long before the solver is done: twice as fast as with its default, to the same C. The
# final tolerance leaves logits 0.02 from the optimum in the mean, 0.07 at most (25,470 views of skin images).
_SEARCH_TOL, _FINAL_TOL = 1e-3, 1e-4
_MAX_STEPS = 2000


@dataclass(frozen=True)
class ProbeHead:
    """logits = unit(embedding) W^T + b, which are log-probabilities up to a constant of the row."""

    weights_CD: NDArray[np.float64]
    bias_C: NDArray[np.float64]

    def logits(self, embedding_BD: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logits, float64 [B, C], of un-normalised embeddings [B, D]."""
        return unit_length(embedding_BD) @ self.weights_CD.T + self.bias_C

    def digest(self) -> str:
        """Hex sha256 of the coefficients."""
        return hashlib.sha256(self.weights_CD.tobytes() + self.bias_C.tobytes()).hexdigest()


@dataclass(frozen=True)
class FittedHead:
    """A head, how strongly it was regularised, and what heads like it said of the samples that they had not seen."""

    head: ProbeHead
    c: float
    held_out_NC: NDArray[np.float64]
    """Cross-validated logits of the clean views, float64 [N, C]; -inf for a class that such a head did not know."""
    scored_N: NDArray[np.bool_]
    """Whether the head that answered for a sample knew its class."""


@dataclass(frozen=True, kw_only=True)
class FitData:
    """What a head is fitted on."""

    embedding_RD: NDArray[np.float32]
    """Of every view, scaled to unit length."""
    sample_R: NDArray[np.int64]
    """The sample of each view."""
    clean_N: NDArray[np.int64]
    """The row of each sample's clean view."""
    labels_N: NDArray[np.int64]
    groups_N: NDArray[np.str_] | None
    """Samples of one group are never torn apart; None: each is its own group."""

    def part(self, chosen_N: NDArray[np.bool_]) -> FitData:
        """The chosen samples, with all of their views."""
        rows = chosen_N[self.sample_R]
        return replace(
            self,
            embedding_RD=self.embedding_RD[rows],
            sample_R=(np.cumsum(chosen_N) - 1)[self.sample_R[rows]],
            clean_N=(np.cumsum(rows) - 1)[self.clean_N[chosen_N]],
            labels_N=self.labels_N[chosen_N],
            groups_N=None if self.groups_N is None else self.groups_N[chosen_N],
        )


def unit_length(embedding_BD: NDArray[np.floating]) -> NDArray[np.float64]:
    """Embeddings over their norms, float64 [B, D]; a zero one stays zero."""
    embedding = embedding_BD.astype(np.float64)
    norms = np.linalg.norm(embedding, axis=1, keepdims=True)
    return embedding / np.where(norms > 0, norms, 1.0)


def fit_head(data: FitData, classes: tuple[str, ...], n_folds: int, seed: int, without: str = "") -> FittedHead:
    """Choose C by cross-validation on clean views, then fit on all views, each sample with the weight of one.

    Depends on `data` and the seed alone. BadSamples where a class has fewer than two groups; `without` says of what.
    """
    from sklearn.preprocessing import StandardScaler

    smallest = _check_enough(data, classes, without)
    scaler = StandardScaler().fit(data.embedding_RD[data.clean_N])
    scaled_RD = scaler.transform(data.embedding_RD)
    clean_ND = scaled_RD[data.clean_N]
    folds = list(_folds(clean_ND, data, min(n_folds, smallest), seed))
    c, held_out_NC, scored_N = _choose_c(clean_ND, data.labels_N, len(classes), folds)
    model = _new_model(_FINAL_TOL)
    model.set_params(C=c)
    weights_R = (1.0 / np.bincount(data.sample_R))[data.sample_R]
    _fit(model, clean_ND, data.labels_N)  # from there, all views take half the steps
    n_steps = _fit(model, scaled_RD, data.labels_N[data.sample_R], weights_R)
    if n_steps >= _MAX_STEPS:
        log.info("the probe's solver stopped after %d steps: the last digits of its logits are not certain", n_steps)
    weights_CD = _multinomial(model.coef_.astype(np.float64)) / scaler.scale_
    bias_C = _multinomial(model.intercept_.astype(np.float64)) - weights_CD @ scaler.mean_
    return FittedHead(ProbeHead(weights_CD, bias_C), c, held_out_NC, scored_N)


def _check_enough(data: FitData, classes: tuple[str, ...], without: str) -> int:
    """The number of groups of the rarest class, at least 2."""
    groups_N = np.arange(len(data.labels_N)) if data.groups_N is None else data.groups_N
    n_groups = [len(np.unique(groups_N[data.labels_N == number])) for number in range(len(classes))]
    rare = [f"{name} ({n})" for name, n in zip(classes, n_groups, strict=True) if n < 2]
    if rare:
        what = "images" if data.groups_N is None else "groups"
        raise BadSamples(f"too few train {what} of {', '.join(rare)}{without}; a probe needs at least 2 of each class")
    return min(n_groups)


def _folds(
    clean_ND: NDArray[np.float32], data: FitData, n_folds: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(samples to fit on, samples to score) of each fold, by class."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    split_by = StratifiedKFold if data.groups_N is None else StratifiedGroupKFold
    folds = split_by(n_folds, shuffle=True, random_state=seed % 2**32)
    for fitted, scored in folds.split(clean_ND, data.labels_N, data.groups_N):
        if len(scored) and len(np.unique(data.labels_N[fitted])) > 1:  # few large groups may leave a fold empty
            yield fitted, scored


def _choose_c(
    clean_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    n_classes: int,
    folds: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> tuple[float, NDArray[np.float64], NDArray[np.bool_]]:
    """The C of least cross-validated NLL, with the logits it is the NLL of, and which samples were scored."""
    models = [_new_model(_SEARCH_TOL) for _ in folds]
    best, best_c, best_NC = np.inf, C_GRID[0], np.zeros((len(labels_N), n_classes))
    scored_N = np.zeros(len(labels_N), bool)
    for fitted, scored in folds:
        scored_N[scored] = np.isin(labels_N[scored], labels_N[fitted])
    if not scored_N.any():
        raise BadSamples("the groups hold one class each: no head could be tried on what it has not seen")
    for c in C_GRID:
        held_out_NC = np.full((len(labels_N), n_classes), -np.inf)
        for model, (fitted, scored) in zip(models, folds, strict=True):
            model.set_params(C=c)
            _fit(model, clean_ND[fitted], labels_N[fitted])
            answers_CN = np.atleast_2d(model.decision_function(clean_ND[scored]).T).astype(np.float64)
            held_out_NC[np.ix_(scored, model.classes_)] = _multinomial(answers_CN).T
        score = nll_nats(held_out_NC[scored_N], labels_N[scored_N])
        if score >= best:
            break
        best, best_c, best_NC = score, c, held_out_NC
    return best_c, best_NC, scored_N


def _new_model(tol: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(tol=tol, max_iter=_MAX_STEPS, warm_start=True)


def _fit(model: Any, embedding: NDArray[np.float32], labels: NDArray[np.int64], weights: Any = None) -> int:
    """Steps taken; starts where the model stands."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(embedding, labels, sample_weight=weights)
    return int(model.n_iter_[0])


def _multinomial(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """An entry a class along the first axis; scikit-learn gives of two classes one entry, the second's log-odds."""
    return np.concatenate([-values, values]) / 2 if len(values) == 1 else values
