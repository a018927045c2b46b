"""A cache that is built into the folder of its own images disturbs neither its own resumption nor what comes after."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.scan import scan_data
from pipeline import build as module
from pipeline.build import BuildConfig, build_cache
from pipeline.train import TrainConfig, train

TRAIN = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=1, batch_size=8)


def unsplit(source: Path, folder: Path) -> Path:
    """The images of DATA/<split>/<class>/* as DATA/<class>/*."""
    for path in source.glob("*/*/*.png"):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.parent.name / f"{path.parent.parent.name}-{path.name}")
    return folder


@pytest.mark.parametrize("layout", [shutil.copytree, unsplit])
def test_a_killed_build_into_the_data_folder_goes_on_and_can_be_trained_on(
    layout: Callable[[Path, Path], Path], tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path,
    stop_at: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "SegmentedWriter", functools.partial(module.SegmentedWriter, segment_rows=16))
    data = layout(tiny_data, tmp_path / "images")
    before = scan_data(data)
    stop_at(15, SystemExit)
    with pytest.raises(SystemExit):
        build_cache(data, data / "t.h5", tiny_build)
    assert list((data / "t.h5.parts").glob("*.h5"))
    assert scan_data(data) == before
    resumed = build_cache(data, data / "t.h5", tiny_build)
    assert 0 < resumed.n_computed < resumed.n_rows
    assert scan_data(data) == before
    assert train(data, data / "t.h5", tmp_path / "run", TRAIN, workers=0).best_epoch == 1
