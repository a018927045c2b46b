"""A teacher is in memory where a row is to be computed, and otherwise only until it is known."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from cache import CacheReader
from pipeline import on_demand
from pipeline.build import BuildConfig, build_cache
from pipeline.errors import TeacherError
from pipeline.teachers import known


@pytest.fixture
def loadings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The teachers that were loaded from now on; files that a test just wrote count as old ones."""
    monkeypatch.setattr(known, "_RACY_S", -60.0)
    found: list[str] = []
    load = on_demand.load_teacher

    def counting(images: Any, config: BuildConfig) -> Any:
        found.append(config.teacher)
        return load(images, config)

    monkeypatch.setattr(on_demand, "load_teacher", counting)
    return found


def test_a_finished_build_is_repeated_without_its_teacher(
    few_images: Path, tiny_build: BuildConfig, tmp_path: Path, loadings: list[str]
) -> None:
    out, memory = tmp_path / "t.h5", tmp_path / "teachers"
    first = build_cache(few_images, out, tiny_build, known_teachers=memory)
    assert (first.n_computed > 0, len(loadings)) == (True, 1)
    before = out.read_bytes()
    again = build_cache(few_images, out, tiny_build, known_teachers=memory)
    assert (again.n_computed, again.n_rows, len(loadings)) == (0, first.n_rows, 1)
    assert out.read_bytes() == before


def test_more_views_load_a_known_teacher_once(
    few_images: Path, tiny_build: BuildConfig, tmp_path: Path, loadings: list[str]
) -> None:
    out, memory = tmp_path / "t.h5", tmp_path / "teachers"
    build_cache(few_images, out, tiny_build, known_teachers=memory)
    more = dataclasses.replace(tiny_build, views=tiny_build.views + 1)
    assert build_cache(few_images, out, more, known_teachers=memory).n_computed > 0
    whole = build_cache(few_images, tmp_path / "whole.h5", more)
    assert CacheReader(out).content_id == CacheReader(whole.path).content_id
    assert len(loadings) == 3


def test_without_a_memory_every_build_loads_its_teacher(
    few_images: Path, tiny_build: BuildConfig, tmp_path: Path, loadings: list[str]
) -> None:
    for _ in range(2):
        build_cache(few_images, tmp_path / "t.h5", tiny_build)
    assert len(loadings) == 2


def test_a_teacher_that_is_not_what_was_remembered_is_refused_once(
    few_images: Path, tiny_build: BuildConfig, tmp_path: Path, loadings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, memory = tmp_path / "t.h5", tmp_path / "teachers"
    teacher = shutil.copytree(tiny_build.teacher, tmp_path / "teacher")
    config = dataclasses.replace(tiny_build, teacher=str(teacher))
    recall = known.KnownTeachers.recall

    def other(self: Any, *words: Any) -> Any:
        facts = recall(self, *words)
        return facts and dataclasses.replace(facts, identity={**facts.identity, "weights_sha256": "0" * 64})

    build_cache(few_images, tmp_path / "first.h5", config, known_teachers=memory)
    with monkeypatch.context() as patch:
        patch.setattr(known.KnownTeachers, "recall", other)
        with pytest.raises(TeacherError, match=r"another teacher than an earlier build remembered.* run the same"):
            build_cache(few_images, out, config, known_teachers=memory)
    assert not out.exists()
    assert build_cache(few_images, out, config, known_teachers=memory).n_computed > 0
