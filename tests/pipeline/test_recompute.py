"""A teacher asked again gives the answers of its cache, or the check says which one it does not give."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from cache import CacheReader, Table
from cache.errors import CacheMismatch
from data.samples import content_key
from data.scan import scan_data
from pipeline.errors import PipelineError
from pipeline.recompute import NotReproduced, recompute_rows

Resealed = Callable[..., Path]
# More than the tiny cache has: every row is computed again.
ALL_ROWS = 1000
TOLERANCE_FP32 = 1e-4


def again(cache: Path, data: Path, teacher: Path, n_rows: int = ALL_ROWS, **options: Any) -> Any:
    return recompute_rows(cache, data, str(teacher), n_rows=n_rows, device="cpu", workers=0, **options)


def row_of(cache: Path, data: Path, split: str, view: int) -> tuple[int, str]:
    """The row of one view of the second sample of a split, and that sample's path."""
    sample, reader = scan_data(data).of_split(split)[1], CacheReader(cache)
    return int(reader.row(reader.find([sample.key]), [view])[0]), sample.path


def nudge(name: str, row: int, by: float) -> Callable[[Table], None]:
    def change(table: Table) -> None:
        array = table.witness if name == "witness" else table.logits["class"]
        array[row, 2] += np.array(by).astype(array.dtype)

    return change


def test_the_same_teacher_gives_the_same_answers(tiny_cache: Path, tiny_data: Path, tiny_teacher: Path) -> None:
    found = again(tiny_cache, tiny_data, tiny_teacher)
    assert (found.n_rows, found.precision, found.device) == (120, "fp32", "cpu")
    assert found.worst_logit < 1e-5
    assert found.tolerance == TOLERANCE_FP32
    found.check()


def test_as_many_rows_are_computed_as_were_asked_for(tiny_cache: Path, tiny_data: Path, tiny_teacher: Path) -> None:
    found = again(tiny_cache, tiny_data, tiny_teacher, n_rows=7)
    assert found.n_rows == 7
    assert found.worst_logit < 1e-5


def test_only_rows_of_images_that_are_there_are_computed(
    tiny_cache: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    shutil.rmtree(data / "train")
    for number, path in enumerate(sorted(data.glob("*/*/*.png"))):
        path.rename(path.with_name(f"renamed-{number:03}.png"))
    new = next(data.glob("val/*/*.png"))
    new.with_name("new.png").write_bytes(new.read_bytes() + b"\0")
    assert again(tiny_cache, data, tiny_teacher).n_rows == 30


@pytest.mark.parametrize(("split", "view"), [("train", 2), ("test", 0)])
def test_an_answer_beyond_the_tolerance_names_its_image(
    split: str, view: int, tiny_cache: Path, tiny_data: Path, tiny_teacher: Path, resealed: Resealed
) -> None:
    row, path = row_of(tiny_cache, tiny_data, split, view)
    found = again(resealed(tiny_cache, nudge("logits", row, 0.01)), tiny_data, tiny_teacher)
    assert found.worst_logit == pytest.approx(0.01, rel=0.05)
    assert found.worst_image == path
    with pytest.raises(NotReproduced, match=r"differs by 0\.01 logits at .*expected at most 0\.0001 in fp32") as caught:
        found.check()
    assert path in str(caught.value)


def test_an_answer_within_the_tolerance_passes(
    tiny_cache: Path, tiny_data: Path, tiny_teacher: Path, resealed: Resealed
) -> None:
    row, _ = row_of(tiny_cache, tiny_data, "val", 0)
    found = again(resealed(tiny_cache, nudge("logits", row, -TOLERANCE_FP32 / 2)), tiny_data, tiny_teacher)
    assert TOLERANCE_FP32 / 4 < found.worst_logit < TOLERANCE_FP32
    found.check()


def test_a_view_that_is_not_the_one_the_teacher_saw_is_told_before_any_answer(
    tiny_cache: Path, tiny_data: Path, tiny_teacher: Path, resealed: Resealed
) -> None:
    row, path = row_of(tiny_cache, tiny_data, "train", 1)
    with pytest.raises(CacheMismatch, match="renders to another view than the teacher saw") as caught:
        again(resealed(tiny_cache, nudge("witness", row, 30)), tiny_data, tiny_teacher)
    assert path in str(caught.value)


def test_another_teacher_is_refused_with_every_field_that_differs(
    tiny_cache: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_teacher, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["logit_scale"] += 0.25
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    (processor,) = other.glob("*processor_config.json")
    processor.write_text(re.sub(r'("image_mean": \[\s*)0\.5', r"\g<1>0.4", processor.read_text()))
    with pytest.raises(CacheMismatch, match=r"is not the teacher of .*stored against found") as caught:
        again(tiny_cache, tiny_data, other)
    listed = {line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]}
    assert listed == {"teacher.weights_sha256", "teacher.logit_scale", "preprocessing.mean[0]"}


def test_a_cache_of_none_of_the_images_says_so(
    tiny_cache: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    for path in data.glob("*/*/*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CacheMismatch, match="knows none of the 60 images"):
        again(tiny_cache, data, tiny_teacher)


def test_data_of_which_the_build_left_out_every_image_says_so(
    tiny_cache: Path, tiny_teacher: Path, tmp_path: Path, resealed: Resealed
) -> None:
    keys = []
    for name in ("melanoma", "dermatofibroma"):
        (tmp_path / "bad" / "train" / name).mkdir(parents=True)
        (tmp_path / "bad" / "train" / name / "0.png").write_bytes(name.encode())
        keys.append(content_key(name.encode()).hex())
    cache = resealed(tiny_cache, provenance={"skipped": [{"key": key, "reason": "not an image"} for key in keys]})
    with pytest.raises(CacheMismatch, match=r"knows none of the 2 images of .*the build left all of them out"):
        again(cache, tmp_path / "bad", tiny_teacher)


@pytest.mark.parametrize("compute", [None, 5, {}, {"rows_per_forward": "16"}, {"rows_per_forward": 10**9}])
def test_a_build_of_unknown_batch_size_is_computed_all_the_same(
    compute: Any, tiny_cache: Path, tiny_data: Path, tiny_teacher: Path, resealed: Resealed
) -> None:
    cache = resealed(tiny_cache, provenance={"compute": compute})
    again(cache, tiny_data, tiny_teacher, n_rows=5).check()


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": {"kind": "probe"}},
        {"teacher": "google/medsiglip-448"},
        {"prompts": 5},
        {"prompts": []},
        {"prompts": {}},
        {"prompts": {"melanoma": 5}},
        {"precision": None},
        {"precision": "int8"},
    ],
)
def test_a_cache_of_a_teacher_that_cannot_be_asked_again_is_an_error_of_ours(
    change: dict[str, Any], tiny_cache: Path, tiny_data: Path, tiny_teacher: Path, resealed: Resealed
) -> None:
    """It may come from anybody, or from an importer of other people's logits."""
    stored = CacheReader(tiny_cache).manifest.identity["teacher"]
    if "prompts" in change:
        change = {"teacher": {**stored, **change}}
    with pytest.raises((CacheMismatch, PipelineError)):
        again(resealed(tiny_cache, identity=change), tiny_data, tiny_teacher, n_rows=5)
