"""How near is stage one to the bare forward pass at MedSigLIP's full size? Random weights, the real build.

Makes a folder with a SiglipModel of google/medsiglip-448's shape (878 M parameters, 3.5 GB; built on the meta device
and filled with small random numbers, since the real weights are gated). Then, in turns: a whole `build_cache` (its
views/s from the first image to the last row), and the same number of views through the image tower alone, already
normalised and on the device, at the same batch and precision. Prints the ratio of each round, their median, a profile
of one build, and the peak memory of a build as a process of its own.
Run: python benchmarks/full_size_teacher.py DATA --work FOLDER --images 2 --views 4
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import pstats
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from data.samples import FOLDER_TASK
from data.scan import scan_data
from pipeline.build import BuildConfig, build_cache
from pipeline.process import resolve_device
from pipeline.teachers.dual_encoder import load_dual_encoder
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
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    SiglipProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)


def few_images(source: Path, folder: Path, count: int) -> None:
    """`count` train images in all, over the first two classes, as a data folder of their own."""
    samples = scan_data(source).of_split("train")
    classes = sorted({sample.labels[FOLDER_TASK] for sample in samples})[:2]
    for number, name in enumerate(classes):
        of_class = [sample for sample in samples if sample.labels[FOLDER_TASK] == name]
        (folder / "train" / name).mkdir(parents=True)
        for sample in of_class[: (count + 1 - number) // 2]:
            shutil.copy(sample.path, folder / "train" / name)


class BareTower:
    """The image tower and nothing else, on tensors that are where they are needed."""

    def __init__(self, folder: Path, device: str, precision: str, batch_size: int) -> None:
        dual = load_dual_encoder(str(folder))
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
        weights = half if (device, precision) == ("cpu", "bf16") else torch.float32
        self._tower = dual.image_tower().to(device=device, dtype=weights).eval().requires_grad_(False)
        size_px = dual.model.config.vision_config.image_size
        self._pixels = torch.randn(batch_size, 3, size_px, size_px).to(device=device, dtype=weights)
        self._autocast: Any = contextlib.nullcontext()
        if precision != "fp32" and weights == torch.float32:
            self._autocast = torch.autocast(device, half)
        self._device, self._batch_size = device, batch_size

    @torch.inference_mode()
    def views_per_s(self, n_views: int) -> float:
        """Speed over at least so many views, in whole batches."""
        n_batches = -(-n_views // self._batch_size)
        started = time.perf_counter()
        for _ in range(n_batches):
            with self._autocast:
                embedding = self._tower(self._pixels)
            embedding.float().cpu()  # as the build does; on a GPU this waits for the pass
        return n_batches * self._batch_size / (time.perf_counter() - started)


def build(images: Path, out: Path, config: BuildConfig) -> float:
    """Views/s of one build into a new file."""
    out.unlink(missing_ok=True)
    result = build_cache(images, out, config)
    return result.n_computed / result.wall_s


def print_profile(images: Path, out: Path, config: BuildConfig) -> None:
    """Seconds of one build by what it did, of the part that counts for views/s."""
    profile = cProfile.Profile()
    profile.enable()
    build(images, out, config)
    profile.disable()
    stats: Any = pstats.Stats(profile)
    found = {(Path(file).name, name): total for (file, _, name), (_, _, _, total, _) in stats.stats.items()}
    whole = found["build.py", "_compute"]
    parts = {
        "teacher": ("teacher.py", "embed"), "decode and render": ("loaders.py", "__getitem__"),
        "add and seal": ("writer.py", "add"), "fp32 check": ("teacher.py", "compare_with_fp32"),
    }  # fmt: skip
    for what, function in parts.items():
        spent = found.get(function, 0.0)
        print(f"  profile  {what:18} {spent:7.2f} s of {whole:.2f} ({spent / whole:.2%})")


def peak_gb(images: Path, out: Path, config: BuildConfig) -> float:
    """Peak resident memory of the command as a process of its own."""
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "softlabel", "cache", "build", str(images), "-o", str(out), "--views", "1"]
    command += ["--teacher", config.teacher, "--precision", config.precision, "--batch-size", str(config.batch_size)]
    subprocess.run([*command, "--device", config.device], check=True, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="a folder with 4 GB of room; kept for another run")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--precisions", nargs="+", default=["fp32"])
    arguments = parser.parse_args()
    images, teacher, out = (arguments.work / name for name in ("images", "teacher", "t.h5"))
    shutil.rmtree(images, ignore_errors=True)
    few_images(arguments.data, images, arguments.images)
    if not (teacher / "model.safetensors").exists():
        classes = scan_data(images).classes[FOLDER_TASK]
        make_full_size(teacher, [text for texts in default_prompts(classes).values() for text in texts])
    device, n_views = resolve_device(arguments.device), arguments.images * arguments.views
    print(f"{device}, {torch.get_num_threads()} threads, {n_views} views a round, batches of {arguments.batch_size}")
    for precision in arguments.precisions:
        config = BuildConfig(
            teacher=str(teacher), views=arguments.views, batch_size=arguments.batch_size, precision=precision,
            device=device, workers=arguments.workers,
        )  # fmt: skip
        # The largest child so far: name the leaner precision first.
        print(f"{precision}: peak memory of a build {peak_gb(images, out, config):.1f} GB")
        bare = BareTower(teacher, device, precision, arguments.batch_size)
        bare.views_per_s(1)
        ratios = []
        for number in range(arguments.rounds):
            before, ours, after = bare.views_per_s(n_views), build(images, out, config), bare.views_per_s(n_views)
            theirs = 2 / (1 / before + 1 / after)
            ratios.append(ours / theirs)
            print(f"  round {number + 1}: build {ours:.3f}, bare forward {theirs:.3f} views/s, ratio {ratios[-1]:.3f}")
        print(f"{precision}: cache build / bare forward {statistics.median(ratios):.3f} (median)")
        print_profile(images, out, config)


if __name__ == "__main__":
    main()
