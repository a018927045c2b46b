"""The commands for a finished student: evaluate, export, predict. Each parses, calls one function, prints a result."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.shared import DEVICES, FILE, data_options, device_options

if TYPE_CHECKING:
    from data.options import ScanOptions


@click.command()
@click.argument("model", type=FILE)
@click.argument("data", type=FILE)
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True)
@click.option("--cache", "cache_file", type=FILE, help="Where the teacher's answers stand [the run's own cache].")
@click.option("--json", "json_file", type=click.Path(path_type=Path, allow_dash=True), help="Write JSON (- = print).")
@device_options
@data_options
def evaluate(
    model: Path, data: Path, split: str, cache_file: Path | None, json_file: Path | None, device: str,
    workers: int | None, scan: ScanOptions,
) -> None:  # fmt: skip
    """Measure MODEL, a run folder or an exported file, on a split of DATA."""
    from pipeline.errors import OutputExists
    from pipeline.evaluate import evaluate as run_evaluation
    from pipeline.outputs import check_output_file

    if json_file is not None and str(json_file) != "-":
        check_output_file(json_file)
        if json_file.exists():
            raise OutputExists(f"{json_file} exists: choose another name, or delete it")
    result = run_evaluation(model, data, split=split, cache=cache_file, device=device, workers=workers, scan=scan)
    as_json = json.dumps(result.to_dict(), indent=1)
    if json_file is None or str(json_file) != "-":
        click.echo(result.to_table())
    else:
        click.echo(as_json)
    if json_file is not None and str(json_file) != "-":
        from cache.durable import write_atomic

        write_atomic(json_file, as_json.encode())


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
