"""A cache from somebody else describes its teacher as it likes: our commands say what they can, without a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache import CacheReader
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.teachers.prompts import stored_prompts
from pipeline.train import TrainConfig, train

Cli = Callable[..., tuple[int, str, str]]
TRAIN = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=1, batch_size=8)
TEACHERS: list[Any] = [
    "resnet50", None, 5, [], {}, {"prompts": None}, {"prompts": "a"}, {"prompts": ["a"]}, {"prompts": {"mel": 7}},
    {"prompts": {"mel": [7]}}, {"prompts": {"mel": "one text"}},
]  # fmt: skip


@pytest.mark.parametrize("teacher", TEACHERS, ids=str)
def test_info_of_any_teacher_says_what_there_is(
    teacher: Any, cli: Cli, tiny_cache: Path, resealed: Callable[..., Path]
) -> None:
    cache = resealed(tiny_cache, identity={"teacher": teacher, "precision": ["x"]})
    code, out, err = cli("cache", "info", cache)
    assert (code, err) == (0, "")
    assert "120 views of 60 images" in out
    assert "prompt  " not in out
    assert cli("cache", "info", cache, "--json")[0] == 0


def test_info_shows_the_prompts_of_our_own_caches(cli: Cli, tiny_cache: Path) -> None:
    prompts = stored_prompts(CacheReader(tiny_cache).manifest.identity)
    assert len(prompts) == 5
    shown = cli("cache", "info", tiny_cache)[1].splitlines()
    for name, texts in prompts.items():
        assert f"prompt      {name}: {' | '.join(texts)}" in shown


@pytest.mark.parametrize("teacher", ["resnet50", None])
def test_a_student_learns_from_any_teacher_and_is_measured_against_it(
    teacher: Any, tiny_data: Path, tiny_cache: Path, tmp_path: Path, resealed: Callable[..., Path]
) -> None:
    """Of a teacher, training needs the answers alone."""
    cache = resealed(tiny_cache, identity={"teacher": teacher}, provenance={"teacher": {"name": ["mine"]}})
    run = train(tiny_data, cache, tmp_path / "run", TRAIN, workers=0).path
    assert evaluate(run, tiny_data, EvaluateConfig(split="test"), workers=0).splits["test"].agreement is not None
