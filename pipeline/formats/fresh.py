"""An exported file in a process of its own that knows nothing of softlabel, as whoever receives the file will run it.

Never loads the file here: `alone.py` does, there.
B batch, K outputs, S pixels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError, first_line
from pipeline.formats.names import NO_TELEMETRY
from pipeline.formats.plain_archive import DAMAGED, TENSORS_ONLY, plain_archive

_SCRIPT = Path(__file__).with_name("alone.py")


def _check_plain(path: Path) -> None:
    """RunError for a file that would run code; what else is wrong with it, the process finds."""
    try:
        plain_archive(path)
    except RunError:
        raise
    except DAMAGED:
        return


class FreshProcess:
    """Asks a file that runs elsewhere; RunError where it does not load or answer there. Use in a `with` block.

    `python` is the interpreter, such as that of another virtual environment; `threads` 0 leaves them to the runtime.
    An ONNX file runs on the CPU alone, whatever the device.
    """

    def __init__(
        self, path: Path, format_name: str, *, threads: int = 0, device: str = "cpu", python: str = sys.executable
    ) -> None:
        self._path = path
        if format_name == "torch-export":
            _check_plain(path)
        self._process = subprocess.Popen(
            [python, "-I", "-W", "ignore", str(_SCRIPT), format_name, str(path), str(threads), device],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={NO_TELEMETRY: "1", **os.environ, TENSORS_ONLY: "1"},
        )  # fmt: skip
        self.peak_bytes: int | None = None
        """The most memory that the process had until its last answer; None where the system does not tell."""
        self.device_peak_bytes: int | None = None
        """The same of the tensors on a GPU; None on a CPU, and where the runtime does not count (MPS)."""
        try:
            found = self._read()[0]
            self.runtime: str = found["runtime"]
            """Name and version of what runs the file, such as `torch 2.15.0`."""
            self.runtime_bytes: int | None = found["runtime_bytes"]
            """The most memory that the process had when it had imported its runtime and not opened the file yet."""
            self.import_s: float = found["import_s"]
            """Seconds of that import."""
            self.load_s: float = found["load_s"]
            """Seconds from there until the file was ready."""
        except BaseException:
            self.close()
            raise

    def logits(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw logits, float32 [B, K], of normalised images [B, 3, S, S]; whatever shape the file answers with."""
        found, content = self._ask(inputs, {})
        return np.frombuffer(content, np.float32).reshape(found["shape"])

    def timings(self, inputs: NDArray[np.float32], *, warmup_s: float, runs: int) -> NDArray[np.float64]:
        """Seconds of each of `runs` forward passes of these images, after `warmup_s` seconds of warm-up."""
        return np.array(self._ask(inputs, {"warmup_s": warmup_s, "runs": runs})[0]["seconds"])

    def close(self) -> None:
        """End the process; once is enough, more is harmless."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # what was still to be sent is not wanted any more
        self._process.wait()

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, inputs: NDArray[np.float32], question: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        content = np.ascontiguousarray(inputs, np.float32)
        assert self._process.stdin is not None
        try:
            header = json.dumps({**question, "shape": content.shape, "n_bytes": content.nbytes}).encode()
            self._process.stdin.write(header + b"\n")
            self._process.stdin.write(content.tobytes())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its last words tell why
        return self._read()

    def _read(self) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RunError(f"{self._path}: the process that runs it ended with code {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise RunError(f"{self._path} does not run by itself: {first_line(RuntimeError(found['error']))}")
        self.peak_bytes, self.device_peak_bytes = found["peak_bytes"], found["device_peak_bytes"]
        return found, self._process.stdout.read(found["n_bytes"])
