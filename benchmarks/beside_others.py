"""How fast is stage two beside loops that keep a teacher in memory? Images/s of the same student, images and epochs.

Against torchdistill, used as its example `image_classification.py` and its example of KD on ImageNet do (`ImageFolder`,
`RandomResizedCrop`, `RandomHorizontalFlip`, batches of 32, SGD, `KDLoss`), and against a plain loop such as a course
hands out (`DataLoader` without workers, warp to the square, flip, Adam). The teacher of both is a small torchvision
model with random weights, which sees the student's pixels: what a real teacher costs above that is theirs to pay as
well. Ours is `softlabel train` with all its defaults, in a process of its own as the others. Images/s are those of
training alone, from the second epoch on, validation left out everywhere; ours writes its store of rendered views in
the first one. The seconds of the whole processes stand beside: ours also validates, reports and saves, they do not.
torchdistill is needed for its contestants only: `pip install torchdistill`, or --python of an environment that has it
(1.1.5 was measured; it no longer keeps a teacher's outputs, as versions before 1.0 did).
Run: python benchmarks/beside_others.py DATA t.h5 [--workers 16 2 0] [--stage-one-s 600]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEMPERATURE, ALPHA = 4.0, 0.3
OURS, COURSE = "softlabel train", "plain loop, teacher in memory"


class EpochTimes:
    """Images/s over all epochs but the first, which warms up."""

    def __init__(self) -> None:
        self._seconds, self._images, self._began = 0.0, 0, 0.0

    def epochs(self, count: int) -> Iterator[int]:
        """The numbers of the epochs; what happens in each is timed, but for `pause`."""
        for epoch in range(count):
            self._began, self._is_timed = time.perf_counter(), epoch > 0
            yield epoch

    def end(self, n_images: int) -> None:
        """The last image of an epoch has been trained on."""
        if self._is_timed:
            self._seconds += time.perf_counter() - self._began
            self._images += n_images

    @property
    def images_per_s(self) -> float:
        """Of the epochs that count."""
        return self._images / self._seconds


def small_model(name: str, n_classes: int) -> Any:
    """A torchvision classifier with random weights."""
    import torch
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, num_classes=n_classes)


def image_folder(options: argparse.Namespace, *random_transforms: Any) -> Any:
    """The train images, with random transforms, as normalised tensors."""
    from torchvision import datasets, transforms

    steps = [*random_transforms, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return datasets.ImageFolder(str(Path(options.data) / "train"), transforms.Compose(steps))


def torchdistill_loop(options: argparse.Namespace) -> float:
    """Images/s of a distillation box, by its public functions, in the order of its example."""
    import warnings

    import torch
    from torch.utils.data import RandomSampler
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue
    from torchvision import transforms

    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    size = [options.student_size, options.student_size]
    data = image_folder(options, transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip())
    device, n_classes = torch.device("cpu"), len(data.classes)
    kd = {
        "student_module_path": ".", "student_module_io": "output", "teacher_module_path": ".",
        "teacher_module_io": "output", "temperature": TEMPERATURE, "alpha": ALPHA, "reduction": "batchmean",
    }  # fmt: skip
    config = {
        "num_epochs": options.epochs, "log_freq": 1000,
        "train_data_loader": {
            "dataset_id": "train", "sampler": {"class_or_func": RandomSampler, "kwargs": None},
            "kwargs": {
                "batch_size": options.batch_size, "num_workers": options.child_workers, "pin_memory": True,
                "drop_last": False,
            },
        },
        "teacher": {"sequential": [], "requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"sequential": [], "requires_grad": True, "forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}},
        "scheduler": {"key": "MultiStepLR", "kwargs": {"milestones": [5, 15], "gamma": 0.1}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}}},
        },
    }  # fmt: skip
    teacher, student = (small_model(name, n_classes).to(device) for name in (options.teacher, options.student))
    box = get_distillation_box(teacher.eval(), student, {"train": data}, config, device, None, False, 1)
    times = EpochTimes()
    for epoch in times.epochs(options.epochs):
        box.pre_epoch_process(epoch=epoch)
        meters = MetricLogger(delimiter="  ")
        meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        for pixels, targets, more in meters.log_every(box.train_data_loader, config["log_freq"], f"Epoch {epoch}"):
            loss = box.forward_process(pixels.to(device), targets.to(device), more)
            box.post_forward_process(loss=loss)
            meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        times.end(len(data))
        box.post_epoch_process()
    return times.images_per_s


def plain_loop(options: argparse.Namespace) -> float:
    """Images/s of a loop as a course hands it out: torch's own defaults, the teacher asked in each step."""
    import torch
    from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
    from torch.utils.data import DataLoader
    from torchvision import transforms

    size = (options.student_size, options.student_size)
    data = image_folder(options, transforms.Resize(size), transforms.RandomHorizontalFlip())
    teacher, student = (small_model(name, len(data.classes)) for name in (options.teacher, options.student))
    teacher.eval()
    loader = DataLoader(data, batch_size=options.batch_size, shuffle=True)
    optimizer, times = torch.optim.Adam(student.parameters(), lr=1e-3), EpochTimes()
    for _ in times.epochs(options.epochs):
        student.train()
        for pixels, labels in loader:
            with torch.no_grad():
                said = teacher(pixels)
            logits = student(pixels)
            soft = kl_div(
                log_softmax(logits / TEMPERATURE, dim=1), softmax(said / TEMPERATURE, dim=1), reduction="batchmean"
            )
            loss = ALPHA * cross_entropy(logits, labels) + (1 - ALPHA) * TEMPERATURE**2 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # the progress bar of such a loop shows it
        times.end(len(data))
    return times.images_per_s


