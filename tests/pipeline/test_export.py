"""The exported file: small enough, equal to the checkpoint, complete, or not there at all."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from cache import CacheReader
from cache.errors import CacheDiskFull
from pipeline import export as module
from pipeline.card import StudentCard
from pipeline.errors import CourseError, OutputExists, OverBudget, RunError, SettingError
from pipeline.export import ExportConfig, export
from pipeline.inference import load_student
from pipeline.predict import predict

Cli = Callable[..., tuple[int, str, str]]

LOAD_WITH_TORCH_ALONE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
extra = {"softlabel.json": ""}
model = torch.jit.load(sys.argv[1], _extra_files=extra)
card = json.loads(extra["softlabel.json"])
size = card["size_px"]
logits = model(torch.zeros(2, 3, size, size))
assert not {"pipeline", "data", "cache", "torchvision", "transformers"} & set(sys.modules), sorted(sys.modules)
print(json.dumps({"card": card, "shape": list(logits.shape), "training": model.training}))
"""


def test_the_file_loads_with_nothing_but_torch_and_says_what_it_is(
    tiny_run: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    result = export(tiny_run, tmp_path / "m.pt")
    assert result.n_bytes == (tmp_path / "m.pt").stat().st_size < 25e6
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD_WITH_TORCH_ALONE, str(tmp_path / "m.pt")],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    found = json.loads(done.stdout)
    reader = CacheReader(tiny_cache)
    assert found["shape"] == [2, 5]
    assert found["training"] is False
    assert tuple(found["card"]["classes"]) == reader.tasks["class"]
    assert found["card"]["cache_id"] == reader.cache_id
    assert (found["card"]["size_px"], found["card"]["geometry"]) == (32, "warp")
    assert found["card"]["mean"] == [0.485, 0.456, 0.406]
    assert "Health AI Developer Foundations Terms of Use" in found["card"]["notice"]


