"""What does stage one cost at MedSigLIP's full size? Random weights of the real architecture, the real command.

Makes a folder with a SiglipModel of google/medsiglip-448's shape (878 M parameters, 3.5 GB; built on the meta device
and filled with small random numbers, since the real weights are gated) and runs `softlabel cache build` on the images
as a process of its own. Prints seconds a view and the peak memory of that process.
Run: python benchmarks/full_size_teacher.py DATA --work FOLDER --images 2 --views 4
"""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from data.samples import FOLDER_TASK, scan_folder
from pipeline.teachers.prompts import default_prompts
from pipeline.teachers.small import SmallSiglip, new_siglip


def make_full_size(folder: Path, texts: list[str]) -> None:
    """Save a randomly filled SiglipModel of MedSigLIP's shape, with a small tokenizer and the 448 px processor."""
    from transformers import AutoTokenizer, SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

    new_siglip(SmallSiglip(), texts, folder)  # for its tokenizer
    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    text = {"vocab_size": 32_000, "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": None}
    config = SiglipConfig(
        text_config={**tower, **text, "eos_token_id": 1}, vision_config={**tower, "image_size": 448, "patch_size": 14}
    )
    with torch.device("meta"):
        model = SiglipModel(config)
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.02, generator=generator) if parameter.ndim > 1 else parameter.fill_("norm" in name)
        for tower_model in (model.vision_model.embeddings, model.text_model.embeddings):
            count = tower_model.position_ids.shape[-1]
            tower_model.position_ids.copy_(torch.arange(count).expand(1, -1))
        model.logit_scale.fill_(4.72)
        model.logit_bias.fill_(-16.5)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    model.save_pretrained(folder)
    image_processor = SiglipImageProcessor(size={"height": 448, "width": 448}, resample=3)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    SiglipProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)


def few_images(source: Path, folder: Path, count: int) -> None:
    """`count` train images in all, over the first two classes, as a data folder of their own."""
    samples = scan_folder(source).of_split("train")
    classes = sorted({sample.labels[FOLDER_TASK] for sample in samples})[:2]
    for number, name in enumerate(classes):
        of_class = [sample for sample in samples if sample.labels[FOLDER_TASK] == name]
        (folder / "train" / name).mkdir(parents=True)
        for sample in of_class[: (count + 1 - number) // 2]:
            shutil.copy(sample.path, folder / "train" / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="a folder with 4 GB of room; kept for another run")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    arguments = parser.parse_args()
    images, teacher = arguments.work / "images", arguments.work / "teacher"
    shutil.rmtree(images, ignore_errors=True)
    few_images(arguments.data, images, arguments.images)
    if not (teacher / "model.safetensors").exists():
        classes = scan_folder(images).classes[FOLDER_TASK]
        make_full_size(teacher, [text for texts in default_prompts(classes).values() for text in texts])
    for precision in arguments.precisions:
        out = arguments.work / f"{precision}.h5"
        out.unlink(missing_ok=True)
        started = time.perf_counter()
        command = [sys.executable, "-m", "softlabel", "cache", "build", str(images), "-o", str(out)]
        command += ["--teacher", str(teacher), "--precision", precision]
        command += ["--views", str(arguments.views), "--batch-size", str(arguments.batch_size)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        views_per_s = float(re.findall(r"([\d.]+) views/s", done.stdout)[0])
        # The largest child so far: run the leaner precision first.
        peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
        wall_s = time.perf_counter() - started
        print(f"{precision}: {1 / views_per_s:.2f} s a view, {wall_s:.0f} s in all, peak memory {peak_gb:.1f} GB")


if __name__ == "__main__":
    main()