def ours(options: argparse.Namespace) -> float:
    """Images/s that `softlabel train` itself writes down."""
    with tempfile.TemporaryDirectory() as folder:
        words = [options.data, options.cache, "-o", f"{folder}/run", "--student", options.student]
        words += ["--student-size", str(options.student_size), "--epochs", str(options.epochs), "--device", "cpu"]
        words += ["--batch-size", str(options.batch_size), "--anyway", "--seed", "0"]
        child([sys.executable, "-m", "softlabel", "train", *words], options.threads)
        with open(f"{folder}/run/metrics.csv", encoding="utf-8") as file:
            each = [float(row["images_per_s"]) for row in csv.DictReader(file)][1:]
    return len(each) / sum(1 / one for one in each)


def child(words: list[str], threads: int) -> str:
    """What a process of its own prints; SystemExit where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def in_child(options: argparse.Namespace, python: str, kind: str, workers: int = 0) -> float:
    """Images/s of another loop."""
    words = [python, __file__, *sys.argv[1:], "--child", kind, "--child-workers", str(workers)]
    return float(json.loads(child(words, options.threads).splitlines()[-1]))


def has_torchdistill(python: str) -> bool:
    """Whether that Python can import it."""
    done = subprocess.run([python, "-c", "import torchdistill"], capture_output=True, check=False)
    return done.returncode == 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder with train/<class>/")
    parser.add_argument("cache")
    parser.add_argument("--student", default="shufflenet_v2_x0_5")
    parser.add_argument("--student-size", type=int, default=96)
    parser.add_argument("--teacher", default="shufflenet_v2_x1_0", help="of the loops that keep one in memory")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[16, 2, 0], help="of torchdistill; its example has 16"
    )
    parser.add_argument("--python", default=sys.executable, help="one that has torchdistill")
    parser.add_argument("--stage-one-s", type=float, help="what the cache took to build, for the epochs to break even")
    parser.add_argument("--child", choices=["torchdistill", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--child-workers", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    if options.child:
        print(json.dumps(torchdistill_loop(options) if options.child == "torchdistill" else plain_loop(options)))
        return
    from timing import estimate, interleaved, machine_line, markdown, ratio

    contestants = {
        OURS: Contestant(partial(ours, options)),
        COURSE: Contestant(partial(in_child, options, sys.executable, "plain")),
    }  # fmt: skip
    if options.workers and not has_torchdistill(options.python):
        print("torchdistill is not installed and is left out: pip install torchdistill, or name a --python that has it")
        options.workers = []
    for workers in options.workers:
        name = f"torchdistill, {workers} workers"
        contestants[name] = Contestant(partial(in_child, options, options.python, "torchdistill", workers))
    found = interleaved(contestants, options.rounds)
    print(f"{machine_line()}, {options.threads} threads, {options.student} at {options.student_size} px")
    print(f"batches of {options.batch_size}, {options.epochs} epochs, teacher of the others {options.teacher}")
    lines = []
    for name, images_per_s in found.items():
        beside = "" if name == OURS else str(ratio(found[OURS], images_per_s))
        more = "" if name == OURS else even(options, found, name)
        lines.append([name, estimate(images_per_s), beside, estimate(contestants[name].wall_s), more])
    print(markdown(["loop", "images/s", "softlabel / it", "whole process, s", "break-even, epochs"], lines))


class Contestant:
    """A loop in a process of its own, with the seconds of the whole process: start-up, first epoch, validation."""

    def __init__(self, images_per_s: Callable[[], float]) -> None:
        self._images_per_s, self.wall_s = images_per_s, list[float]()

    def __call__(self) -> float:
        began = time.perf_counter()
        found = self._images_per_s()
        self.wall_s.append(time.perf_counter() - began)
        return found


def even(options: argparse.Namespace, found: dict[str, list[float]], name: str) -> str:
    """After how many epochs stage one is paid for."""
    from timing import estimate

    if options.stage_one_s is None:
        return "(with --stage-one-s)"
    n_images = sum(1 for path in (Path(options.data) / "train").rglob("*") if path.is_file())
    saved_s = n_images * (1 / estimate(found[name]).median - 1 / estimate(found[OURS]).median)
    return f"{options.stage_one_s / saved_s:.1f}" if saved_s > 0 else "never"


if __name__ == "__main__":
    main()
