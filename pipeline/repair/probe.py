"""Label a cache anew by a linear probe on its own embeddings, fitted on the train images of a folder.

Loads no teacher and no pixels. With `cross_fit`, no row of a train image comes from a head that was fitted on its
group: folds are drawn without a look at labels; C, scaling and temperature of a head follow from what it is fitted on.
Run: softlabel cache probe t.h5 DATA --cross-fit image -o probe.h5
N samples, R rows of the cache, C classes, D features.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import CacheReader
from data.errors import BadSamples
from data.groups import EACH_IMAGE, group_folds, read_groups
from data.options import ScanOptions
from pipeline.arguments import check_data_and_cache
from pipeline.bad_images import scan_like
from pipeline.errors import SettingError
from pipeline.joining import join
from pipeline.repair.calibration import fit_temperature, tell_temperature
from pipeline.repair.derived import (
    SCORE_TITLE,
    Score,
    check_new_file,
    chunks,
    derived_manifest,
    new_logits,
    provenance_of_scores,
    score,
    stored_embeddings,
    write_derived,
)
from pipeline.repair.logistic import FitData, FittedHead, fit_head, unit_length
from pipeline.repair.remedies import PROBE
from pipeline.targets import SEEN, TeacherTargets
from pipeline.tasks import Tasks, stored_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the heads of a probe are fitted."""

    cross_fit: str | None = None
    """None: one head labels all rows. Else train rows are labelled out of fold: `image`, or the column of `csv` that
    names each image's group."""
    csv: Path | None = None
    """Table with a row an image."""
    image_column: str | None = None
    """Its column with the images; None takes the first that is named like one."""
    folds: int = 5
    """Heads for the train rows, and folds in which C is chosen; 2 to 100."""
    calibrate: bool = False
    """Divide each head's logits by the temperature of least NLL on val, or on what the head held out of train."""
    embedding: bool = True
    """Keep the embeddings, from which the new cache can be repaired again."""
    seed: int = 0
    """Seed of the folds."""

    def __post_init__(self) -> None:
        if not 2 <= self.folds <= 100:
            raise SettingError(f"folds must be in 2..100, got {self.folds}")
        if self.seed < 0:
            raise SettingError(f"seed must not be negative, got {self.seed}")
        if self.csv is None and self.cross_fit not in (None, EACH_IMAGE):
            raise SettingError(
                f"--cross-fit {self.cross_fit} is a column of a table: name the table with --csv FILE, or take "
                f"--cross-fit {EACH_IMAGE}"
            )
        if self.csv is not None and self.cross_fit in (None, EACH_IMAGE):
            raise SettingError("--csv holds groups: name their column with --cross-fit COLUMN")
        if self.csv is None and self.image_column is not None:
            raise SettingError(f"--image-column {self.image_column} is a column of a table: name it with --csv FILE")


@dataclass(frozen=True)
class ProbeResult:
    """What a probe did; entry 0 of `c` and `temperatures` is the head of all train images, the others the folds'."""

    path: Path
    n_samples: int
    n_rows: int
    n_features: int
    c: tuple[float, ...]
    temperatures: tuple[float, ...] | None
    scores: tuple[Score, ...]
    wall_s: float

    def to_table(self) -> str:
        """For people."""
        return "\n".join([SCORE_TITLE, *(one.to_line() for one in self.scores)])


