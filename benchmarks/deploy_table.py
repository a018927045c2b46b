"""What do the ways of exporting a student cost, and what do they change? Prints the table of docs/deploy.md.

Exports each run in every format, compares each file with the checkpoint on the images of DATA, then times all files of
a run side by side, in rounds, one image at a time, each in a process of its own; with --older-python also whether the
TorchScript files answer the same under that interpreter's torch.
Run: python benchmarks/deploy_table.py DATA RUN... --work work --threads 1 --rounds 5
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from data.options import ScanOptions
from pipeline.errors import PipelineError
from pipeline.export import ExportConfig, export
from pipeline.formats import reading
from pipeline.formats.fresh import FreshProcess
from pipeline.formats.names import SUFFIXES, format_of

WAYS: dict[str, dict[str, Any]] = {
    "TorchScript": {},
    "TorchScript, `--weights fp16`": {"weights": "fp16"},
    "TorchScript, `--weights int8`": {"weights": "int8"},
    "ONNX": {"format": "onnx"},
    "ONNX, `--weights fp16`": {"format": "onnx", "weights": "fp16"},
    "ONNX, `--weights int8`": {"format": "onnx", "weights": "int8"},
    "ONNX, `--int8`": {"format": "onnx", "int8": True},
    "torch.export": {"format": "torch-export"},
}
MEASURED = 0.01
"""Agreement that is asked for here: all of it is to be seen, also what `softlabel export` would refuse."""


def export_all(run: Path, data: Path, work: Path) -> dict[str, dict[str, Any]]:
    """Way -> what was found of its file; finished ones are read from `work`."""
    found = {}
    for number, (way, settings) in enumerate(WAYS.items()):
        out = work / f"{run.name}-{number}{SUFFIXES[settings.get('format', 'torchscript')]}"
        note = out.with_suffix(out.suffix + ".json")
        if not note.exists():
            config = ExportConfig(**settings, least_agreement=MEASURED, replace=True)
            result = export(run, out, config, data=data, scan=ScanOptions(remember_split=False))
            assert result.fidelity is not None
            note.write_text(json.dumps({**dataclasses.asdict(result), "path": str(out)}, default=str))
        found[way] = json.loads(note.read_text())
        print(f"{run.name}: {way}: {found[way]['n_bytes']:,} bytes", flush=True)
    return found


def time_all(files: list[Path], threads: int, rounds: int, seconds: float) -> dict[Path, list[float]]:
    """File -> p50 in ms of each round; the files take turns."""
    p50_ms: dict[Path, list[float]] = {path: [] for path in files}
    for _ in range(rounds):
        for path in files:
            card = reading.load(path)[1]
            noise = np.random.default_rng(0).standard_normal((1, 3, card.size_px, card.size_px), dtype=np.float32)
            with FreshProcess(path, format_of(path), threads=threads) as process:
                once = float(np.median(process.timings(noise, warmup_s=1, runs=10)))
                runs = max(50, int(seconds / once))
                p50_ms[path].append(1e3 * float(np.median(process.timings(noise, warmup_s=0, runs=runs))))
    return p50_ms


def older_difference(path: Path, python: str) -> tuple[str, float]:
    """(the older runtime, largest difference of a logit between it and this one on noise)."""
    size_px = reading.load(path)[1].size_px
    noise = np.random.default_rng(0).standard_normal((16, 3, size_px, size_px), dtype=np.float32)
    answers = []
    for interpreter in ({}, {"python": python}):
        with FreshProcess(path, format_of(path), **interpreter) as process:
            answers.append(process.logits(noise))
            runtime = process.runtime
    return runtime, float(np.abs(answers[0] - answers[1]).max())


def main() -> None:
    """Export, compare, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="Of each file in each round.")
    parser.add_argument("--older-python", help="Interpreter of an environment with an older torch.")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for run in options.runs:
        found = export_all(run, options.data, options.work)
        p50_ms = time_all(
            [Path(one["path"]) for one in found.values()], options.threads, options.rounds, options.seconds
        )
        print(f"\n| {run.name} | MB | p50 ms (lowest, highest) | agreement | macro F1 difference (90 %) |")
        print("|---|---|---|---|---|")
        for way, one in found.items():
            rounds, fidelity = p50_ms[Path(one["path"])], one["fidelity"]
            between = fidelity["interval"]
            print(
                f"| {way} | {one['n_bytes'] / 1e6:.2f} | {statistics.median(rounds):.1f} ({min(rounds):.1f}, "
                f"{max(rounds):.1f}) | {fidelity['n_agreeing'] / fidelity['n_images']:.2%} | "
                f"{fidelity['macro_f1_difference']:+.4f} ({between['low']:+.4f} to {between['high']:+.4f}) |"
            )
        if options.older_python:
            for way, one in found.items():
                if one["format"] == "torchscript":
                    runtime, worst = older_difference(Path(one["path"]), options.older_python)
                    print(f"{way} with {runtime}: largest difference of a logit {worst:.2g}")


if __name__ == "__main__":
    try:
        main()
    except PipelineError as error:
        raise SystemExit(f"Error: {error}") from error
