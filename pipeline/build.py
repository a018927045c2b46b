"""Stage one: write a teacher's logits and embeddings for every (sample, view) into a cache. Never trains.

Train images get all V views, images of other splits the clean one. Each file is decoded once; rows are sealed in
segments as they come, so that an interrupted build goes on where it stopped. Run: softlabel cache build DATA -o t.h5
"""

from __future__ import annotations

import logging
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cache import CacheReader, Manifest, SegmentedWriter
from cache.layout import Dims
from cache.manifest import SKIPPED, differences
from data.decode import DECODER_VERSION
from data.errors import BadImage, UnreadableImage, bullet_list
from data.loaders import SampleViews, TeacherViews, default_workers, teacher_loader
from data.options import ScanOptions
from data.samples import FOLDER_TASK, Sample, SampleSet, scan_folder
from data.views import COLUMNS, ViewPolicy
from pipeline.errors import SettingError
from pipeline.outputs import check_output_file
from pipeline.passes import embed_in_passes
from pipeline.process import MAX_SEED, deferred_interrupts, resolve_device
from pipeline.teachers.prompts import default_prompts, read_prompts
from pipeline.teachers.siglip import DEFAULT_TEACHER, PRECISIONS, SiglipTeacher, resolve_precision

log = logging.getLogger(__name__)

IDENTITY_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What a cache is to hold and how it is computed."""

    teacher: str = DEFAULT_TEACHER
    """A folder with a SigLIP-family model, or its name on the Hugging Face hub."""
    views: int = 8
    """Views of each train image, the clean one included; 1 to 65,535."""
    seed: int = 0
    """Seed of the views; part of the cache's identity."""
    prompts: Path | None = None
    """YAML file, class -> prompt or list of prompts; None makes prompts of the class names."""
    precision: str = "auto"
    """auto, fp32, fp16 or bf16; part of the identity, once resolved."""
    batch_size: int | None = None
    """Views in a forward pass, constant for the whole build; None is 64 on a GPU and 16 on a CPU."""
    device: str = "auto"
    workers: int | None = None
    """Processes that decode and render; None is none beside a CPU teacher, else all cores but one."""
    policy: ViewPolicy = ViewPolicy()
    embedding: bool = True
    """Store the image embeddings (2.3 kB a view with MedSigLIP) beside the logits."""
    names: bool = True
    """Store relative paths, for people."""

    def __post_init__(self) -> None:
        if not 1 <= self.views <= 65_535:
            raise SettingError(f"views must be in 1..65535, got {self.views}")
        if not 0 <= self.seed <= MAX_SEED:
            raise SettingError(f"seed must be in 0..2**63-1, got {self.seed}")
        if self.precision not in PRECISIONS:
            raise SettingError(f"precision must be one of {', '.join(PRECISIONS)}, got '{self.precision}'")
        if self.batch_size is not None and self.batch_size < 1:
            raise SettingError(f"batch_size must be positive, got {self.batch_size}")
        if self.workers is not None and self.workers < 0:
            raise SettingError(f"workers must not be negative, got {self.workers}")


@dataclass(frozen=True)
class BuildResult:
    """What a build did."""

    path: Path
    n_samples: int
    n_rows: int
    n_computed: int
    """Rows computed now; the others stood already."""
    n_skipped: int
    """Images left out because they cannot be decoded."""
    wall_s: float
    """Seconds from the first image to the last row, without loading and merging."""


