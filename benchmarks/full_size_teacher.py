"""How near is stage one to the bare forward pass? Random weights at MedSigLIP's full size, or smaller; the real build.

Makes a folder with a SiglipModel of google/medsiglip-448's shape (878 M parameters, 3.5 GB; built on the meta device
and filled with small random numbers, since the real weights are gated), or of --shape's. Then, in turns of shuffled
order: a whole `build_cache` (its views/s from the first image to the last row), and as many views through the image
tower alone, already normalised and on the device, at the same batch and precision; on a GPU also through the compiled
tower. Prints the median ratio with its interval, where the time of one build goes (by function, and by torch.profiler:
on a GPU its busy share), and the peak memory of a build as a process of its own. GPU rows have not been measured.
Run: python benchmarks/full_size_teacher.py DATA --work FOLDER --images 2 --views 4 [--precisions fp32 bf16]
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import os
import pstats
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import estimate, interleaved, machine_line, markdown, ratio

from data.samples import FOLDER_TASK
from data.scan import scan_data
from pipeline.build import BuildConfig, build_cache
from pipeline.process import resolve_device, tune_allocator
from pipeline.teachers.dual_encoder import load_dual_encoder
from pipeline.teachers.prompts import default_prompts
from pipeline.teachers.small import SmallSiglip, new_siglip

SHAPES = {
    "demo": SmallSiglip(),
    "tiny": SmallSiglip(size_px=224, patch_px=16, width=192, layers=12, heads=3),
    "base": SmallSiglip(size_px=224, patch_px=16, width=768, layers=12, heads=12),
}
"""Beside `full`: the demo's teacher, and the widths of ViT-Ti and ViT-B at 224 px."""


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

    def __init__(self, folder: Path, device: str, precision: str, batch_size: int, *, compiled: bool = False) -> None:
        dual = load_dual_encoder(str(folder))
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
        weights = half if (device, precision) == ("cpu", "bf16") else torch.float32
        self._tower = dual.image_tower().to(device=device, dtype=weights).eval().requires_grad_(False)
        if compiled:
            self._tower = torch.compile(self._tower)
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
    """Where the time of one build goes: by what it does, and by torch's own operations."""
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
    lines = [
        [what, f"{found.get(name, 0.0):.2f}", f"{found.get(name, 0.0) / whole:.2%}"] for what, name in parts.items()
    ]
    print(markdown(["part of a build", f"s of {whole:.2f}", "share"], lines))
    activities = [torch.profiler.ProfilerActivity.CPU]
    if config.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as operations:
        build(images, out, config)
    averages = operations.key_averages()
    key = "self_device_time_total" if config.device == "cuda" else "self_cpu_time_total"
    if config.device == "cuda":
        busy_s = sum(one.self_device_time_total for one in averages) / 1e6
        print(f"the GPU is busy for {busy_s:.2f} s of {whole:.2f}")
    print(averages.table(sort_by=key, row_limit=8, max_name_column_width=40))


def peak_gb(images: Path, out: Path, config: BuildConfig) -> float:
    """Peak resident memory of the command as a process of its own."""
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "softlabel", "cache", "build", str(images), "-o", str(out), "--views", "1"]
    command += ["--teacher", config.teacher, "--precision", config.precision, "--batch-size", str(config.batch_size)]
    child = subprocess.Popen([*command, "--device", config.device], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * 1024 / 1e9


def make_teacher(shape: str, folder: Path, texts: list[str]) -> None:
    """The teacher's folder, if it is not there from an earlier run."""
    if not (folder / "model.safetensors").exists():
        make_full_size(folder, texts) if shape == "full" else new_siglip(SHAPES[shape], texts, folder)


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
    parser.add_argument("--shape", choices=["full", *SHAPES], default="full")
    parser.add_argument(
        "--compile", action="store_true", help="the bare tower compiled as well, which a GPU always has"
    )
    arguments = parser.parse_args()
    tune_allocator()  # as the command does
    images, out = arguments.work / "images", arguments.work / "t.h5"
    shutil.rmtree(images, ignore_errors=True)
    few_images(arguments.data, images, arguments.images)
    classes = scan_data(images).classes[FOLDER_TASK]
    teacher = arguments.work / f"teacher-{arguments.shape}"
    make_teacher(arguments.shape, teacher, [text for texts in default_prompts(classes).values() for text in texts])
    device, n_views = resolve_device(arguments.device), arguments.images * arguments.views
    print(machine_line())
    print(f"{device}, {torch.get_num_threads()} threads, {n_views} views a round, batches of {arguments.batch_size}")
    lines = []
    for precision in arguments.precisions:
        config = BuildConfig(
            teacher=str(teacher), views=arguments.views, batch_size=arguments.batch_size, precision=precision,
            device=device, workers=arguments.workers,
        )  # fmt: skip
        # The bare towers are made after it, and go before the next one.
        peak = peak_gb(images, out, config)
        towers = {"bare forward": BareTower(teacher, device, precision, arguments.batch_size)}
        if device == "cuda" or arguments.compile:
            towers["compiled"] = BareTower(teacher, device, precision, arguments.batch_size, compiled=True)
        for tower in towers.values():
            tower.views_per_s(1)
        contestants = {"build": partial(build, images, out, config)}
        contestants |= {name: partial(tower.views_per_s, n_views) for name, tower in towers.items()}
        found = interleaved(contestants, arguments.rounds)
        lines += [
            [arguments.shape, precision, name, estimate(found["build"]), estimate(found[name]),
             ratio(found["build"], found[name]), f"{peak:.1f}"]
            for name in towers
        ]  # fmt: skip
        print_profile(images, out, config)
    columns = ["teacher", "precision", "against", "build, views/s", "it, views/s", "build / it", "build's peak, GB"]
    print(markdown(columns, lines))


if __name__ == "__main__":
    main()
