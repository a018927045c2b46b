"""Pixels are the same wherever they come from, and are made no oftener than they have to be."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data.errors import BadImage
from data.loaders import StudentLoader
from data.pixels import decoded, source
from data.pixels.decoded import DecodedImages
from data.pixels.rendered import RenderedViews, rendering_facts
from data.pixels.source import PixelSource
from data.reading import read_sample
from data.samples import Sample
from data.view_batches import ViewItem
from data.views import render

SIZE_PX, N_ROWS, N_VIEWS = 16, 30, 3


def plain(items: list[ViewItem], size_px: int = SIZE_PX, geometry: str = "warp") -> Tensor:
    return torch.stack([render(read_sample(item.sample), item.params, size_px, geometry) for item in items])


def with_views(folder: Path, table: str = "t", size_px: int = SIZE_PX, geometry: str = "warp") -> PixelSource:
    made = PixelSource(size_px, geometry, rendered=RenderedViews(folder, table, N_ROWS, size_px, geometry))
    made.begin()
    return made


def with_images(folder: Path, samples: list[Sample]) -> PixelSource:
    made = PixelSource(SIZE_PX, "warp", decoded=DecodedImages(folder, samples))
    made.begin()
    return made


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often something was decoded and rendered since."""
    counts = Counter[str]()

    def counting(name: str, module: object, call: Callable[..., Tensor]) -> None:
        def counted_call(*arguments: object) -> Tensor:
            counts[name] += 1
            return call(*arguments)

        monkeypatch.setattr(module, call.__name__, counted_call)

    counting("decoded", source, read_sample)
    counting("decoded", decoded, read_sample)
    counting("rendered", source, render)
    return counts


@pytest.mark.parametrize("geometry", ["warp", "pad"])
def test_views_come_out_the_same_from_files_and_without(
    geometry: str, items: list[ViewItem], samples: list[Sample], tmp_path: Path
) -> None:
    expected = plain(items, geometry=geometry)
    images = DecodedImages(tmp_path / "images", samples)
    sources = [
        PixelSource(SIZE_PX, geometry), with_views(tmp_path / "views", geometry=geometry),
        PixelSource(SIZE_PX, geometry, decoded=images),
    ]  # fmt: skip
    for one in sources:
        one.begin()
        for _ in range(2):
            pixels = one.batch(items)
            assert torch.equal(pixels, expected)
            assert pixels.dtype == torch.uint8
            assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_a_view_that_stands_is_neither_decoded_nor_rendered_again(
    items: list[ViewItem], tmp_path: Path, counted: Counter[str]
) -> None:
    with_views(tmp_path).batch(items[:5])
    assert counted == {"decoded": 5, "rendered": 5}
    again = with_views(tmp_path)  # as in another process
    assert torch.equal(again.batch(items[:5]), plain(items[:5]))
    assert counted == {"decoded": 5, "rendered": 5}
    again.batch(items[3:7])
    assert counted == {"decoded": 7, "rendered": 7}


def test_an_image_that_is_decoded_for_one_view_is_rendered_to_all_that_will_be_shown(
    items: list[ViewItem], tmp_path: Path, counted: Counter[str]
) -> None:
    params = {item.row: item.params for item in items}

    def siblings(row: int) -> tuple[np.ndarray, np.ndarray]:
        first = row - (row - 10) % N_VIEWS
        rows = np.arange(first, first + 2)  # the third view is never shown
        return rows, np.stack([params[int(row)] for row in rows])

    views = with_views(tmp_path).rendered
    one = PixelSource(SIZE_PX, "warp", rendered=views, siblings=siblings)
    by_row = sorted(items, key=lambda item: item.row)
    one.batch(by_row[::N_VIEWS])
    assert counted == {"decoded": 4, "rendered": 8}
    assert torch.equal(one.batch(by_row), plain(by_row))
    assert counted == {"decoded": 8, "rendered": 12}


def test_an_image_that_stands_is_not_decoded_again(
    items: list[ViewItem], samples: list[Sample], tmp_path: Path, counted: Counter[str]
) -> None:
    with_images(tmp_path, samples).batch(items)
    assert counted["decoded"] == 4
    for sample in samples:
        Path(sample.path).touch()
    again = with_images(tmp_path, samples)
    assert again.decoded is not None
    assert again.decoded.standing_bytes() == again.decoded.n_bytes
    again.batch(items)
    assert counted["decoded"] == 4
    assert again.decoded.image(samples[1]).shape == (3, 30, 21), "EXIF turned it"
    stranger = Sample(samples[0].key[::-1], samples[0].path, "", "train", {})
    with pytest.raises(BadImage, match="changed while it was in use"):
        again.decoded.image(stranger)


def test_a_file_without_a_readable_header_is_never_kept(samples: list[Sample], tmp_path: Path) -> None:
    Path(samples[0].path).write_bytes(b"no image")
    one = with_images(tmp_path, samples)
    assert one.decoded is not None
    with pytest.raises(BadImage):
        one.decoded.image(samples[0])
    assert one.decoded.standing_bytes() == 0


def test_views_of_another_table_size_or_geometry_stand_beside_each_other(items: list[ViewItem], tmp_path: Path) -> None:
    kinds = [("t", SIZE_PX, "warp"), ("u", SIZE_PX, "warp"), ("t", SIZE_PX + 1, "warp"), ("t", SIZE_PX, "pad")]
    for table, size_px, geometry in kinds:
        for _ in range(2):
            found = with_views(tmp_path, table, size_px, geometry).batch(items)
            assert torch.equal(found, plain(items, size_px, geometry))
    assert len(list(tmp_path.glob("*.pixels"))) == 4


def test_views_of_other_libraries_or_another_processor_are_not_taken(
    items: list[ViewItem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_views(tmp_path).batch(items)
    facts = rendering_facts()
    assert {"torch", "torchvision", "pillow", "jpeg", "decoder", "draw", "interpolation", "vectors"} <= facts.keys()
    for name in facts:
        monkeypatch.setattr("data.pixels.rendered.rendering_facts", lambda name=name: {**facts, name: "other"})
        other = with_views(tmp_path).rendered
        assert other is not None
        assert not other.file.stands().any(), name


def test_a_view_that_no_table_has_is_never_kept(items: list[ViewItem], tmp_path: Path) -> None:
    bare = [ViewItem(item.sample, item.params, item.target) for item in items]
    one = with_views(tmp_path)
    assert torch.equal(one.batch(bare), plain(bare))
    assert not one.stand([bare])
    assert list(tmp_path.glob("*.pixels")) == []


def test_a_loader_reads_and_fills_the_files(items: list[ViewItem], tmp_path: Path) -> None:
    batches = [items[:5], items[5:8], items[8:]]
    one = with_views(tmp_path / "views")
    load = StudentLoader(SIZE_PX, "warp", 0, source=one)
    for number in range(2):
        assert one.stand(batches) == (number > 0)
        for (pixels, targets), batch in zip(load(batches), batches, strict=True):
            assert torch.equal(pixels, plain(batch))
            assert targets.tolist() == [item.target for item in batch]
    again = with_views(tmp_path / "views").rendered
    assert again is not None
    assert np.flatnonzero(again.file.stands()).tolist() == sorted(item.row for item in items)


def test_siblings_stay_behind_where_a_source_goes_to_another_process(tmp_path: Path) -> None:
    views = with_views(tmp_path).rendered
    one = PixelSource(SIZE_PX, "warp", rendered=views, siblings=lambda row: (np.array([row]), np.empty((1, 10))))
    assert pickle.loads(pickle.dumps(one)).siblings is None
