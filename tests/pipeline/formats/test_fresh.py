"""An exported file in a process of its own: the same answers there, and a sentence where there are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import RunError
from pipeline.export import export
from pipeline.formats import alone, torchscript
from pipeline.formats.fresh import FreshProcess


def test_a_file_answers_elsewhere_as_it_does_here_and_says_what_runs_it(tiny_run: Path, tmp_path: Path) -> None:
    import torch

    export(tiny_run, tmp_path / "m.pt")
    inputs = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    with FreshProcess(tmp_path / "m.pt", "torchscript", threads=1) as process:
        answers = [process.logits(inputs[:n]) for n in (3, 1)]
        seconds = process.timings(inputs[:1], warmup_s=0, runs=4)
        assert process.runtime == f"torch {torch.__version__}"
        assert process.peak_bytes is None or process.peak_bytes > process.runtime_bytes > 10_000_000
        assert process.device_peak_bytes is None
        assert min(process.import_s, process.load_s) > 0
    module, _ = torchscript.load(tmp_path / "m.pt")
    expected = module(torch.from_numpy(inputs)).detach().numpy()
    np.testing.assert_allclose(answers[0], expected, atol=1e-5)
    np.testing.assert_allclose(answers[1], expected[:1], atol=1e-5)
    assert seconds.shape == (4,)
    assert (seconds > 0).all()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process begins with a peak of its own")
def test_the_peak_memory_is_that_of_the_process_and_not_of_whoever_started_it() -> None:
    ask = "import runpy, sys; print(runpy.run_path(sys.argv[1])['peak_bytes']())"
    words = [sys.executable, "-I", "-c", ask, alone.__file__]
    theirs = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert theirs < 100_000_000 < (alone.peak_bytes() or 0)  # this process has torch in it, that one nothing


def test_what_does_not_load_there_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_text("hello")
    with pytest.raises(RunError, match=r"m\.pt does not run by itself: RuntimeError: PytorchStreamReader") as caught:
        FreshProcess(tmp_path / "m.pt", "torchscript")
    assert "\n" not in str(caught.value)


def test_an_input_that_the_file_does_not_take_is_told_and_ends_the_process(tiny_run: Path, tmp_path: Path) -> None:
    export(tiny_run, tmp_path / "m.pt")
    with FreshProcess(tmp_path / "m.pt", "torchscript", threads=1) as process:
        with pytest.raises(RunError, match="does not run by itself"):
            process.logits(np.zeros((1, 4, 32, 32), np.float32))
        with pytest.raises(RunError, match="the process that runs it ended with code 1"):
            process.logits(np.zeros((1, 3, 32, 32), np.float32))
