"""The row that each sample shows in an epoch, and the proof that it is the view the teacher saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor

import pipeline.joining
from cache import CacheError, CacheReader
from cache.errors import CacheMismatch
from data.pixels.source import PixelSource
from data.reading import read_sample
from data.scan import scan_data
from data.views import ViewPolicy, draw, render
from pipeline.targets import TeacherTargets, teacher_parameters


def join(cache: Path, data: Path, split: str = "train") -> TeacherTargets:
    images = scan_data(data)
    groups = {split: images.of_split(split)}
    return pipeline.joining.join(CacheReader(cache), groups, [str(data)], images.classes)[split]


def test_each_row_belongs_to_the_sample_it_is_given_for(tiny_data: Path, tiny_cache: Path) -> None:
    targets = join(tiny_cache, tiny_data)
    rows = targets.epoch_rows(1, 7)
    for item, row in zip(targets.items(rows), rows, strict=True):
        view = int(targets.reader.view[row])
        np.testing.assert_array_equal(item.params, draw(ViewPolicy(), item.sample.key, view, 0))


def test_a_cycle_of_epochs_shows_each_view_once(tiny_data: Path, tiny_cache: Path) -> None:
    targets = join(tiny_cache, tiny_data)
    views = targets.reader.view[np.stack([targets.epoch_rows(epoch, 0) for epoch in range(3)])]
    assert (np.sort(views, axis=0) == np.array([0, 1, 2])[:, None]).all()
    assert 0 < (views[0] == 0).mean() < 1, "epoch 0 must not be all clean"


def test_the_witness_notices_other_views(tiny_data: Path, tiny_cache: Path) -> None:
    targets = join(tiny_cache, tiny_data)
    rendered = PixelSource(32, targets.geometry).batch
    targets.check_witness(rendered, 0)
    with pytest.raises(CacheError, match="renders to another view than the teacher saw"):
        targets.check_witness(lambda items: rendered(items).flip(-1), 0)


def test_the_mean_of_logits_is_over_all_views_of_an_image_whatever_view_it_shows(
    tiny_data: Path, tiny_cache: Path
) -> None:
    for split, views in (("train", 3), ("val", 1)):
        targets = join(tiny_cache, tiny_data, split)
        found = targets.mean_logits(targets.epoch_rows(1, 0)[::-1])
        each = np.stack([targets.reader[sample.key].logits["class"] for sample in targets.samples[::-1]])
        assert each.shape[1] == views
        np.testing.assert_allclose(found, each.mean(axis=1), rtol=1e-6)
        np.testing.assert_array_equal(found, targets.mean_logits(targets.epoch_rows(2, 5)[::-1]))


def test_the_mean_of_logits_is_the_target_of_the_geometric_mean_at_any_temperature(
    tiny_data: Path, tiny_cache: Path
) -> None:
    targets = join(tiny_cache, tiny_data)
    each = np.stack([targets.reader[sample.key].logits["class"] for sample in targets.samples]).astype(float)
    for temperature in (1, 4):
        geometric = np.exp(log_softmax(each / temperature, axis=2).mean(axis=1))
        expected = geometric / geometric.sum(axis=1, keepdims=True)
        found = softmax(targets.mean_logits(targets.epoch_rows(0, 0)).astype(float) / temperature, axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("nonsense", [0, -5, "many", True, None])
def test_a_cache_that_does_not_know_its_teachers_size_has_none(
    nonsense: Any, told: Callable[..., TeacherTargets]
) -> None:
    reader = told([0, 1], np.zeros((2, 2))).reader
    reader.manifest.provenance["teacher_parameters"] = nonsense
    assert teacher_parameters(reader) is None
    reader.manifest.provenance["teacher_parameters"] = 7
    assert teacher_parameters(reader) == 7


def test_a_few_views_whose_edges_scale_unevenly_are_no_other_rendering(tiny_data: Path, tiny_cache: Path) -> None:
    """As in CT and MR images: two of eight differ by five levels; three would be too many, so would one by ten."""
    targets = join(tiny_cache, tiny_data)
    rows, numbers = targets.clean_rows()[:8], np.arange(8)
    params = targets.reader.params(rows)
    views = [render(read_sample(targets.samples[n]), row, 96, "warp") for n, row in zip(numbers, params, strict=True)]

    def brighter(n_views: int, levels: int) -> list[Tensor]:
        return [(view.int() + levels * (n < n_views)).clamp(0, 255).to(torch.uint8) for n, view in enumerate(views)]

    targets.check_pixels(brighter(2, 5), numbers, rows)
    for n_views, levels, said in ((3, 5, "3 of 8 views"), (1, 12, "1 of 8 views")):
        with pytest.raises(CacheMismatch, match=rf"differ by \d+ levels, and those of {said} by more than expected"):
            targets.check_pixels(brighter(n_views, levels), numbers, rows)
