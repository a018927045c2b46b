"""A teacher at work: precision checked against fp32, overflow mended, memory that is too small told."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cache import CacheReader
from data.checks import checked as check_images
from pipeline import bad_images
from pipeline.build import BuildConfig, build_cache
from pipeline.errors import OutOfMemory, TeacherError
from pipeline.teachers.heads import LinearHead, OutputHead
from pipeline.teachers.loading import open_teacher
from pipeline.teachers.prompts import Prompts
from pipeline.teachers.teacher import LoadedModel, Teacher


class Overflowing(nn.Module):
    """Means of the channels; in half precision, rows that begin bright are infinite, as after an overflow."""

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3]."""
        means = pixels.mean(dim=(2, 3))
        if torch.is_autocast_enabled("cpu"):
            means = torch.where(pixels[:, :1, 0, 0] > 0.5, torch.inf, means.half().float())
        return means


def teacher_of(tower: nn.Module, precision: str, **changes: Any) -> Teacher:
    loaded: dict[str, Any] = {
        "tower": tower, "head": OutputHead((0, 1, 2)), "classes": ("a", "b", "c"), "size_px": 8,
        "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "identity": {},
    }  # fmt: skip
    return Teacher(LoadedModel(**(loaded | changes)), device="cpu", precision=precision)


def views(n: int) -> Tensor:
    return torch.randint(0, 128, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_rows_that_overflow_in_half_precision_are_computed_again_in_fp32_and_counted() -> None:
    pixels = views(5)
    pixels[[1, 3], 0, 0, 0] = 255
    teacher = teacher_of(Overflowing(), "fp16")
    found = teacher.embed(pixels)
    assert teacher.n_recomputed == 2
    exact = teacher_of(Overflowing(), "fp32").embed(pixels)
    np.testing.assert_array_equal(found[[1, 3]], exact[[1, 3]])
    assert 0 < np.abs(found - exact).max() < 1e-3


def test_the_cache_says_how_many_rows_were_computed_again(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, calls = Teacher._outputs, 0

    def overflowing(self: Teacher, pixels: Tensor, precision: str) -> Any:
        nonlocal calls
        found = outputs(self, pixels, "fp32")
        if precision == "fp16":
            calls += 1
            found[0] = torch.inf if calls in (2, 5) else found[0]
        return found

    monkeypatch.setattr(Teacher, "_outputs", overflowing)
    result = build_cache(tiny_data, tmp_path / "t.h5", dataclasses.replace(tiny_build, precision="fp16"))
    assert result.n_recomputed == 2
    assert CacheReader(result.path).manifest.provenance["recomputed_in_fp32"] == 2


def test_the_first_batch_is_compared_with_fp32_shown_and_recorded(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        out = build_cache(tiny_data, tmp_path / "t.h5", dataclasses.replace(tiny_build, precision="bf16")).path
    recorded: Any = CacheReader(out).manifest.provenance["first_batch_against_fp32"]
    assert recorded["n_rows"] == tiny_build.batch_size
    assert 0 < recorded["worst_logit"] < 1
    assert [m for m in caplog.messages if m.startswith("bf16    against fp32, 4 views: largest difference")]


def test_the_fp32_weights_of_a_bf16_teacher_are_dropped_after_the_comparison(
    tiny_teacher: Path, prompts: Prompts
) -> None:
    teacher = open_teacher(str(tiny_teacher), list(prompts), prompts, device="cpu", precision="bf16")
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert teacher._exact_tower is not None
    found = teacher.compare_with_fp32(pixels, teacher.embed(pixels))
    assert (found.n_rows, teacher._exact_tower) == (3, None)
    assert 0 < found.worst_logit < 1


def test_answers_that_change_in_half_precision_are_warned_of(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    outputs = Teacher._outputs
    monkeypatch.setattr(
        Teacher,
        "_outputs",
        lambda self, pixels, precision: outputs(self, pixels, precision) * (precision == "fp32" or -1),
    )
    build_cache(tiny_data, tmp_path / "t.h5", dataclasses.replace(tiny_build, precision="bf16"))
    assert "bf16 changes the teacher's answers: Ctrl-C, and try --precision fp32" in caplog.text


@pytest.fixture
def memory_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`memory_for(n)`: a device on which n views at once fit, and no more."""
    outputs = Teacher._outputs

    def memory_for(n_views: int) -> None:
        def limited(self: Teacher, pixels: Tensor, precision: str) -> Any:
            if len(pixels) > n_views:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return outputs(self, pixels, precision)

        monkeypatch.setattr(Teacher, "_outputs", limited)

    return memory_for


def test_a_batch_that_is_too_large_is_halved_before_anything_is_sealed(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, tmp_path: Path, memory_for: Callable[[int], None],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    memory_for(5)
    checked: list[int] = []
    monkeypatch.setattr(bad_images, "check_images", lambda new: checked.append(len(new)) or check_images(new))
    result = build_cache(tiny_data, tmp_path / "t.h5", dataclasses.replace(tiny_build, batch_size=16))
    assert [m.split(": ")[-1] for m in caplog.messages if "do not fit" in m] == [
        "going on with --batch-size 8", "going on with --batch-size 4",
    ]  # fmt: skip
    assert result.n_computed == 120
    assert checked == [60, 0, 0], "each image once"
    reader = CacheReader(result.path)
    assert reader.manifest.provenance["compute"]["rows_per_forward"] == 4
    assert reader.content_id == CacheReader(tiny_cache).content_id, "as if built with a batch of 4 at once"


def test_memory_that_runs_out_after_a_seal_ends_the_build_and_keeps_the_batch(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, tmp_path: Path, memory_for: Callable[[int], None],
    stop_at: Callable[..., None],
) -> None:  # fmt: skip
    out = tmp_path / "t.h5"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(15)
        with pytest.raises(KeyboardInterrupt):
            build_cache(tiny_data, out, tiny_build)
        memory_for(3)
        with pytest.raises(OutOfMemory, match=r"Rows are sealed that were computed 4 at a time.*free memory"):
            build_cache(tiny_data, out, tiny_build)
        patch.undo()
    assert list((tmp_path / "t.h5.parts").glob("*.h5"))
    memory_for(4)
    assert 0 < build_cache(tiny_data, out, tiny_build).n_computed < 120
    assert CacheReader(out).content_id == CacheReader(tiny_cache).content_id


def test_a_device_on_which_one_view_does_not_fit_is_told(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, memory_for: Callable[[int], None]
) -> None:
    memory_for(0)
    with pytest.raises(OutOfMemory, match="this device is too small for the teacher"):
        build_cache(tiny_data, tmp_path / "t.h5", tiny_build)
    assert not list(tmp_path.iterdir())


def test_another_error_of_the_device_is_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = teacher_of(Overflowing(), "fp32")

    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(teacher, "_outputs", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        teacher.embed(views(1))


def test_a_model_that_answers_with_no_row_of_numbers_is_refused() -> None:
    with pytest.raises(TeacherError, match="a tensor of 4 axes, expected one row of numbers a view"):
        teacher_of(nn.Identity(), "fp32").embed(views(2))


def test_a_linear_head_is_computed_in_float64_whatever_stands_beside_a_row() -> None:
    generator = np.random.default_rng(0)
    head = LinearHead(generator.normal(size=(3, 50)), generator.normal(size=3))
    rows = generator.normal(size=(9, 50)).astype(np.float32)
    np.testing.assert_array_equal(head.logits(rows)[4:5], head.logits(rows[4:5]))
    np.testing.assert_array_equal(head.columns([2, 0, 1]).logits(rows), head.logits(rows)[:, [2, 0, 1]])
