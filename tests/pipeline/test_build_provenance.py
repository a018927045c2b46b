"""What a build writes into the provenance stays true: how its rows were computed, what is left out, whose they are."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cache import CacheReader
from data import reading
from data.errors import BadImage
from data.options import ScanOptions
from data.samples import content_key
from pipeline import build as module
from pipeline.build import BuildConfig, build_cache
from pipeline.teachers.teacher import Teacher

StopAt = Callable[..., None]
OTHER_TORCH = "2.99.0"


class Killed(BaseException):
    """Nothing answers it: only what is sealed on the disk is left, as after a kill."""


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SegmentedWriter", functools.partial(module.SegmentedWriter, segment_rows=16))


def recorded(cache: Path) -> Any:
    return CacheReader(cache).manifest.provenance["compute"]


def killed(data: Path, out: Path, config: BuildConfig) -> dict[Path, Any]:
    """A build up to where `stop_at` kills it; what each segment that it wrote records of its rows."""
    before = set(out.with_name("t.h5.parts").glob("*.h5"))
    with pytest.raises(Killed):
        build_cache(data, out, config)
    return {part: recorded(part) for part in set(out.with_name("t.h5.parts").glob("*.h5")) - before}


def test_a_build_that_goes_on_with_another_torch_keeps_the_batch_size_and_records_the_torch_of_now(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, stop_at: StopAt, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    out, now = tmp_path / "t.h5", torch.__version__
    stop_at(10, Killed)
    with monkeypatch.context() as earlier:
        earlier.setattr(torch, "__version__", OTHER_TORCH)
        parts = killed(tiny_data, out, tiny_build)
    assert next(iter(parts.values())) == {"rows_per_forward": 4, "device": "cpu", "torch": OTHER_TORCH}
    caplog.clear()
    build_cache(tiny_data, out, dataclasses.replace(tiny_build, batch_size=7))
    assert recorded(out) == {"rows_per_forward": 4, "device": "cpu", "torch": now}
    (warning,) = [message for message in caplog.messages if OTHER_TORCH in message]
    assert f'torch: "{OTHER_TORCH}" against "{now}"' in warning
    assert "device" not in warning, "that one is the same"
    assert "keeps" not in warning


def test_the_plan_of_a_build_holds_the_one_setting_that_is_kept(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, stop_at: StopAt
) -> None:
    stop_at(10, Killed)
    killed(tiny_data, tmp_path / "t.h5", tiny_build)
    plan = json.loads((tmp_path / "t.h5.parts" / "plan.json").read_bytes())
    assert plan["compute_setting"] == {"rows_per_forward": 4}


def test_segments_carry_the_batch_size_that_was_kept_not_the_one_asked_for(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, stop_at: StopAt
) -> None:
    out = tmp_path / "t.h5"
    for batch_size in (4, 7):
        stop_at(10, Killed)
        parts = killed(tiny_data, out, dataclasses.replace(tiny_build, batch_size=batch_size))
        assert [setting["rows_per_forward"] for setting in parts.values()] == [4] * len(parts)
        assert parts


def test_a_last_run_that_computes_nothing_records_what_the_parts_do(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t.h5"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", OTHER_TORCH)
        patch.setattr(module.SegmentedWriter.func, "finish", raise_killed)
        killed(tiny_data, out, tiny_build)
    result = build_cache(tiny_data, out, dataclasses.replace(tiny_build, batch_size=7))
    assert result.n_computed == 0
    assert recorded(out) == {"rows_per_forward": 4, "device": "cpu", "torch": OTHER_TORCH}


def test_an_extension_that_was_killed_before_its_end_is_recorded_by_the_run_that_only_ends_it(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = build_cache(tiny_data, tmp_path / "t.h5", dataclasses.replace(tiny_build, views=2)).path
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", OTHER_TORCH)
        patch.setattr(module.SegmentedWriter.func, "finish", raise_killed)
        killed(tiny_data, out, tiny_build)
    (out.with_name("t.h5.parts") / "._0.h5").write_text("what a Mac leaves")
    assert build_cache(tiny_data, out, tiny_build).n_computed == 0
    assert recorded(out)["torch"] == OTHER_TORCH


def raise_killed(*args: object) -> None:
    raise Killed


def test_an_undisturbed_build_warns_of_nothing(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_cache(tiny_data, tmp_path / "t.h5", tiny_build)
    build_cache(tiny_data, tmp_path / "t.h5", dataclasses.replace(tiny_build, views=4))
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


def test_an_image_that_was_left_out_and_is_in_the_cache_by_now_is_not_listed_any_more(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = shutil.copytree(tiny_data, tmp_path / "images"), tmp_path / "t.h5"
    skip = ScanOptions(skip_bad_images=True)
    lasting, passing = sorted(data.glob("train/*/*.png"))[:2]
    lasting.write_bytes(b"no image")
    decode = reading.decode

    def fails_once(encoded: bytes, name: str) -> torch.Tensor:
        if name == str(passing):
            raise BadImage("cannot be decoded (out of memory)", name)
        return decode(encoded, name)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "decode", fails_once)
        assert build_cache(data, out, tiny_build, skip).n_skipped == 2
    assert build_cache(data, out, tiny_build, skip).n_computed == 3
    reader = CacheReader(out)
    assert list(reader.manifest.skipped) == [content_key(lasting.read_bytes()).hex()]


def test_the_last_image_that_was_left_out_leaves_an_empty_list(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, resealed: Callable[..., Path]
) -> None:
    present = CacheReader(tiny_cache).keys[7].tobytes().hex()
    out = resealed(tiny_cache, provenance={"skipped": [{"key": present, "reason": "cannot be read"}]})
    build_cache(tiny_data, out, tiny_build)
    assert CacheReader(out).manifest.provenance["skipped"] == []


def test_a_teacher_named_by_a_dot_is_recorded_by_the_name_of_its_folder(
    tiny_data: Path, tiny_build: BuildConfig, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_teacher)
    out = build_cache(tiny_data, tmp_path / "t.h5", dataclasses.replace(tiny_build, teacher=".", views=1)).path
    assert CacheReader(out).manifest.provenance["teacher"] == tiny_teacher.name


def test_rows_that_overflowed_are_counted_over_all_runs_of_a_build(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, stop_at: StopAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, forward = tmp_path / "t.h5", Teacher._forward

    def overflowing(teacher: Teacher, pixels: torch.Tensor, precision: str) -> torch.Tensor:
        teacher.n_recomputed += 1
        return forward(teacher, pixels, precision)

    with monkeypatch.context() as earlier:
        earlier.setattr(Teacher, "_forward", overflowing)
        stop_at(10, Killed)
        parts = killed(tiny_data, out, tiny_build)
    counted = max(CacheReader(part).manifest.provenance["recomputed_in_fp32"] for part in parts)
    result = build_cache(tiny_data, out, tiny_build)
    assert (result.n_recomputed, CacheReader(out).manifest.provenance["recomputed_in_fp32"]) == (0, counted)
    monkeypatch.setattr(Teacher, "_forward", overflowing)
    result = build_cache(tiny_data, out, dataclasses.replace(tiny_build, views=4))
    assert CacheReader(out).manifest.provenance["recomputed_in_fp32"] == counted + result.n_recomputed > counted