def build_cache(
    data: str | Path,
    out: str | Path,
    config: BuildConfig,
    scan: ScanOptions = ScanOptions(),
) -> BuildResult:
    """Build, resume or extend the cache `out` for the images in `data`.

    An existing `out` of the same recipe is extended by the rows it lacks; one of another recipe is refused untouched.
    Raises DataError, CacheError or PipelineError. KeyboardInterrupt leaves every computed row sealed.
    """
    check_output_file(out)
    images = scan_folder(data, scan)
    classes = images.classes[FOLDER_TASK]
    _check_class_names(classes)
    prompts = read_prompts(config.prompts, classes) if config.prompts else default_prompts(classes)
    for name, texts in prompts.items():
        log.info("prompt  %s: %s", name, " | ".join(texts))
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    teacher = SiglipTeacher(config.teacher, prompts, device=device, precision=precision)
    batch_size = config.batch_size or (16 if device == "cpu" else 64)
    manifest = _manifest(images, teacher, config)
    with SegmentedWriter(Path(out), manifest, {"rows_per_forward": batch_size}) as writer:
        _check_features(writer, config)
        if (kept := writer.compute_setting["rows_per_forward"]) != batch_size:
            log.info("the sealed rows were computed %d at a time: so are the others (bits depend on it)", kept)
        recorded = writer.last_provenance().get("compute")
        before = recorded if isinstance(recorded, dict) else {}
        setting = {"rows_per_forward": kept, "device": device, "torch": str(torch.__version__)}
        writer.manifest = Manifest(manifest.identity, {**manifest.provenance, "compute": setting})
        wanted = _wanted(images, config.views, writer.done)
        total = sum(len(views) for _, views in wanted)
        log.info(
            "%s images, %s views to compute, %s stand already; %s px, %s on %s, %d views a pass",
            f"{len(images.samples):,}", f"{total:,}", f"{len(writer.done):,}",
            teacher.size_px, precision, device, kept,
        )  # fmt: skip
        if total and before and (found := differences(before, setting)):
            log.warning(
                "the rows that stand were computed in another way, and last digits depend on it; the cache records the "
                "way of now (before against now): %s", "; ".join(found),
            )  # fmt: skip
        _warn_of_a_full_disk(writer, wanted, teacher.head.text_CD.shape[1] if config.embedding else 0)
        started = time.perf_counter()
        bad = _compute(wanted, total, teacher, writer, config, kept)
        wall_s = time.perf_counter() - started
        writer.seal()
        if bad:
            _tell_bad_images(bad, len(images.samples), stop=not scan.skip_bad_images)
        n_computed = total - sum(len(item.view) for item in bad)
        compute = setting if n_computed else before
        reader = writer.finish(_skipped_field(writer, bad) | ({"compute": compute} if compute else {}))
    return BuildResult(Path(out), reader.n_samples, reader.n_rows, n_computed, len(bad), wall_s)


def _check_class_names(classes: Iterable[str]) -> None:
    """The names of folders can be bytes that are no text; neither prompts nor a manifest can hold those."""
    if wrong := [name for name in classes if name.encode(errors="ignore").decode() != name]:
        raise SettingError(f"these class folders have names that are not UTF-8: {', '.join(wrong)}; rename them")


def _check_features(writer: SegmentedWriter, config: BuildConfig) -> None:
    if writer.features is not None and ("embedding" in writer.features) != config.embedding:
        has, flag = ("no embeddings", "--no-embedding") if config.embedding else ("embeddings", "--embedding")
        raise SettingError(f"the rows of {writer.out} have {has}: repeat the command with {flag}, or choose another -o")


def _tell_bad_images(bad: list[SampleViews], n_samples: int, *, stop: bool) -> None:
    if unreadable := [item for item in bad if item.unreadable]:
        listed = bullet_list(f"{item.sample.path}: {item.error}" for item in unreadable)
        raise UnreadableImage(
            f"{len(unreadable):,} of {n_samples:,} images could not be read; everything else is computed and sealed. "
            f"Repeat the same command when they can be read, or remove them:\n{listed}"
        )
    found = f"{len(bad):,} of {n_samples:,} images cannot be decoded"
    listed = bullet_list(f"{item.sample.path}: {item.error}" for item in bad)
    if len(bad) == n_samples:
        raise BadImage(f"{found}: is this the right folder?\n{listed}")
    if stop:
        raise BadImage(
            f"{found}; everything else is computed and sealed. Remove or replace them, then repeat the same command, "
            f"or repeat it with --skip-bad-images:\n{listed}"
        )
    log.info("%s and are left out:\n%s", found, listed)


def _skipped_field(writer: SegmentedWriter, bad: list[SampleViews]) -> dict[str, Any]:
    """What the provenance says of images left out, by key and without paths: those of now and of earlier builds.

    An image that earlier builds left out and that is in the cache by now is no longer listed.
    """
    reasons = CacheReader(writer.out).manifest.skipped if writer.out.exists() else {}
    reasons |= {item.sample.key.hex(): item.error for item in bad}
    present = {key.hex() for key, _ in writer.done}
    left_out = [{"key": key, "reason": reason} for key, reason in sorted(reasons.items()) if key not in present]
    return {SKIPPED: left_out} if reasons else {}