def probe_cache(
    cache: str | Path, data: str | Path, out: str | Path, config: ProbeConfig, scan: ScanOptions = ScanOptions()
) -> ProbeResult:
    """Fit heads on the train images in `data` and write the cache `out` with their logits of every row of `cache`.

    The classes are those of `data`, whatever the cache's are. Raises DataError, CacheError or PipelineError.
    """
    started = time.perf_counter()
    check_data_and_cache(data, [cache], "cache probe CACHE DATA")
    check_new_file(out)
    reader = CacheReader(cache, memory_map=False)
    images = scan_like(reader, data, scan)
    images.of_split("train")
    splits = {split: images.of_split(split) for split in images.splits}
    joined = join(
        reader, splits, images.words, images.classes,
        answered=False, clean=images.splits, skip_bad_images=scan.skip_bad_images,
    )  # fmt: skip
    joined["train"] = _once_each(joined["train"])
    stored = {stored_name(task, images.classes): task for task in images.classes}
    probes = {name: _probe_of(reader, joined, task, config) for name, task in stored.items()}
    logits = {name: probe.label() for name, probe in probes.items()}
    scores = [
        replace(one, images=f"{name}: {one.images}") if len(probes) > 1 else one
        for name, probe in probes.items() for one in probe.scores(logits[name])
    ]  # fmt: skip
    wall_s = time.perf_counter() - started
    tasks = Tasks({name: images.classes[task] for name, task in stored.items()})
    manifest = derived_manifest(reader.manifest, tasks, _identity(probes), _facts(probes, scores, wall_s))
    seen_R = np.maximum.reduce([probe.seen_R() for probe in probes.values()])
    written = write_derived(reader, out, manifest, logits, seen_R, embedding=config.embedding)
    heads = [fitted for probe in probes.values() for fitted in probe.heads]
    temperatures = [temperature for probe in probes.values() for temperature in probe.temperatures]
    return ProbeResult(
        Path(out), written.n_samples, written.n_rows, next(iter(probes.values())).embedding_RD.shape[1],
        tuple(fitted.c for fitted in heads), tuple(temperatures) if config.calibrate else None,
        tuple(scores), time.perf_counter() - started,
    )  # fmt: skip


def _probe_of(reader: CacheReader, joined: Mapping[str, TeacherTargets], task: str, config: ProbeConfig) -> _Probe:
    of_task = {split: targets.of_task(task) for split, targets in joined.items()}
    train = of_task.pop("train")
    if not train.samples:
        raise BadSamples(f"no train image has a label of {task}: nothing to fit a head to")
    if len(joined["train"].tasks) > 1:
        log.info("task    %s", task)
    return _Probe(reader, train, {split: targets for split, targets in of_task.items() if targets.samples}, config)


def _identity(probes: Mapping[str, _Probe]) -> dict[str, Any]:
    """What the logits follow from, given the embeddings; of several tasks what is said of each stands apart."""
    said = {task: probe.identity() for task, probe in probes.items()}
    first = next(iter(said.values()))
    if len(said) == 1:
        return {"head": PROBE, "probe": first}
    common = {name: first[name] for name in ("cross_fit", "folds") if name in first}
    return {"head": PROBE, "probe": {**common, "tasks": said}}


def _facts(probes: Mapping[str, _Probe], scores: Sequence[Score], wall_s: float) -> dict[str, Any]:
    """What the provenance says of the making."""
    import scipy
    import sklearn

    said = {task: probe.facts() for task, probe in probes.items()}
    return {
        "command": PROBE,
        **(next(iter(said.values())) if len(said) == 1 else {"tasks": said}),
        "scores": provenance_of_scores(scores),
        "wall_s": round(wall_s, 3),
        "versions": {"scikit-learn": sklearn.__version__, "scipy": scipy.__version__, "numpy": np.__version__},
    }


