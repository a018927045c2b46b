"""What a student costs: figures that belong together, sentences for what cannot be measured, nothing left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline import benchmark as benchmark_module
from pipeline.benchmark import BenchmarkConfig, benchmark
from pipeline.costs import Benchmark
from pipeline.errors import SettingError
from pipeline.export import export
from pipeline.formats import torchscript
from pipeline.inference import load_student
from pipeline.machine import Machine

Cli = Callable[..., tuple[int, str, str]]
QUICK = BenchmarkConfig(batch_size=2, threads=(1,), seconds=0.05)
WORDS = ("--batch-size", 2, "--threads", 1, "--seconds", 0.05)


class Tiny(nn.Module):
    """A model of two outputs that takes images of any size."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.mean((2, 3))[:, :2]


@pytest.fixture(scope="module")
def found(tiny_run: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Of a run folder, its teacher beside it; nothing temporary is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        found = benchmark(tiny_run, dataclasses.replace(QUICK, teacher=str(tiny_teacher)))
        assert list(Path(tempfile.gettempdir()).iterdir()) == []
    return found


@pytest.fixture(scope="module")
def without_card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "foreign.pt"
    path.write_bytes(torchscript.program(Tiny()))
    return path


def test_a_run_is_timed_as_the_file_it_would_be_exported_to(found: Benchmark, tiny_run: Path, tmp_path: Path) -> None:
    assert (found.model, found.format, found.device) == (str(tiny_run), "torchscript", "cpu")
    assert (found.student, found.size_px) == ("shufflenet_v2_x0_5", 32)
    assert found.runtime == f"torch {torch.__version__}"
    assert found.n_bytes == export(tiny_run, tmp_path / "m.pt").n_bytes
    assert found.weights_bytes is not None
    assert found.n_bytes > found.weights_bytes > 4 * (found.n_parameters or 0) > 0


def test_the_figures_of_a_row_belong_together(found: Benchmark) -> None:
    (row,) = found.rows
    assert row.speed.threads == 1
    assert 0 < row.speed.p50_ms <= row.speed.p95_ms <= row.speed.p99_ms
    assert row.speed.images_per_s > 0
    assert min(row.speed.n_runs, row.speed.n_passes) >= 3
    assert min(row.import_s, row.load_s, row.first_ms) > 0
    assert row.device_bytes is None
    if sys.platform == "linux":
        assert row.runtime_bytes is not None
        assert 10_000_000 < row.runtime_bytes < (row.one_bytes or 0) <= (row.batch_bytes or 0)


def test_a_teacher_stands_beside_with_how_many_times_as_much_it_takes(found: Benchmark, tiny_teacher: Path) -> None:
    teacher, (row,) = found.teacher, found.rows
    assert teacher is not None
    assert (teacher.name, teacher.precision, teacher.size_px) == (tiny_teacher.name, "fp32", 32)
    assert teacher.n_parameters is not None
    assert teacher.n_bytes == 4 * teacher.n_parameters > 0
    (speed,) = teacher.speeds
    assert 0 < speed.p50_ms <= speed.p95_ms <= speed.p99_ms
    assert found.ratios == {
        "p50_ms": speed.p50_ms / row.speed.p50_ms,
        "images_per_s": row.speed.images_per_s / speed.images_per_s,
        "bytes": teacher.n_bytes / found.n_bytes,
    }
    assert torch.get_num_threads() == 1
    assert f"times by 2; the teacher has {found.ratios['bytes']:.1f} times the bytes of its file" in found.to_table()
    unknown = dataclasses.replace(found, teacher=dataclasses.replace(teacher, n_parameters=None, n_bytes=None))
    assert unknown.ratios.keys() == {"p50_ms", "images_per_s"}
    assert "bytes" not in unknown.to_table()


def test_table_and_json_say_the_same(found: Benchmark) -> None:
    described = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert described["rows"][0].keys() == {
        "threads", "p50_ms", "p95_ms", "p99_ms", "n_runs", "images_per_s", "n_passes", "import_s", "load_s",
        "first_ms", "runtime_bytes", "one_bytes", "batch_bytes", "device_bytes",
    }  # fmt: skip
    assert described["machine"].keys() == {"cpu", "n_cores", "n_usable", "load"}
    assert described["teacher"]["speeds"][0].keys() < described["rows"][0].keys()
    assert described["ratios"] == found.ratios
    assert "is_within_budget" not in described
    table = found.to_table()
    head, student, teacher = table.splitlines()[3:6]
    assert len(head) == len(student) == len(teacher)
    assert f"{found.rows[0].speed.p50_ms:,.2f}" in student
    assert f"{found.n_bytes / 1e6:.2f} MB" in table


def test_a_budget_is_kept_only_if_every_row_keeps_it(found: Benchmark) -> None:
    (row,) = found.rows
    slow = dataclasses.replace(row, speed=dataclasses.replace(row.speed, threads=2, p50_ms=30.04))
    quick = dataclasses.replace(row, speed=dataclasses.replace(row.speed, p50_ms=19.96))
    both = dataclasses.replace(found, rows=(quick, slow), latency_ms=20.0)
    assert both.verdict == "p50 20.0 ms on 1 thread, 30.0 ms on 2 threads: over the budget of 20 ms"
    one = dataclasses.replace(both, rows=(quick,))
    assert one.verdict == "p50 20.0 ms on 1 thread: within the budget of 20 ms"
    assert (both.is_within_budget, one.is_within_budget, found.is_within_budget) == (False, True, True)
    assert both.to_dict()["is_within_budget"] is False
    assert found.verdict == ""


def test_an_exported_file_over_its_budget_is_told_whole_and_exits_with_1(
    tiny_run: Path, tmp_path: Path, cli: Cli
) -> None:
    export(tiny_run, tmp_path / "m.pt")
    words = ("--latency-ms", 0.0001, "--size", 48, "--json", tmp_path / "b.json", *WORDS)
    code, out, err = cli("benchmark", tmp_path / "m.pt", *words)
    assert code == 1
    assert err.splitlines()[-1].startswith("Error: p50 ")
    assert err.splitlines()[-1].endswith(" ms on 1 thread: over the budget of 0.0001 ms")
    assert "shufflenet_v2_x0_5 at 48 px by torch" in out
    assert "notice   the student was trained at 32 px, and was timed at 48" in out
    described = json.loads((tmp_path / "b.json").read_text())
    assert (described["is_within_budget"], described["size_px"]) == (False, 48)
    assert [line[9:] for line in out.splitlines() if line.startswith("notice ")] == described["notices"]


def test_a_busy_machine_too_many_threads_and_the_teacher_that_could_stand_beside_are_noticed(found: Benchmark) -> None:
    def notices(config: BenchmarkConfig = QUICK, **changes: Any) -> list[str]:
        machine = Machine(**{"cpu": "a processor", "n_cores": 2, "n_usable": 1, "load": 0.5, **changes})
        return list(benchmark_module._notices(card, machine, config.threads, config))

    card = load_student(found.model, "cpu").card
    beside = f"its teacher called itself {card.teacher}: --teacher NAME times it beside"
    assert notices() == [beside]
    assert notices(load=1.51)[0].startswith("the machine was busy before this began (load 1.5 on 2 cores): the times")
    many = dataclasses.replace(QUICK, threads=(1, 3), teacher="x")
    assert notices(many) == ["3 threads are more than this process has cores (1)"]


def test_a_file_of_another_format_without_a_card_is_timed_at_the_size_given(tmp_path: Path, cli: Cli) -> None:
    _write_onnx(tmp_path / "m.onnx")
    words = ("--size", 8, "--json", "-", "--latency-ms", 60_000, *WORDS)
    code, out, err = cli("benchmark", tmp_path / "m.onnx", *words)
    assert code == 0, err
    described = json.loads(out)
    assert (described["format"], described["student"], described["n_parameters"]) == ("onnx", None, None)
    assert described["runtime"].startswith("onnxruntime ")
    assert described["is_within_budget"] is True
    assert described["rows"][0]["p50_ms"] > 0


def _write_onnx(path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["m"]), helper.make_node("Flatten", ["m"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", kind, ["B", 3, "S", "S"])]
    outputs = [helper.make_tensor_value_info("y", kind, ["B", 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing.pt",), "no such model file: nothing.pt; make one with `softlabel export RUN -o nothing.pt`"),
        (("text.pt",), "text.pt is not an exported model"),
        (("hollow.pt",), "hollow.pt is not a TorchScript model: "),
        (("folder",), "folder is not a run folder"),
        (("seeds",), "seeds holds 1 runs: name one of them, such as seeds/seed-0"),
        (("RUN", "--batch-size", "0"), "batch_size must be in 1..4096, got 0"),
        (("RUN", "--threads", "2,0"), "threads must be in 1..1024, got 0"),
        (("RUN", "--seconds", "0"), "seconds must be positive, got 0.0"),
        (("RUN", "--seconds", "nan"), "seconds must be positive, got nan"),
        (("RUN", "--size", "-1"), "size_px must be in 1..4096, got -1"),
        (("RUN", "--latency-ms", "-3"), "latency_ms must be positive, got -3.0"),
        (("RUN", "--device", "mps"), "this machine has no device 'mps'"),
        (("RUN", "--json", "text.pt"), "text.pt exists: choose another name, or delete it"),
        (("RUN", "--json", "nowhere/b.json"), "the folder of nowhere/b.json does not exist"),
        (("FOREIGN",), "does not say which images it takes: say their size in pixels, such as --size 224"),
        (("FOREIGN", "--size", "8", "--teacher", "x"), "does not say its classes, of which the teacher is asked"),
        (("RUN", "--teacher", "torchvision:resnet"), "no torchvision classifier is called 'resnet'"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_one_error_line_and_exit_1(
    words: tuple[str, ...], said: str, cli: Cli, tiny_run: Path, without_card: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("text.pt").write_text("hello")
    with zipfile.ZipFile("hollow.pt", "w") as archive:
        archive.writestr("hollow/a", "b")
    Path("folder").mkdir()
    shutil.copytree(tiny_run, Path("seeds", "seed-0"))
    before = sorted(Path.cwd().rglob("*"))
    given = {"RUN": str(tiny_run), "FOREIGN": str(without_card)}
    code, out, err = cli("benchmark", *(given.get(word, word) for word in words))
    assert (code, out) == (1, "")
    assert said in err
    assert err.splitlines()[-1].startswith("Error: ")
    assert sorted(Path.cwd().rglob("*")) == before


def test_an_onnx_file_without_onnxruntime_is_told_what_to_install(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = cli("benchmark", tmp_path / "m.onnx", "--size", 8)
    assert code == 1
    assert err.endswith("is run by onnxruntime, which is not installed: pip install '.[onnx]'\n")


def test_words_instead_of_threads_or_a_device_are_usage_and_exit_2(tiny_run: Path, cli: Cli) -> None:
    assert cli("benchmark", tiny_run, "--threads", "1,two")[0] == 2
    assert cli("benchmark", tiny_run, "--device", "auto")[0] == 2
    with pytest.raises(SettingError, match="device must be one of cpu, cuda, mps, got 'auto'"):
        BenchmarkConfig(device="auto")


@given(one_s=st.floats(1e-3, 1e3), seconds=st.floats(0.01, 60), at_least=st.sampled_from([5, 200]))
def test_a_slow_model_is_timed_less_often_but_never_fewer_than_three_times(
    one_s: float, seconds: float, at_least: int
) -> None:
    warmups: list[float] = []

    def timed(warmup_s: float, runs: int) -> Any:
        warmups.append(warmup_s)
        return np.full(runs, one_s)

    spent_s = benchmark_module._timed(timed, at_least, dataclasses.replace(QUICK, seconds=seconds))
    assert warmups == [seconds / 5, *[0] * (len(warmups) - 1)]
    total_s, n_runs = spent_s.sum() * 1.001, len(spent_s)
    assert n_runs >= 3
    assert total_s >= seconds
    assert n_runs >= at_least or total_s >= 6 * seconds
    assert n_runs in (3, at_least) or total_s <= 1.01 * max(seconds + one_s, 2 * 6 * seconds)


def test_one_slow_start_does_not_make_a_benchmark_of_three_runs() -> None:
    def timed(warmup_s: float, runs: int) -> Any:
        return np.full(runs, 1e-3 if warmup_s == 0 else 2e-1)

    assert len(benchmark_module._timed(timed, 200, dataclasses.replace(QUICK, seconds=1.0))) >= 200


def living_of(group: int) -> list[str]:
    """Processes of this group that have not ended, by what /proc says of each: pid (name) state parent group ..."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _parent, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(path.parent.name)
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks the processes up in /proc")
def test_ctrl_c_leaves_neither_a_process_nor_a_file(
    tiny_run: Path, tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    words = [sys.executable, "-m", "softlabel", "benchmark", str(tiny_run), "--seconds", "300"]
    process = subprocess.Popen(
        words, env={**clean_environment, "TMPDIR": str(tmp_path)}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith("timing student_model.pt")
    assert [path.name for path in tmp_path.glob("*/*")] == ["student_model.pt"]
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "Interrupted.")
    assert list(tmp_path.iterdir()) == []
    # One that was being started at that moment ends by itself, when it finds nobody to answer.
    until_s = time.monotonic() + 60
    while alive := living_of(process.pid):
        assert time.monotonic() < until_s, alive
        time.sleep(0.1)
