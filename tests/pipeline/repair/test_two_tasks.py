"""A cache of two tasks repaired: each task has heads, temperature and scores of its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from cache import CacheReader
from pipeline.info import describe_cache_as_text
from pipeline.recompute import recompute_rows
from pipeline.repair.probe import ProbeConfig, probe_cache
from pipeline.repair.rehead import ReheadConfig, rehead_cache
from pipeline.teachers.prompts import default_prompts

from ..conftest import TwoTasks

TASKS = {"dx": 5, "tone": 2}


def logits_of(path: Path) -> dict[str, np.ndarray]:
    with CacheReader(path) as reader:
        return {task: reader.logits(slice(0, reader.n_rows), task) for task in reader.tasks}


def test_a_probe_fits_a_head_to_each_task(two_tasks: TwoTasks, tiny_data: Path, tmp_path: Path) -> None:
    config = ProbeConfig(cross_fit="image", folds=2, calibrate=True)
    result = probe_cache(two_tasks.cache, tiny_data, tmp_path / "probe.h5", config, two_tasks.scan)
    assert {task: logits.shape[1] for task, logits in logits_of(result.path).items()} == TASKS
    assert len(result.c) == 6, "a head of all images and one of each fold, for each task"
    assert [one.images.partition(":")[0] for one in result.scores] == ["dx", "dx", "tone", "tone"]
    assert "linear probe" in describe_cache_as_text(result.path)


def test_a_task_alone_is_probed_as_it_is_beside_another(two_tasks: TwoTasks, tiny_data: Path, tmp_path: Path) -> None:
    both = probe_cache(two_tasks.cache, tiny_data, tmp_path / "both.h5", ProbeConfig(), two_tasks.scan).path
    scan = dataclasses.replace(two_tasks.scan, label_columns=("tone",))
    alone = probe_cache(two_tasks.cache, tiny_data, tmp_path / "alone.h5", ProbeConfig(), scan).path
    np.testing.assert_array_equal(logits_of(both)["tone"], logits_of(alone)["class"])


def test_new_prompts_are_given_for_each_task(
    two_tasks: TwoTasks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    tasks = CacheReader(two_tasks.cache).tasks
    texts = {task: {name: text for name, (text,) in default_prompts(names).items()} for task, names in tasks.items()}
    texts["tone"] = {"dark": "a dark spot", "pale": "a pale spot"}
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(json.dumps(texts))
    config = ReheadConfig(prompts=prompts, teacher=str(tiny_teacher), calibrate=True)
    result = rehead_cache(two_tasks.cache, tmp_path / "new.h5", config, tiny_data, two_tasks.scan)
    assert result.temperatures is not None
    before, now = logits_of(two_tasks.cache), logits_of(result.path)
    np.testing.assert_allclose(now["dx"] * result.temperatures[0], before["dx"], atol=0.05)  # embeddings are float16
    assert not np.allclose(now["tone"] * result.temperatures[1], before["tone"], atol=0.1)


def test_the_rows_of_two_tasks_can_be_computed_again(two_tasks: TwoTasks, tiny_data: Path, tiny_teacher: Path) -> None:
    found = recompute_rows(
        two_tasks.cache, tiny_data, str(tiny_teacher), n_rows=6, device="cpu", workers=0, scan=two_tasks.scan
    )
    found.check()
    assert found.worst_logit < 1e-4