class _Probe:
    """The heads of one probe and which of them labels which row. Head 0 is fitted on all train images."""

    def __init__(
        self, reader: CacheReader, train: TeacherTargets, held_out: Mapping[str, TeacherTargets], config: ProbeConfig
    ) -> None:
        self._reader, self._train, self._held_out = reader, train, held_out
        self._classes, self._config = train.classes, config
        self._is_train = np.zeros(reader.n_samples, bool)
        self._is_train[train.index_N] = True
        group_of = self._read_groups()
        self._seen = self._seen_samples(group_of)
        groups = [group_of.get(s.key, s.key.hex()) for s in train.samples]
        self._fold_N = group_folds(groups, config.folds, config.seed) if config.cross_fit else None
        self.embedding_RD = stored_embeddings(reader)
        self._calibrators = self._unseen_val()
        self._tell()
        self.heads: list[FittedHead] = []
        self.temperatures: list[float] = []
        # Folds by class take a hundredth of the time where no group has two images.
        data = self._fit_data(np.array(groups) if len(set(groups)) < len(groups) else None)
        self._add_head(data, "")
        if self._fold_N is not None:
            for fold in range(config.folds):
                without = f" outside of fold {fold + 1} of {config.folds} (try another --seed or fewer --folds)"
                self._add_head(data.part(np.not_equal(self._fold_N, fold)), without)

    def label(self) -> NDArray[np.floating]:
        """The new logits of every row, [R, C]: float64 products, rounded once."""
        head_of_sample = np.zeros(self._reader.n_samples, np.int64)
        if self._fold_N is not None:
            head_of_sample[self._train.index_N] = 1 + self._fold_N
        head_R = head_of_sample[self._reader.sample_of_row]
        logits_RC = new_logits(len(head_R), len(self._classes))
        for number, (fitted, temperature) in enumerate(zip(self.heads, self.temperatures, strict=True)):
            rows = np.flatnonzero(head_R == number)
            for part in chunks(len(rows)):
                logits_RC[rows[part]] = fitted.head.logits(self.embedding_RD[rows[part]]) / temperature
        return logits_RC

    def seen_R(self) -> NDArray[np.float16]:
        """1 for rows whose head was fitted on their sample or its group, float16 [R]."""
        return self._seen[self._reader.sample_of_row].astype(np.float16)

    def scores(self, logits_RC: NDArray[np.floating]) -> list[Score]:
        """Train out of fold, where it is; then val, or test where there is no val."""
        found = []
        if self._fold_N is not None:
            found.append(score("train, out of fold", self._train, logits_RC))
        for split in ("val", "test"):
            if split in self._held_out:
                targets = self._held_out[split]
                if n_seen := int(targets.seen(targets.clean_rows()).sum()):
                    log.info(
                        "the teacher was fitted on %s of the %s %s images: their scores are too good, before and now",
                        f"{n_seen:,}", f"{len(targets.samples):,}", split,
                    )  # fmt: skip
                return [*found, score(split, targets, logits_RC)]
        return found

    def identity(self) -> dict[str, Any]:
        """What the logits follow from, given the embeddings: the coefficients, and who labels which sample."""
        digest = hashlib.sha256("".join(fitted.head.digest() for fitted in self.heads).encode())
        probe: dict[str, Any] = {"heads_sha256": digest.hexdigest(), "c": [fitted.c.hex() for fitted in self.heads]}
        if self._fold_N is not None:
            folds = sorted((s.key.hex(), int(k)) for s, k in zip(self._train.samples, self._fold_N, strict=True))
            text = "".join(f"{key} {fold}\n" for key, fold in folds)
            probe |= {
                "cross_fit": self._config.cross_fit,
                "folds": self._config.folds,
                "folds_sha256": hashlib.sha256(text.encode()).hexdigest(),
            }
        if self._config.calibrate:
            probe["temperature"] = [temperature.hex() for temperature in self.temperatures]
        return probe

    def facts(self) -> dict[str, Any]:
        """What the provenance says of the making."""
        return {
            "parent_cache_id": self._reader.cache_id,
            "n_train": len(self._train.samples),
            "c": [fitted.c for fitted in self.heads],
            "temperature": list(self.temperatures) if self._config.calibrate else None,
        }

    def _add_head(self, data: FitData, without: str) -> None:
        fitted = fit_head(data, self._classes, self._config.folds, self._config.seed, without)
        self.heads.append(fitted)
        self.temperatures.append(self._temperature(fitted, data) if self._config.calibrate else 1.0)

    def _temperature(self, fitted: FittedHead, data: FitData) -> float:
        """The T of this head alone: one for all heads would carry the labels of a group into its own rows."""
        where, labels_N = "held-out train", data.labels_N[fitted.scored_N]
        logits_NC = fitted.held_out_NC[fitted.scored_N]
        if self._calibrators is not None:
            rows, labels_N = self._calibrators
            where, logits_NC = "val", fitted.head.logits(self.embedding_RD[rows])
        temperature = fit_temperature(logits_NC, labels_N)
        if not self.heads[1:]:
            tell_temperature(temperature, logits_NC, labels_N, where)
        return temperature

    def _unseen_val(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Clean rows and labels of val images that neither share a thing with train nor were the teacher's; or None."""
        val = self._held_out.get("val")
        if val is None:
            return None
        rows = val.clean_rows()
        free_N = ~((self._seen | self._is_train)[val.index_N] | val.seen(rows))
        return (rows[free_N], val.labels_N[free_N]) if free_N.any() else None

    def _fit_data(self, groups_N: NDArray[np.str_] | None) -> FitData:
        """The train images, with all of their views."""
        train, reader = self._train, self._reader
        number = np.full(reader.n_samples, -1)
        number[train.index_N] = np.arange(len(train.samples))
        rows = np.flatnonzero(number[reader.sample_of_row] >= 0)
        unit_RD = np.empty((len(rows), self.embedding_RD.shape[1]), np.float32)
        for part in chunks(len(rows)):  # float32 is as near to the optimum as float64, in 0.7 of the time
            unit_RD[part] = unit_length(self.embedding_RD[rows[part]])
        return FitData(
            embedding_RD=unit_RD, sample_R=number[reader.sample_of_row[rows]],
            clean_N=np.searchsorted(rows, train.clean_rows()), labels_N=train.labels_N, groups_N=groups_N,
        )  # fmt: skip

    def _read_groups(self) -> dict[bytes, str]:
        """Content key -> group, from the table; empty where each image is its own group."""
        if self._config.csv is None or self._config.cross_fit is None:
            return {}
        samples = [*self._train.samples, *(s for targets in self._held_out.values() for s in targets.samples)]
        return read_groups(
            samples, self._config.csv, self._config.cross_fit, self._config.image_column,
            required=lambda sample: sample.split == "train",
        )  # fmt: skip

    def _seen_samples(self, group_of: Mapping[bytes, str]) -> NDArray[np.bool_]:
        """Whether the head that labels a sample was fitted on it or on its group."""
        if self._config.cross_fit is None:
            return self._is_train.copy()
        seen = np.zeros(self._reader.n_samples, bool)
        in_train = {group_of.get(sample.key) for sample in self._train.samples} - {None}
        for split, targets in self._held_out.items():
            shared = [at for at, s in enumerate(targets.samples) if group_of.get(s.key) in in_train]
            shared = [at for at in shared if not self._is_train[targets.index_N[at]]]
            seen[targets.index_N[shared]] = True
            if shared:
                log.warning(
                    "%s of %s %s images share their %s with a train image (first: %s): their score is no fair one",
                    f"{len(shared):,}", f"{len(targets.samples):,}", split, self._config.cross_fit,
                    targets.samples[shared[0]].name,
                )  # fmt: skip
        return seen

    def _tell(self) -> None:
        """What the user should know of the new answers before using them as targets."""
        n_known = len(np.unique(np.concatenate([t.index_N for t in (self._train, *self._held_out.values())])))
        if n_others := self._reader.n_samples - n_known:
            log.info(
                "%s images of the cache are not in the data: the head of all train images labels them", f"{n_others:,}"
            )
        if self._fold_N is None:
            log.info(
                "train rows are labelled by a head that was fitted on them, so these targets are overconfident: "
                "--cross-fit image labels each by a head that has not seen it"
            )
        elif SEEN not in self._reader.features:
            log.info(
                "the cache does not say whether its teacher was fitted on these images; if it was, cross-fitting the "
                "head does not undo that"
            )
        else:
            n_seen = int((self._reader.feature(self._train.clean_rows(), SEEN) > 0).sum())
            if n_seen:
                log.info(
                    "the embeddings of %s of %s train images come from a teacher that was fitted on them: "
                    "cross-fitting the head does not undo that", f"{n_seen:,}", f"{len(self._train.samples):,}",
                )  # fmt: skip


def _once_each(targets: TeacherTargets) -> TeacherTargets:
    """The same bytes under two labels are one sample: the first, by name, counts."""
    _, first = np.unique(targets.index_N, return_index=True)
    first.sort()
    if n_repeats := len(targets.samples) - len(first):
        log.info("%s train images stand in two classes: the first one by name counts", f"{n_repeats:,}")
    return targets.subset(first)
