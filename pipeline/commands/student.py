"""The commands of stage two: train, export, predict. Each parses, calls one function, prints its result."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pipeline.commands.shared import DEVICES, FILE, data_options, device_options, goes_on_with, same_command

if TYPE_CHECKING:
    from data.options import ScanOptions


@click.command()
@click.argument("data", type=FILE)
@click.argument("cache_file", metavar="CACHE", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="The run folder to write.")
@click.option("--student", default="shufflenet_v2_x1_0", show_default=True, help="Any torchvision classifier.")
@click.option("--student-size", "student_size_px", type=int, default=224, show_default=True, help="Pixels.")
@click.option("--epochs", type=int, default=40, show_default=True)
@click.option("--temperature", type=float, default=4.0, show_default=True, help="T of the soft loss.")
@click.option("--alpha", type=float, default=0.3, show_default=True, help="Weight of the hard loss; soft has the rest.")
@click.option("--lr", "lr_peak", type=float, default=1e-3, show_default=True, help="Learning rate after warm-up.")
@click.option("--batch-size", type=int, default=32, show_default=True)
@click.option("--budget-mb", type=float, default=25.0, show_default=True, help="Largest exported file, 1e6 bytes.")
@click.option("--val-fraction", type=float, default=0.15, show_default=True, help="Used where DATA has no val split.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--teacher/--no-teacher", default=True, help="Without: hard labels only, on the same views.")
@click.option(
    "--target", type=click.Choice(["view", "mean"]), default="view", show_default=True,
    help="Soft target of a view: the teacher's answer to it, or the mean of its logits over the image's views.",
)  # fmt: skip
@click.option("--anyway", is_flag=True, help="Train on a teacher that is near chance or has its classes mixed up.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@device_options
@data_options
@click.pass_context
def train(
    context: click.Context, data: Path, cache_file: Path, out: Path, anyway: bool, resume: bool, device: str,
    workers: int | None, scan: ScanOptions, **settings: Any,
) -> None:  # fmt: skip
    """Train a student on the cached views and logits of DATA. No teacher is loaded.

    Validates on the val split, or on a part of train; never on test.
    """
    with goes_on_with(lambda: same_command("--resume") if (out / "last.pt").exists() else same_command()):
        from pipeline.train import TrainConfig, saved_config
        from pipeline.train import train as run_training

        if resume:
            named = [name for name in settings if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
            config = dataclasses.replace(saved_config(out), **{name: settings[name] for name in named})
        else:
            config = TrainConfig(**settings)
        result = run_training(
            data, cache_file, out, config, resume=resume, anyway=anyway, device=device, workers=workers, scan=scan
        )
    click.echo(f"{out}: best epoch {result.best_epoch}, val macro F1 {result.best_macro_f1:.3f}, {result.wall_s:.0f} s")


@click.command()
@click.argument("run_folder", metavar="RUN", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="The TorchScript file to write.")
@click.option("--budget-mb", type=float, default=25.0, show_default=True, help="Largest file, 1e6 bytes.")
def export(run_folder: Path, out: Path, budget_mb: float) -> None:
    """Write the best student of RUN as one TorchScript file that loads with nothing but torch."""
    from pipeline.export import export as run_export

    result = run_export(run_folder, out, budget_mb=budget_mb)
    click.echo(
        f"{out}: {result.n_bytes / 1e6:.2f} MB, loads again and agrees with the checkpoint "
        f"(largest logit difference {result.worst_difference:.1g})"
    )


@click.command()
@click.argument("model", type=FILE)
@click.argument("images", metavar="IMAGE...", type=FILE, nargs=-1, required=True)
@click.option("--device", type=DEVICES, default="auto", show_default=True)
def predict(model: Path, images: tuple[Path, ...], device: str) -> None:
    """Class probabilities of image files, as CSV, by a run folder or an exported file."""
    import csv

    from pipeline.predict import predict as run_prediction

    writer = csv.writer(sys.stdout, lineterminator="\n")
    predictions = run_prediction(model, images, device=device)
    writer.writerow(["image", "label", *predictions[0].probabilities])
    for found in predictions:
        writer.writerow([found.path, found.label, *(f"{p:.4f}" for p in found.probabilities.values())])
