"""What a cache would cost, before it is built: images, views, bytes, FLOPs, hours here and on three GPUs, break-even.

Loads the teacher and times one batch; writes nothing. Run: softlabel cache build DATA -o t.h5 --dry-run
V views, N images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cache import CacheReader, Manifest
from cache.errors import CacheDamaged, CacheMismatch, CacheNotFound
from cache.layout import Dims
from cache.recipes import apart
from cache.rows import FeatureShapes, Pair
from cache.store import Store
from cache.workspace import Workspace
from data.loaders import default_workers
from data.options import ScanOptions
from data.reading import read_sample
from data.samples import Sample, SampleSet
from data.scan import scan_data
from data.views import draw, render
from pipeline.bad_images import find_bad_files, refuse_or_tell, without
from pipeline.build import default_batch_size
from pipeline.from_store import StoreOfRecipe
from pipeline.outputs import check_output_file
from pipeline.recipe import BuildConfig, feature_shapes, manifest_of, prepare_teacher
from pipeline.reuse import check_features, check_readable, check_reusable, reusable_rows
from pipeline.slices import Slice
from pipeline.teachers.teacher import Teacher
from pipeline.wanted import planned_dims, wanted_rows

GPUS_TFLOPS = {"T4": 65.0, "A100": 312.0, "H100 SXM": 989.0}
"""Dense fp16 tensor-core peaks, from NVIDIA's data sheets."""
UTILISATION = 0.4
"""Share of the peak that a vision transformer is assumed to reach; not measured here."""
STUDENT_EPOCHS = 40
"""Of one student run, the default of `softlabel train`."""
_TIMED_S = 20.0
"""The timed batch is made smaller where a whole one would take longer."""
_RENDERED_VIEWS = 16
"""Of each timed image, at most: a view takes 0.6 MB at 448 px."""


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """What `cache build` would do."""

    out: Path
    n_images: int
    n_views: int
    """To be computed."""
    n_done: int
    """Views that the output has already."""
    reused: tuple[tuple[str, int], ...]
    """Other caches, or a store, and how many views would be taken from each."""
    n_bad: int
    n_student_forwards: int
    """Of a teacher that sits in the training loop of one student."""
    dims: Dims
    """Sizes of the finished file."""
    gflop_per_view: float
    device: str
    precision: str
    forward_s: float
    """Seconds a view in the teacher, from the timed batch."""
    n_timed: int
    """Views in the timed batch."""
    render_s: float
    """Seconds a view for decoding and rendering, on one core."""
    workers: int

    @property
    def hours_here(self) -> float:
        """Rendering hides behind the teacher where workers do it, and adds to it where none do."""
        a_view = max(self.forward_s, self.render_s / self.workers) if self.workers else self.forward_s + self.render_s
        return self.n_views * a_view / 3600

    def hours_on(self, tflops: float) -> float:
        """At UTILISATION of a GPU's peak."""
        return self.n_views * self.gflop_per_view / (tflops * 1e3 * UTILISATION) / 3600

    @property
    def break_even_runs(self) -> float:
        """Student runs after which the whole cache has cost fewer teacher passes than a teacher in the loop."""
        return self.n_rows / self.n_student_forwards

    @property
    def n_rows(self) -> int:
        """Views in the finished file."""
        return self.n_views + self.n_done + sum(n_rows for _, n_rows in self.reused)

    def lines(self) -> Iterator[str]:
        """For people."""
        bad = f", {self.n_bad:,} of them no whole image" if self.n_bad else ""
        yield f"images      {self.n_images:,}{bad}"
        taken = "".join(f"{n_rows:,} to take from {where}, " for where, n_rows in self.reused)
        yield f"views       {self.n_views:,} to compute, {taken}{self.n_done:,} stand already in {self.out}"
        yield f"bytes       {_bytes(self.dims.n_bytes)} in the end, twice that for a moment"
        objects = {name: spec.n_bytes for name, spec in self.dims.specs().items()}
        for name, n_bytes in sorted(objects.items(), key=lambda item: -item[1]):
            if n_bytes >= self.dims.n_bytes / 1000:
                yield f"            {_bytes(n_bytes):>9}  {name}"
        total = self.gflop_per_view * self.n_views / 1e6
        yield f"compute     {self.gflop_per_view:,.4g} GFLOP a view, {total:,.3g} PFLOP in all"
        limit = " (rendering is the limit: more --workers)" if self._is_render_bound else ""
        yield (
            f"here        {_duration(self.hours_here)} on {self.device} in {self.precision}{limit}: "
            f"{self.forward_s * 1e3:,.3g} ms a view in the teacher (a batch of {self.n_timed}), "
            f"{self.render_s * 1e3:.3g} ms to decode and render it on one core, {self.workers} workers"
        )
        elsewhere = ", ".join(f"{name} {_duration(self.hours_on(peak))}" for name, peak in GPUS_TFLOPS.items())
        yield f"elsewhere   {elsewhere} (assumed: {UTILISATION:.0%} of the dense fp16 peak, fast enough loaders)"
        if not self.n_student_forwards:
            yield "break-even  none: a student learns from train images, and there are none"
            return
        runs = self.break_even_runs
        yield (
            f"break-even  one student of {STUDENT_EPOCHS} epochs with the teacher in its loop takes "
            f"{self.n_student_forwards:,} teacher passes, the cache {self.n_rows:,}: it is cheaper from "
            f"student run {max(1, math.ceil(runs)):,} on ({runs:.2g} runs)"
        )

    @property
    def _is_render_bound(self) -> bool:
        return bool(self.workers) and self.render_s / self.workers > self.forward_s


