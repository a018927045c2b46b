"""Run by `pipeline.formats.fresh` in a process of its own: an exported file, its runtime, and nothing of softlabel.

It imports the standard library and torch, or numpy and ONNX Runtime. Run: python -I alone.py FORMAT FILE THREADS DEVICE
Questions come as a line of JSON with raw bytes behind it, and so do the answers. B batch, K outputs, S pixels.
"""

import contextlib
import ctypes
import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

Forward = Callable[[bytes, list[int]], tuple[bytes, list[int]]]
"""(float32 [B, 3, S, S] as bytes, its shape) -> (float32 [B, K] as bytes, its shape)."""


def load(format_name: str, path: str, threads: int, device: str = "cpu") -> tuple[Forward, str]:
    """(forward pass, name and version of the runtime); what the runtime raises where it cannot."""
    return _load_onnx(path, threads) if format_name == "onnx" else _load_torch(format_name, path, threads, device)


def _load_torch(format_name: str, path: str, threads: int, device: str) -> tuple[Forward, str]:
    import torch

    if threads:
        torch.set_num_threads(threads)
    module = _torchscript(path, device) if format_name == "torchscript" else _torch_export(path, device)

    def forward(content: bytes, shape: list[int]) -> tuple[bytes, list[int]]:
        inputs = torch.frombuffer(bytearray(content), dtype=torch.float32).reshape(shape)
        with torch.inference_mode():
            answer = module(inputs.to(device))
        # Fetched from a GPU, which therefore has finished when a clock looks: that copy waits for the whole pass.
        answer = answer.float().cpu().contiguous()
        # Not by way of numpy, which torch does not need.
        return ctypes.string_at(answer.data_ptr(), 4 * answer.numel()), list(answer.shape)

    return forward, f"torch {torch.__version__}"


def _torchscript(path: str, device: str) -> Any:
    import torch

    return torch.jit.load(path, map_location=device).eval()


def _torch_export(path: str, device: str) -> Any:
    import torch

    program = torch.export.load(path)
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return program.module()


def _load_onnx(path: str, threads: int) -> tuple[Forward, str]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def forward(content: bytes, shape: list[int]) -> tuple[bytes, list[int]]:
        (answer,) = session.run(None, {name: np.frombuffer(content, np.float32).reshape(shape)})
        return answer.astype(np.float32).tobytes(), list(answer.shape)

    return forward, f"onnxruntime {onnxruntime.__version__}"


def timings(forward: Forward, content: bytes, shape: list[int], warmup_s: float, runs: int) -> list[float]:
    """Seconds of each of `runs` forward passes, after `warmup_s` seconds of others (at least three)."""
    begun, n_done = time.perf_counter(), 0
    while n_done < 3 or time.perf_counter() - begun < warmup_s:
        forward(content, shape)
        n_done += 1
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        forward(content, shape)
        seconds.append(time.perf_counter() - start)
    return seconds


def peak_bytes() -> int | None:
    """The most memory that this process has had so far; None where the system does not tell (Windows)."""
    # Not ru_maxrss where it can be helped: on Linux it begins with the peak of whoever started this process.
    own = contextlib.suppress(OSError, StopIteration)
    with own, open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_peak_bytes(device: str) -> int | None:
    """The most memory that tensors have had on a GPU; None on a CPU, and on MPS, which keeps no such count."""
    if device != "cuda":
        return None
    import torch

    return torch.cuda.max_memory_allocated()


def _answer(forward: Forward, question: dict[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
    shape = question["shape"]
    if "runs" in question:
        return {"seconds": timings(forward, content, shape, question["warmup_s"], question["runs"])}, b""
    answer, shape = forward(content, shape)
    return {"shape": shape}, answer


def main(format_name: str, path: str, threads: str, device: str = "cpu") -> None:
    """Load, then answer until nobody asks."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a runtime prints is no answer

    def tell(answer: dict[str, Any], content: bytes = b"") -> None:
        peaks = {"peak_bytes": peak_bytes(), "device_peak_bytes": device_peak_bytes(device)}
        sink.write(json.dumps({**answer, **peaks, "n_bytes": len(content)}).encode() + b"\n")
        sink.write(content)
        sink.flush()

    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        try:
            begun = time.perf_counter()
            importlib.import_module("onnxruntime" if format_name == "onnx" else "torch")
            imported, runtime_bytes = time.perf_counter(), peak_bytes()
            forward, runtime = load(format_name, path, int(threads), device)
            load_s = time.perf_counter() - imported
            tell({"runtime": runtime, "import_s": imported - begun, "load_s": load_s, "runtime_bytes": runtime_bytes})
            while line := source.readline():
                question = json.loads(line)
                tell(*_answer(forward, question, source.read(question["n_bytes"])))
        except Exception as error:  # the parent says it in its own words
            tell({"error": f"{type(error).__name__}: {error}"})
            raise


if __name__ == "__main__":
    main(*sys.argv[1:])
