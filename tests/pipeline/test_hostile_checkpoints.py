"""Checkpoints and model files that somebody made: each command ends in one line, and nothing in them runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.card import StudentCard
from pipeline.errors import PipelineError, RunError
from pipeline.fit.folder import FitFolder
from pipeline.formats import torch_export
from pipeline.formats.fresh import FreshProcess
from pipeline.runs import RunFolder
from pipeline.students.weights import read_weights

Cli = Callable[..., tuple[int, str, str]]
MARK = "ran"


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return (os.system, (f"touch '{self.folder / MARK}'",))


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def with_program(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A file of torch.save with another pickle inside."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(source.read(name)) if name.endswith("data.pkl") else source.read(name))
    return changed.getvalue()


WEIGHT = saved({"format": 1, "model": {"w": torch.zeros(3)}})
HUGE = b"\x8a\x06" + (2**44).to_bytes(6, "little")
CONTENTS: dict[str, Callable[[Path], bytes]] = {
    "a command": lambda folder: saved({"format": 1, "model": Evil(folder)}),
    "a command, old format": lambda folder: saved(Evil(folder), _use_new_zipfile_serialization=False),
    "a bare pickle": lambda folder: pickle.dumps(Evil(folder)),
    "nested": lambda _: with_program(WEIGHT, lambda _: b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."),
    "in itself": lambda _: with_program(WEIGHT, lambda _: b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."),
    "a huge tensor": lambda _: with_program(WEIGHT, lambda raw: raw.replace(b"K\x03\x85", HUGE + b"\x85", 1)),
    "a huge storage": lambda _: with_program(WEIGHT, lambda raw: raw.replace(b"K\x03tq", HUGE + b"tq", 1)),
    "a list": lambda _: saved([1]),
    "no weights": lambda _: saved({"format": 1, "model": {"w": 3}}),
    "nothing beside weights": lambda _: saved({"format": 1, "model": {}}),
    "a tensor for a format": lambda _: saved({"format": torch.zeros(3), "model": {}}),
    "other types": lambda _: saved({"format": 1, "model": 3, "card": None, "ids": [1]}),
    "no recipe": lambda _: saved({"format": 1, "model": {}, "card": "{}", "ids": {}}),
    "nothing": lambda _: b"",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of pickles without a protocol that it expects
@pytest.mark.parametrize("content", list(CONTENTS.values()), ids=list(CONTENTS))
def test_whoever_reads_it_says_so_in_one_line_and_runs_nothing(
    content: Callable[[Path], bytes], tmp_path: Path
) -> None:
    written = content(tmp_path)
    for name in ("w.pt", "best.pt", "last.pt"):
        (tmp_path / name).write_bytes(written)
    run, fit = RunFolder(tmp_path), FitFolder(tmp_path)
    said = []
    for read in (
        lambda: read_weights(tmp_path / "w.pt"), run.load_best, run.load_last, run.check_finished, run.learned_keys,
        fit.load_last,
    ):  # fmt: skip
        try:
            read()
        except PipelineError as error:
            said.append(str(error))
    assert len(said) >= 5  # of an empty mapping, all weights are loaded
    assert not [message for message in said if "weights_only" in message or "\n" in message]
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "{run}", "{image}"), ("evaluate", "{run}", "{data}", "--workers", 0),
        ("export", "{run}", "-o", "{out}"), ("benchmark", "{run}"), ("report", "{run}", "{data}"),
        ("train", "{data}", "{cache}", "-o", "{run}", "--resume", "--workers", 0),
        ("train", "{data}", "{cache}", "-o", "{out}", "--init", "{file}", "--student", "shufflenet_v2_x0_5",
         "--student-size", 32, "--workers", 0),
        ("train", "{data}", "{cache}", "-o", "{out}", "--init", "{run}", "--student", "shufflenet_v2_x0_5",
         "--student-size", 32, "--workers", 0),
        ("cache", "build", "{data}", "-o", "{out}", "--teacher", "{run}"),
        ("cache", "build", "{data}", "-o", "{out}", "--teacher", "{file}"),
        ("cache", "build", "{data}", "-o", "{out}", "--teacher", "torchvision:shufflenet_v2_x0_5:{file}"),
        ("predict", "{file}", "{image}"), ("evaluate", "{file}", "{data}"), ("benchmark", "{file}"),
    ],
    ids=lambda words: " ".join(map(str, words[:3])),
)  # fmt: skip
def test_no_command_runs_a_checkpoint(
    words: tuple[Any, ...], cli: Cli, tiny_run: Path, tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    for name in ("best.pt", "last.pt"):
        (run / name).write_bytes(saved({"format": 1, "model": Evil(tmp_path)}))
    image = next(iter(sorted(tiny_data.rglob("*.png")) or sorted(tiny_data.rglob("*.jpg"))))
    places = {"run": run, "file": run / "best.pt", "data": tiny_data, "cache": tiny_cache, "image": image,
              "out": tmp_path / "out.pt"}  # fmt: skip
    code, _, err = cli(*(str(word).format(**places) for word in words))
    assert code == 1
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("Error: ")]) == 1, err
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
def test_a_state_of_another_training_is_refused(part: str, cli: Cli, tiny_run: Path, tmp_path: Path,
                                                tiny_data: Path, tiny_cache: Path) -> None:  # fmt: skip
    run = shutil.copytree(tiny_run, tmp_path / "run")
    last = torch.load(run / "last.pt", weights_only=True)
    last["epoch"] = 1
    last[part] = {"x": torch.zeros(1)}
    torch.save(last, run / "last.pt")
    code, _, err = cli("train", tiny_data, tiny_cache, "-o", run, "--resume", "--workers", 0)
    assert (code, "Traceback" in err) == (1, False), err


@pytest.fixture(scope="module")
def exported() -> bytes:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    card = StudentCard(
        student="s", tasks={"class": ("a", "b")}, size_px=8, geometry="warp", cache_id="ab", taught=True, teacher="t"
    )
    return torch_export.to_bytes(model, card)


def edited(content: bytes, edit: Callable[[str, bytes], bytes], more: dict[str, bytes] | None = None) -> bytes:
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            target.writestr(name, edit(name, source.read(name)))
        for name, inside in (more or {}).items():
            target.writestr(name, inside)
    return changed.getvalue()


def test_a_torch_export_that_would_run_code_is_refused_before_torch_reads_it(exported: bytes, tmp_path: Path) -> None:
    path, evil = tmp_path / "m.pt2", pickle.dumps(Evil(tmp_path))

    def same(name: str, inside: bytes) -> bytes:
        return inside

    def formula(name: str, inside: bytes) -> bytes:
        code = json.dumps(f"__import__('os').system('touch {tmp_path / MARK}')").encode()
        first, found, rest = inside.partition(b'"expr_str": "')
        return first + b'"expr_str": ' + code + rest[rest.index(b'"') + 1 :] if found else inside

    def pickled(name: str, inside: bytes) -> bytes:
        if name.endswith("weight_0"):
            return saved(Evil(tmp_path))
        return inside.replace(b'"use_pickle": false', b'"use_pickle": true')

    def example(name: str, inside: bytes) -> bytes:
        return saved(Evil(tmp_path)) if name.endswith("sample_inputs/model.pt") else inside

    path.write_bytes(edited(exported, same))
    torch_export.load(path)
    for change, more in (
        (formula, {}), (pickled, {}), (example, {}), (same, {"archive/data/constants/opaque_obj_0": evil}),
        (same, {"archive/data/aotinductor/model/a.so": b"x"}),
    ):  # fmt: skip
        path.write_bytes(edited(exported, change, more))
        assert path.read_bytes() != edited(exported, same)
        with pytest.raises(RunError) as caught:
            torch_export.load(path)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / MARK).exists()
    with pytest.raises(RunError, match=r"aotinductor.*could run|could run.*aotinductor"):
        FreshProcess(path, "torch-export")
    assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") is None
