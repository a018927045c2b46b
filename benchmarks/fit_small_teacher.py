"""Fit a small SigLIP teacher to the train split of an image folder, from scratch, and save it.

For measurements where no MedSigLIP is at hand; what it is worth is what `softlabel cache info` and the evaluation
of its cached test logits say. Run: python benchmarks/fit_small_teacher.py DATA -o DIR --epochs 60
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from data.samples import FOLDER_TASK, scan_folder
from pipeline.teachers.fit import FitConfig, SmallSiglip, fit_teacher
from pipeline.teachers.prompts import default_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--size-px", type=int, default=96)
    parser.add_argument("--patch-px", type=int, default=12)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = scan_folder(arguments.data)
    shape = SmallSiglip(
        size_px=arguments.size_px, patch_px=arguments.patch_px, width=arguments.width, layers=arguments.layers, heads=4
    )
    started = time.perf_counter()
    prompts = default_prompts(images.classes[FOLDER_TASK])
    fit_teacher(images, prompts, arguments.out, FitConfig(shape=shape, epochs=arguments.epochs))
    print(f"fitted in {time.perf_counter() - started:.0f} s: {arguments.out}")


if __name__ == "__main__":
    main()