def _warn_of_a_full_disk(writer: SegmentedWriter, wanted: list[tuple[Sample, list[int]]], embedding_size: int) -> None:
    """The sealed segments and the merged file stand side by side for a moment: say so before the teacher runs."""
    n_rows = sum(len(views) for _, views in wanted)

    def n_bytes(rows: int) -> int:
        features: dict[str, tuple[int, ...]] = {"embedding": (embedding_size,)} if embedding_size else {}
        counts = tuple(len(classes) for classes in writer.manifest.tasks.values())
        return Dims(
            manifest_bytes=len(writer.manifest.to_bytes()), n_samples=min(rows, len(wanted)), n_rows=rows,
            n_params=len(COLUMNS), class_counts=counts, features=features,
        ).n_bytes  # fmt: skip

    needed = n_bytes(n_rows) + n_bytes(len(writer.done) + n_rows)
    free = shutil.disk_usage(writer.out.absolute().parent).free
    if n_rows and free < needed:
        log.warning(
            "the disk may fill up: this build needs up to %s bytes in %s, %s are free. What is sealed stays; "
            "make room before it ends",
            f"{needed:,}", writer.out.absolute().parent, f"{free:,}",
        )  # fmt: skip


def _manifest(images: SampleSet, teacher: SiglipTeacher, config: BuildConfig) -> Manifest:
    """All of it but `compute`, which is known once the parts of an earlier run have been looked at."""
    identity = {
        "identity_version": IDENTITY_VERSION,
        "tasks": [{"name": task, "classes": list(names)} for task, names in images.classes.items()],
        "teacher": teacher.identity,
        "preprocessing": teacher.preprocessing,
        "precision": teacher.precision,
        "views": {**config.policy.to_identity(), "seed": str(config.seed)},
        "view_columns": list(COLUMNS),
        "decoder_version": DECODER_VERSION,
    }
    import torchvision
    import transformers

    provenance = {
        # Of a folder its name alone: a path may name a person.
        "teacher": Path(config.teacher).resolve().name if Path(config.teacher).is_dir() else config.teacher,
        "teacher_parameters": teacher.n_parameters,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "transformers": transformers.__version__,
        },
    }
    return Manifest(identity, provenance)


def _wanted(images: SampleSet, views: int, done: Set[tuple[bytes, int]]) -> list[tuple[Sample, list[int]]]:
    """Each sample once, with the views that are not sealed yet, in key order."""
    views_of: dict[bytes, int] = {}
    sample_of: dict[bytes, Sample] = {}
    for sample in images.samples:
        sample_of[sample.key] = sample
        views_of[sample.key] = max(views_of.get(sample.key, 1), views if sample.split == "train" else 1)
    missing = {key: [v for v in range(views_of[key]) if (key, v) not in done] for key in sorted(sample_of)}
    return [(sample_of[key], wanted) for key, wanted in missing.items() if wanted]


def _compute(
    wanted: list[tuple[Sample, list[int]]],
    total: int,
    teacher: SiglipTeacher,
    writer: SegmentedWriter,
    config: BuildConfig,
    batch_size: int,
) -> list[SampleViews]:
    """Compute and seal all wanted rows; those that could not be decoded, with reasons."""
    if not wanted:
        return []
    dataset = TeacherViews(wanted, config.policy, config.seed, teacher.size_px)
    workers = default_workers(teacher.device) if config.workers is None else config.workers
    bad: list[SampleViews] = []
    progress = tqdm(total=total, unit="view", disable=None, smoothing=0.1)
    with progress, deferred_interrupts() as check_interrupt:
        decoded = _good_ones(teacher_loader(dataset, workers), bad)
        try:
            for item, embedding in embed_in_passes(decoded, teacher, batch_size, check_interrupt):
                logits = teacher.head.logits(embedding)
                writer.add(
                    key=item.sample.key, views=item.view, params=item.params, witness=item.witness,
                    logits={FOLDER_TASK: logits},
                    features={"embedding": embedding.astype(np.float16)} if config.embedding else {},
                    name=item.sample.name if config.names else None,
                )  # fmt: skip
                progress.update(len(item.view))
            check_interrupt()
        except KeyboardInterrupt:
            writer.seal()
            raise
    return bad


def _good_ones(items: Iterable[SampleViews], bad: list[SampleViews]) -> Iterator[SampleViews]:
    for item in items:
        if item.error:
            bad.append(item)
        else:
            yield item
