"""Make a cache's zero-shot logits anew with other prompts, from its stored embeddings. Touches no pixels.

Never fits anything but a temperature. Run: softlabel cache rehead t.h5 --prompts new.yaml -o new.h5
N samples, R rows of the cache, C classes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import CacheReader
from cache.errors import CacheMismatch
from cache.manifest import differences
from data.errors import bullet_list
from data.options import ScanOptions
from pipeline.bad_images import scan_like
from pipeline.errors import SettingError, TeacherError
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
from pipeline.repair.remedies import EMBEDDING, PROMPTED_KINDS, REHEAD, takes_prompts
from pipeline.repair.text_side import TextSide, load_text_side
from pipeline.targets import TeacherTargets
from pipeline.tasks import Tasks, stored_name
from pipeline.teachers.heads import ZeroShotHead
from pipeline.teachers.prompts import Prompts, PromptSource

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReheadConfig:
    """Which head a cache is to get."""

    prompts: Path | None = None
    """YAML file, class -> prompt or list of prompts; None makes prompts of the class names."""
    templates: tuple[str, ...] = ()
    """Each prompt is put in place of the {} of each of these; none leaves the prompts as they are."""
    teacher: str | None = None
    """Folder or hub name of the cache's teacher; None takes the name that the cache gives."""
    calibrate: bool = False
    """Divide the logits by the temperature of least NLL on the val images of the data, or else on its train images."""
    embedding: bool = True
    """Keep the embeddings, from which the new cache can be repaired again."""

    def __post_init__(self) -> None:
        if self.prompts is None and not self.templates:
            raise SettingError("other prompts are needed: --prompts FILE, --template TEXT, or both")
        PromptSource(file=self.prompts, templates=self.templates)


@dataclass(frozen=True)
class ReheadResult:
    """What was done; `scores` is empty without data."""

    path: Path
    n_samples: int
    n_rows: int
    temperatures: tuple[float, ...] | None
    """Of each task; None where it was not asked for."""
    scores: tuple[Score, ...]
    wall_s: float

    def to_table(self) -> str:
        """For people."""
        return "\n".join([SCORE_TITLE, *(one.to_line() for one in self.scores)])


def rehead_cache(
    cache: str | Path,
    out: str | Path,
    config: ReheadConfig,
    data: str | Path | None = None,
    scan: ScanOptions = ScanOptions(),
) -> ReheadResult:
    """Write the cache `out` with the answers that the teacher of `cache` gives with other prompts.

    With `data` the classes are its folders', and old and new answers are compared on its val (or test) images; without,
    they are the cache's. Raises DataError, CacheError or PipelineError.
    """
    started = time.perf_counter()
    check_new_file(out)
    if config.calibrate and data is None:
        raise SettingError("a temperature needs labels: name the images with --data DATA")
    reader = CacheReader(cache, memory_map=False)
    described = _described_teacher(reader)
    targets, tasks = _labelled(reader, data, scan) if data is not None else ({}, Tasks(reader.tasks))
    prompts = _prompts(config, tasks)
    embedding_RD = stored_embeddings(reader)
    side = _load_same_teacher(reader, described, config.teacher, prompts)
    if embedding_RD.shape[1] != side.head.text_CD.shape[1]:
        raise CacheMismatch(
            f"{reader.path} has embeddings of {embedding_RD.shape[1]:,} numbers, its teacher gives "
            f"{side.head.text_CD.shape[1]:,}: whatever wrote it stored others; build it anew"
        )
    temperatures = dict.fromkeys(tasks, 1.0)
    if config.calibrate:
        temperatures = {task: _temperature(side, embedding_RD, targets, tasks, task) for task in tasks}
    logits = _answers(side, embedding_RD, tasks, temperatures)
    scores = _scores(targets, tasks, logits)
    told = tuple(temperatures.values()) if config.calibrate else None
    head = {**side.prompted, "head": REHEAD} | ({} if told is None else {"temperature": _one_or_all(told, float.hex)})
    facts = {
        "command": REHEAD, "parent_cache_id": reader.cache_id,
        "temperature": None if told is None else _one_or_all(told, float),
        "scores": provenance_of_scores(scores), "wall_s": round(time.perf_counter() - started, 3),
    }  # fmt: skip
    named = {stored_name(task, tasks): classes for task, classes in tasks.items()}
    manifest = derived_manifest(reader.manifest, Tasks(named), head, facts)
    renamed = {stored_name(task, tasks): logits_RC for task, logits_RC in logits.items()}
    written = write_derived(reader, out, manifest, renamed, None, embedding=config.embedding)
    wall_s = time.perf_counter() - started
    return ReheadResult(Path(out), written.n_samples, written.n_rows, told, tuple(scores), wall_s)


def _one_or_all(values: Sequence[float], of_one: Callable[[float], Any]) -> Any:
    """Of a single task the value, of several a list."""
    return of_one(values[0]) if len(values) == 1 else [of_one(value) for value in values]


