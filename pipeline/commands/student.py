"""What a finished student is taken for: export and predict. Each parses, calls one function, prints its result."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipeline.commands.shared import DEVICES, FILE


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
    """Class probabilities of image files, as CSV, by a run folder or an exported file.

    Of several tasks there is a column of classes for each, and a probability for each `task: class`.
    """
    import csv

    from pipeline.predict import predict as run_prediction

    writer = csv.writer(sys.stdout, lineterminator="\n")
    predictions = run_prediction(model, images, device=device)
    first = predictions[0]
    writer.writerow(["image", *(first.labels if len(first.labels) > 1 else ["label"]), *first.probabilities])
    for found in predictions:
        writer.writerow([found.path, *found.labels.values(), *(f"{p:.4f}" for p in found.probabilities.values())])