def test_a_file_over_the_budget_never_gets_its_name(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(OverBudget, match=r"the budget is 0\.5 MB: not written; what fits: ") as caught:
        export(tiny_run, tmp_path / "m.pt", ExportConfig(budget_mb=0.5))
    assert "--weights int8 as torchscript (0.5 MB); or train a smaller student" in str(caught.value)
    with pytest.raises(OverBudget, match=r"not written; train a smaller student$"):
        export(tiny_run, tmp_path / "m.pt", ExportConfig(budget_mb=0.1))
    assert list(tmp_path.iterdir()) == []


def test_what_fits_names_half_precision_and_a_smaller_student(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(OverBudget) as caught:
        export(tiny_run, tmp_path / "m.pt", ExportConfig(budget_mb=1.4))
    assert "--weights fp16 as torchscript (0.8 MB), --weights int8 as torchscript (0.5 MB)" in str(caught.value)


def test_the_budget_of_the_course_is_the_courses(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="was made for images of 32 px, expected 224"):
        export(tiny_run, tmp_path / "m.pt", ExportConfig(for_course=True, budget_mb=100))


@pytest.mark.parametrize(("name", "settings"), [("m.pt", {"weights": "int8"}), ("m.onnx", {"weights": "fp16"})])
def test_smaller_weights_are_compared_on_real_images_and_every_command_takes_the_file(
    name: str, settings: dict[str, str], tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    found = export(tiny_run, tmp_path / name, ExportConfig(**settings, least_agreement=0.9), data=tiny_data)
    assert found.fidelity is not None
    assert found.fidelity.n_images == 60
    assert "of 60 images (30 of which it learned from) get another class than by the checkpoint" in found.to_text()
    of_file = load_student(tmp_path / name, "cpu")
    assert of_file.card == load_student(tiny_run, "cpu").card
    image = next(tiny_data.glob("test/*/*"))
    (mine,), (theirs,) = predict(tiny_run, [image], device="cpu"), predict(tmp_path / name, [image], device="cpu")
    assert mine.probabilities == pytest.approx(theirs.probabilities, abs=0.02)


def test_a_file_of_torch_export_is_compared_on_noise_and_says_so(tiny_run: Path, tmp_path: Path) -> None:
    found = export(tiny_run, tmp_path / "m.pt2")
    assert found.format == "torch-export"
    assert found.worst_difference < 1e-3
    assert "agrees with the checkpoint on noise images" in found.to_text()
    assert load_student(tmp_path / "m.pt2", "cpu").card.size_px == 32


def test_a_file_that_answers_otherwise_on_real_images_never_gets_its_name(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_bytes = module.torchscript.to_bytes

    def one_class_only(model: torch.nn.Module, card: StudentCard, weights: str) -> bytes:
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.fc.bias[0] += 100
        return to_bytes(changed, card, weights)

    monkeypatch.setattr(module.torchscript, "to_bytes", one_class_only)
    with pytest.raises(RunError, match=r"not written, as 99\.0% are asked for .*macro F1.*; --weights fp16 is closer"):
        export(tiny_run, tmp_path / "m.pt", ExportConfig(weights="int8"), data=tiny_data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("m.pt", {"format": "onnx"}, "an ONNX file is known by its name: call it .*m.onnx"),
        ("m.onnx", {"format": "torchscript"}, "m.onnx has the ending of onnx, and the format is torchscript"),
        ("m.pt", {"int8": True, "format": "torchscript"}, "--int8 is arithmetic of ONNX Runtime"),
        ("m.pt", {"int8": True, "for_course": True}, "takes torchscript, and --int8 is ONNX: take --weights int8"),
        ("m.onnx", {"int8": True, "weights": "fp16"}, "leave --weights out"),
        ("m.pt2", {"weights": "fp16"}, "--weights fp16 is for torchscript and onnx, and the format is torch-export"),
        ("m.onnx", {"for_course": True}, "the course server takes torchscript, and the format is onnx"),
        ("m.pt", {"budget_mb": 0}, "--budget-mb must be above 0, got 0"),
        ("m.pt", {"least_agreement": 99}, r"--least-agreement is a share in \(0, 1\], got 99"),
        ("m.pt", {"weights": "int4"}, "weights must be fp32, fp16, int8, got 'int4'"),
        ("m.pt", {"weights": "fp16"}, "only real images tell how much: name them, `softlabel export .* DATA --weights"),
    ],
)
def test_settings_that_do_not_go_together_are_one_sentence(
    name: str, settings: dict[str, Any], told: str, tiny_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=told):
        export(tiny_run, tmp_path / name, ExportConfig(**settings))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_from_its_checkpoint_never_gets_its_name(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_bytes = module.torchscript.to_bytes

    def damaged(model: torch.nn.Module, card: StudentCard, weights: str) -> bytes:
        with torch.no_grad():
            model.fc.bias += 0.01
            content = to_bytes(model, card, weights)
            model.fc.bias -= 0.01
        return content

    monkeypatch.setattr(module.torchscript, "to_bytes", damaged)
    with pytest.raises(RunError, match="differs from its checkpoint"):
        export(tiny_run, tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_left_alone(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_text("mine")
    with pytest.raises(OutputExists, match="delete it, or export with --replace"):
        export(tiny_run, tmp_path / "m.pt")
    with pytest.raises(OutputExists, match="is no exported file, and --replace takes the place of nothing else"):
        export(tiny_run, tmp_path / "m.pt", ExportConfig(replace=True))
    assert (tmp_path / "m.pt").read_text() == "mine"


def test_neither_a_run_nor_a_device_is_replaced(tiny_run: Path, tmp_path: Path) -> None:
    before = (tiny_run / "best.pt").read_bytes()
    os.mkfifo(tmp_path / "pipe.pt")
    for out in (tiny_run / "best.pt", tiny_run / "last.pt", tmp_path / "pipe.pt"):
        with pytest.raises(OutputExists, match="is no exported file"):
            export(tiny_run, out, ExportConfig(replace=True))
    assert (tiny_run / "best.pt").read_bytes() == before


def test_an_export_takes_the_place_of_an_export(tiny_run: Path, tmp_path: Path) -> None:
    student = load_student(tiny_run, "cpu")
    other = dataclasses.replace(student.card, teacher="another one")
    (tmp_path / "m.pt").write_bytes(module.torchscript.to_bytes(student.module, other))
    export(tiny_run, tmp_path / "m.pt", ExportConfig(replace=True))
    assert load_student(tmp_path / "m.pt", "cpu").card == student.card


@pytest.mark.parametrize("words", [("--max-per-class", "3"), ("--least-agreement", "0.9")])
def test_what_is_about_data_needs_data(words: tuple[str, ...], tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("export", tiny_run, "-o", tmp_path / "m.pt", *words)
    assert code == 1
    assert f"{words[0]} is about the images of DATA: `softlabel export RUN DATA -o FILE`" in err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        export(tmp_path / "run", tmp_path / "m.pt")


def test_a_full_disk_is_told_in_bytes_and_leaves_nothing_and_a_repeated_export_works(
    tiny_run: Path, tmp_path: Path, file_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    out = tmp_path / "m.pt"
    with file_limit(500_000), pytest.raises(CacheDiskFull) as caught:
        export(tiny_run, out)
    assert list(tmp_path.iterdir()) == []
    n_bytes = export(tiny_run, out).n_bytes
    assert f"no room for {n_bytes:,} bytes in {tmp_path} (" in str(caught.value)
    assert "free some space, then run the same command again" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_a_disk_that_refuses_the_last_byte_leaves_nothing_either(
    tiny_run: Path, tmp_path: Path, file_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    n_bytes = export(tiny_run, tmp_path / "m.pt").n_bytes
    (tmp_path / "m.pt").unlink()
    with file_limit(n_bytes - 1), pytest.raises(CacheDiskFull, match=f"{n_bytes:,} bytes"):
        export(tiny_run, tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_several_seeds_names_one_of_its_runs(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "runs" / "seed-3")
    with pytest.raises(RunError, match=r"runs holds 1 runs: name one of them, such as .*/runs/seed-3"):
        export(tmp_path / "runs", tmp_path / "student.pt")


def test_a_file_is_no_run_folder_and_nobody_is_told_to_write_over_it(tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is a file, no run folder: `softlabel train` makes one, under another name"):
        export(tiny_cache, tmp_path / "student.pt")
