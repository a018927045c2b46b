"""What a cache would cost, told before it is built."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cache import CacheReader
from cache.errors import CacheMismatch
from data.errors import BadImage
from data.options import ScanOptions
from data.scan import scan_data
from pipeline import dry_run
from pipeline.build import BuildConfig, build_cache
from pipeline.demo.lesions import write_lesions
from pipeline.dry_run import BuildPlan, _timed_batch, _timed_rendering, plan_build
from pipeline.errors import SettingError
from pipeline.teachers.loading import open_teacher
from pipeline.teachers.prompts import Prompts
from pipeline.teachers.teacher import Teacher
from pipeline.train import TrainConfig

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def plan(tiny_data: Path, tiny_build: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> BuildPlan:
    return plan_build(tiny_data, tmp_path_factory.mktemp("plan") / "t.h5", tiny_build)


def test_the_plan_counts_what_a_build_then_makes(plan: BuildPlan, tiny_cache: Path) -> None:
    reader = CacheReader(tiny_cache)
    assert (plan.n_images, plan.n_views, plan.n_done) == (reader.n_samples, reader.n_rows, 0)
    assert {name: spec.n_bytes for name, spec in plan.dims.specs().items() if name != "manifest"} == {
        name: spec.n_bytes for name, spec in reader.dims.specs().items() if name != "manifest"
    }


def test_the_plan_of_an_extension_counts_what_stands(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path
) -> None:
    before = tiny_cache.read_bytes()
    found = plan_build(tiny_data, tiny_cache, dataclasses.replace(tiny_build, views=5))
    assert (found.n_views, found.n_done) == (30 * 2, 120)
    assert plan_build(tiny_data, tiny_cache, tiny_build).n_views == 0
    assert tiny_cache.read_bytes() == before


def test_flops_are_those_of_the_architecture(plan: BuildPlan) -> None:
    """Width 32, 2 layers, 16 tokens, mlp 128: 2 FLOPs a multiply and add; the pooling head has one query."""
    width, tokens, mlp = 32, 16, 128
    layer = 2 * tokens * (4 * width * width + 2 * width * mlp) + 2 * 2 * tokens * tokens * width
    patches = 2 * tokens * 3 * 8 * 8 * width
    head = 2 * (2 * tokens * width**2 + 2 * width**2) + 2 * 2 * tokens * width + 2 * 2 * width * mlp
    assert plan.gflop_per_view * 1e9 == pytest.approx(2 * layer + patches + head, rel=0.05)


def test_the_teacher_in_the_loop_answers_every_train_image_once_an_epoch(plan: BuildPlan) -> None:
    assert TrainConfig().epochs == dry_run.STUDENT_EPOCHS
    assert plan.n_student_forwards == 40 * 30 + 15
    assert plan.break_even_runs == 120 / 1215


def made(plan: BuildPlan, **changes: Any) -> str:
    return "\n".join(dataclasses.replace(plan, **changes).lines())


def test_hours_follow_from_flops_and_from_the_slower_of_teacher_and_rendering(plan: BuildPlan) -> None:
    million = {"n_views": 1_000_000, "gflop_per_view": 979.0, "device": "cuda", "precision": "fp16"}
    text = made(plan, **million, forward_s=0.002, render_s=0.004, workers=4)
    assert "33 min on cuda in fp16" in text
    assert "T4 10.5 h, A100 2.2 h, H100 SXM 41 min (assumed: 40% of the dense fp16 peak" in text
    assert "rendering is the limit" not in text
    text = made(plan, **million, forward_s=0.002, render_s=0.036, workers=4)
    assert "2.5 h on cuda in fp16 (rendering is the limit: more --workers)" in text
    assert "1.7 h on cuda" in made(plan, **million, forward_s=0.002, render_s=0.004, workers=0)


def test_a_cache_that_costs_more_than_one_run_says_from_which_run_on_it_pays(plan: BuildPlan) -> None:
    assert "from student run 3 on (2.5 runs)" in made(plan, n_views=2500, n_student_forwards=1000)
    assert "from student run 1 on (0.25 runs)" in made(plan, n_views=250, n_student_forwards=1000)


def test_a_whole_batch_is_timed_where_it_is_quick_and_less_where_it_is_not(
    tiny_data: Path, tiny_teacher: Path, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher: Teacher = open_teacher(str(tiny_teacher), list(prompts), prompts, device="cpu", precision="fp32")
    views = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    assert _timed_batch(teacher, views, 16)[2] == 16
    monkeypatch.setattr(dry_run, "_TIMED_S", 0.0)
    assert _timed_batch(teacher, views, 16)[2] == 1


def test_dry_run_prints_the_plan_and_writes_nothing(
    cli: Cli, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    build = ("cache", "build", tiny_data, "-o", tmp_path / "t.h5", "--teacher", tiny_teacher, "--dry-run")
    code, out, err = cli(*build)
    assert code == 0, err
    heads = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert heads == ["images", "views", "bytes", "compute", "here", "elsewhere", "break-even"]
    assert re.search(r"^ +17\.3 kB  features/embedding$", out, re.MULTILINE), out
    assert "prompt  melanoma: melanoma" in err
    assert not list(tmp_path.iterdir())


def test_a_plan_lists_bad_images_as_a_build_does(tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    next(data.glob("train/*/*.png")).write_bytes(b"no image")
    with pytest.raises(BadImage, match="1 of 60 images cannot be decoded; nothing was written"):
        plan_build(data, tmp_path / "t.h5", tiny_build)


def test_the_plan_of_an_interrupted_build_counts_its_parts(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, stop_at: Callable[..., None]
) -> None:
    out = tmp_path / "t.h5"
    stop_at(10, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        build_cache(tiny_data, out, tiny_build)
    parts = sorted(out.with_name("t.h5.parts").iterdir())
    n_sealed = sum(CacheReader(part).n_rows for part in parts if part.suffix == ".h5")
    found = plan_build(tiny_data, out, tiny_build)
    assert (found.n_done, found.n_views) == (n_sealed, 120 - n_sealed)
    assert n_sealed > 0
    with pytest.raises(CacheMismatch, match=r"is of another recipe, with another --seed .*\n  views.seed"):
        plan_build(tiny_data, out, dataclasses.replace(tiny_build, seed=1))
    with pytest.raises(SettingError, match="have embeddings: repeat the command with --embedding"):
        plan_build(tiny_data, out, dataclasses.replace(tiny_build, embedding=False))
    next(part for part in parts if part.suffix == ".h5").write_bytes(b"damaged")
    assert plan_build(tiny_data, out, tiny_build).n_views > 120 - n_sealed
    assert sorted(out.with_name("t.h5.parts").iterdir()) == parts


def test_a_plan_without_train_images_has_no_break_even(tiny_build: BuildConfig, tmp_path: Path) -> None:
    write_lesions(tmp_path / "images", {"test": 1}, size_px=48)
    lines = list(plan_build(tmp_path / "images", tmp_path / "t.h5", tiny_build).lines())
    assert lines[-1].startswith("break-even  none: a student learns from train images")


def test_the_plan_of_a_finished_cache_reads_no_image_that_was_left_out(
    few_images: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    data, skip = shutil.copytree(few_images, tmp_path / "images"), ScanOptions(skip_bad_images=True)
    for sample in scan_data(data).samples[:4]:
        Path(sample.path).write_bytes(f"no image {sample.name}".encode())
    config = dataclasses.replace(tiny_build, views=1)
    build_cache(data, tmp_path / "t.h5", config, skip)
    found = plan_build(data, tmp_path / "t.h5", config, skip)
    assert (found.n_views, found.n_bad, found.n_done) == (0, 4, 21)


def test_the_timing_renders_a_few_views_of_an_image_however_many_are_wanted(
    tiny_data: Path, tiny_build: BuildConfig
) -> None:
    samples = list(scan_data(tiny_data).samples[:2])
    assert len(_timed_rendering(samples, dataclasses.replace(tiny_build, views=65_535), 32)[1]) == 2 * 16