def _head_of(side: TextSide, tasks: Tasks, task: str, temperature: float = 1.0) -> ZeroShotHead:
    """The head of one task, over T."""
    head = side.head
    texts_CD = head.text_CD[tasks.columns[task]]
    return ZeroShotHead(texts_CD, scale=head.scale / temperature, bias=head.bias / temperature)


def _answers(
    side: TextSide, embedding_RD: NDArray[np.float16], tasks: Tasks, temperatures: Mapping[str, float]
) -> dict[str, NDArray[np.floating]]:
    """Task -> logits over T, [R, C]: T goes into the head, so that they are rounded once."""
    found = {}
    for task in tasks:
        head = _head_of(side, tasks, task, temperatures[task])
        logits_RC = new_logits(len(embedding_RD), len(head.text_CD))
        for part in chunks(len(embedding_RD)):
            logits_RC[part] = head.logits(embedding_RD[part].astype(np.float32))
        found[task] = logits_RC
    return found


def _prompts(config: ReheadConfig, tasks: Tasks) -> Prompts:
    prompts = PromptSource(file=config.prompts, templates=config.templates).texts_of(tasks)
    for name, texts in prompts.items():
        log.info("prompt  %s: %s", name, " | ".join(texts))
    return prompts


def _described_teacher(reader: CacheReader) -> dict[str, Any]:
    """The teacher as the cache's identity has it; CacheMismatch for one without a text side that we know."""
    if not takes_prompts(reader):
        found = f"{reader.path} is not from a teacher that takes prompts ({', '.join(PROMPTED_KINDS)})"
        if EMBEDDING in reader.features:
            found += ": its embeddings can be probed instead: softlabel cache probe CACHE DATA -o OUT"
        raise CacheMismatch(found)
    described: dict[str, Any] = reader.manifest.identity["teacher"]
    return described


def _labelled(reader: CacheReader, data: str | Path, scan: ScanOptions) -> tuple[dict[str, TeacherTargets], Tasks]:
    """The images of each split with their rows, and what is asked about them."""
    images = scan_like(reader, data, scan)
    splits = {split: images.of_split(split) for split in images.splits}
    joined = join(
        reader, splits, images.words, images.classes,
        answered=False, clean=images.splits, skip_bad_images=scan.skip_bad_images,
    )  # fmt: skip
    return {split: targets for split, targets in joined.items() if targets.samples}, Tasks(images.classes)


def _load_same_teacher(
    reader: CacheReader, described: Mapping[str, Any], source: str | None, prompts: Prompts
) -> TextSide:
    """The text side of the cache's teacher; CacheMismatch lists what another one differs in."""
    named = source or reader.manifest.provenance.get("teacher")
    if not isinstance(named, str):
        raise SettingError(f"{reader.path} does not name its teacher: pass --teacher, its folder or hub name")
    try:
        side = load_text_side(named, prompts)
    except TeacherError as error:
        if source is not None:
            raise
        raise TeacherError(
            f"{reader.path} calls its teacher '{named}', which cannot be loaded under that name: pass --teacher, its "
            f"folder or hub name\n{error}"
        ) from error
    if found := differences({name: described.get(name) for name in side.teacher}, side.teacher):
        listed = bullet_list(found)
        raise CacheMismatch(f"{named} is not the teacher of {reader.path} (stored against found):\n{listed}")
    return side


def _temperature(
    side: TextSide, embedding_RD: NDArray[np.float16], targets: Mapping[str, TeacherTargets], tasks: Tasks, task: str
) -> float:
    """The T of least NLL on clean val views, or else on train ones; never on what the teacher was fitted on."""
    targets = {split: of_task for split, one in targets.items() if (of_task := one.of_task(task)).samples}
    unseen = {name: ~targets[name].seen(targets[name].clean_rows()) for name in ("val", "train") if name in targets}
    split = next((name for name, unseen_N in unseen.items() if unseen_N.any()), None)
    if split is None:
        found = "the teacher was fitted on all of them" if unseen else "the data have none"
        raise SettingError(f"a temperature needs val or train images, and {found}: leave out --calibrate")
    rows, labels_N = targets[split].clean_rows()[unseen[split]], targets[split].labels_N[unseen[split]]
    logits_NC = _head_of(side, tasks, task).logits(embedding_RD[rows].astype(np.float32))
    temperature = fit_temperature(logits_NC, labels_N)
    tell_temperature(temperature, logits_NC, labels_N, split)
    return temperature


def _scores(
    targets: Mapping[str, TeacherTargets], tasks: Tasks, logits: Mapping[str, NDArray[np.floating]]
) -> list[Score]:
    """On val, or on test where there is no val."""
    split = next((name for name in ("val", "test", "train") if name in targets), None)
    of_task = [targets[split].of_task(task) for task in tasks] if split else []
    return [score(str(split), one, logits[one.tasks.only]) for one in of_task if one.samples]
