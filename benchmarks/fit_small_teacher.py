"""Fit a small SigLIP teacher to the train split of a data set, from scratch: random weights, then the real fit.

For measurements where no MedSigLIP is at hand; what it is worth is what `softlabel cache info` and the evaluation
of its cached test logits say. Run: python benchmarks/fit_small_teacher.py DATA -o DIR --epochs 60
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

import torch

from data.scan import scan_data
from pipeline.fit.teacher import FitConfig, fit_teacher
from pipeline.tasks import Tasks
from pipeline.teachers.prompts import PromptSource
from pipeline.teachers.small import SmallSiglip, new_siglip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="A folder, or a data set file (docs/data.md).")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--size-px", type=int, default=96)
    parser.add_argument("--patch-px", type=int, default=12)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    shape = SmallSiglip(
        size_px=arguments.size_px, patch_px=arguments.patch_px, width=arguments.width, layers=arguments.layers, heads=4
    )
    source = PromptSource(file=arguments.prompts)
    prompts = source.texts_of(Tasks(scan_data(arguments.data).classes))
    config = FitConfig(epochs=arguments.epochs, lr_peak=1e-3, freeze_text=False)
    with tempfile.TemporaryDirectory() as start:
        new_siglip(shape, [text for texts in prompts.values() for text in texts], Path(start))
        result = fit_teacher(arguments.data, start, arguments.out, config, prompts=source)
    print(f"fitted in {result.wall_s:.0f} s, val macro F1 {result.best_macro_f1:.3f}: {arguments.out}")


if __name__ == "__main__":
    main()
