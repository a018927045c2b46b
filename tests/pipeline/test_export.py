"""The exported file: small enough, equal to the checkpoint, complete, or not there at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from cache import CacheReader
from cache.errors import CacheDiskFull
from pipeline import export as module
from pipeline.errors import OutputExists, OverBudget, RunError
from pipeline.export import export
from pipeline.torchscript import StudentCard

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
    with pytest.raises(OverBudget, match=r"the budget is 0\.5 MB: not written"):
        export(tiny_run, tmp_path / "m.pt", budget_mb=0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_from_its_checkpoint_never_gets_its_name(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_bytes = module.torchscript.to_bytes

    def damaged(model: torch.nn.Module, card: StudentCard) -> bytes:
        with torch.no_grad():
            model.fc.bias += 0.01
            content = to_bytes(model, card)
            model.fc.bias -= 0.01
        return content

    monkeypatch.setattr(module.torchscript, "to_bytes", damaged)
    with pytest.raises(RunError, match="differs from its checkpoint"):
        export(tiny_run, tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_left_alone(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_text("mine")
    with pytest.raises(OutputExists, match="delete it to export again"):
        export(tiny_run, tmp_path / "m.pt")
    assert (tmp_path / "m.pt").read_text() == "mine"


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