def plan_build(
    data: str | Path,
    out: str | Path,
    config: BuildConfig,
    scan: ScanOptions = ScanOptions(),
    *,
    reuse: Sequence[str | Path] = (),
    part: Slice | None = None,
    store: Store | None = None,
) -> BuildPlan | None:
    """What `build_cache` with these arguments would do; the same errors for the same mistakes.

    None for a slice without images.
    """
    check_output_file(out)
    out = Path(out) if part is None else part.file(out)
    check_readable(reuse, out)
    images = scan_data(data, replace(scan, collect_bad_files=True))
    n_images = len(images.samples) + len(images.bad)
    images = images if part is None else part.of(images)
    if part is not None and not images.samples:
        return None
    teacher = prepare_teacher(images, config)
    manifest = manifest_of(images, teacher.facts, config)
    features = feature_shapes(teacher.facts, config)
    done = _standing(out, manifest, features)
    check_reusable(reuse, manifest, features)
    taken = [(str(path), rows) for path, rows in reusable_rows(reuse, wanted_rows(images, config.views, done))]
    there = done.union(*(pairs for _, pairs in taken))
    if store is not None:
        shared = StoreOfRecipe(store, manifest, features, may_make=True)
        taken.append((store.address.shown, shared.rows_there(wanted_rows(images, config.views, there))))
        there |= taken[-1][1]
    wanted = wanted_rows(images, config.views, there)
    bad = [*images.bad, *find_bad_files([sample for sample, _ in wanted])]
    refuse_or_tell(bad, n_images, "nothing was written", skip=scan.skip_bad_images)
    wanted = without(bad, wanted)
    if part is not None and not (wanted or there):
        return None
    n_views = sum(len(views) for _, views in wanted)
    dims = planned_dims(manifest, images.samples, n_views + len(there), features, names=config.names)
    keys = {key for key, _ in there}
    some = [sample for sample, _ in wanted[:4]] or [s for s in images.samples if s.key in keys][:4]
    return BuildPlan(
        out=out, n_images=len(images.samples) + len(images.bad), n_views=n_views, n_done=len(done),
        reused=tuple((where, len(pairs)) for where, pairs in taken), n_bad=len(bad),
        n_student_forwards=_student_forwards(images), dims=dims, device=teacher.device, precision=teacher.precision,
        workers=default_workers(teacher.device) if config.workers is None else config.workers,
        **_timed(some, teacher, config),
    )  # fmt: skip


def _timed(samples: list[Sample], teacher: Teacher, config: BuildConfig) -> dict[str, Any]:
    """The fields of a plan that are measured on some samples."""
    render_s, views = _timed_rendering(samples, config, teacher.size_px)
    batch_size = config.batch_size or default_batch_size(teacher.device)
    gflop, forward_s, n_timed = _timed_batch(teacher, views, batch_size)
    return {"render_s": render_s, "gflop_per_view": gflop, "forward_s": forward_s, "n_timed": n_timed}


def _standing(out: Path, manifest: Manifest, features: FeatureShapes) -> set[Pair]:
    """Every (key, view) in the output and in the parts of a build that was interrupted, or is under way."""
    workspace = Workspace(out)
    done: set[Pair] = set()
    for path in [*([workspace.out] if workspace.out.exists() else []), *workspace.segments()]:
        try:
            reader = CacheReader(path, memory_map=False)
            names = "it", "what is to be written"
            if found := apart(reader.manifest.identity, manifest.identity, names, "stored against wanted"):
                raise CacheMismatch(f"{path} is of another recipe{found.reason}: choose another -o{found.fields}")
            check_features(out, reader.features, features)
            done |= reader.pairs()
        except (CacheNotFound, CacheDamaged):
            if path == workspace.out:
                raise
            continue  # merged meanwhile, or its rows are computed again
    return done


def _student_forwards(images: SampleSet) -> int:
    """Every train image once an epoch; validation images once."""
    n_train = sum(sample.split == "train" for sample in images.samples)
    return STUDENT_EPOCHS * n_train + sum(sample.split == "val" for sample in images.samples)


def _timed_rendering(samples: list[Sample], config: BuildConfig, size_px: int) -> tuple[float, torch.Tensor]:
    """(seconds a view, uint8 [views, 3, S, S])."""
    started = time.perf_counter()
    views = []
    for sample in samples:
        image = read_sample(sample)
        rows = [draw(config.policy, sample.key, v, config.seed) for v in range(min(config.views, _RENDERED_VIEWS))]
        views += [render(image, row, size_px, config.policy.geometry) for row in rows]
    return (time.perf_counter() - started) / len(views), torch.stack(views)


def _timed_batch(teacher: Teacher, views: torch.Tensor, batch_size: int) -> tuple[float, float, int]:
    """(GFLOP a view, seconds a view, views in the timed batch); the pass that is counted warms up, too."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # Neither the fused attention of a CPU nor that of MultiheadAttention is in the counter's table.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        started = time.perf_counter()
        with counter, sdpa_kernel(SDPBackend.MATH):
            teacher.embed(views[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    first_s = time.perf_counter() - started
    n_timed = max(1, min(batch_size, int(_TIMED_S / first_s)))
    batch = views[torch.arange(n_timed) % len(views)]
    if teacher.device != "cpu":
        teacher.embed(batch)  # kernels are chosen and memory is taken at the first batch of a size
    started = time.perf_counter()
    teacher.embed(batch)
    return counter.get_total_flops() / 1e9, (time.perf_counter() - started) / n_timed, n_timed


def _bytes(n: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:,.3g} {unit}" if unit != "bytes" else f"{n:,.0f} {unit}"
        n /= 1000
    raise AssertionError


def _duration(hours: float) -> str:
    if hours < 1 / 3600:
        return "under 1 s"
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:,.1f} h"
