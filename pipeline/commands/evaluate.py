"""The command that measures a finished student. It parses, calls one function, prints its result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.shared import FILE, data_options, device_options, names, share_table

if TYPE_CHECKING:
    from data.options import ScanOptions


@click.command()
@click.argument("model", type=FILE)
@click.argument("data", type=FILE)
@click.option("--split", type=click.Choice(["train", "val", "test", "all"]), default="all", show_default=True)
@click.option("-o", "--out", type=FILE, help="A new folder for scores, tables, figures and predictions of each split.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, allow_dash=True), help="Write JSON (- = print).")
@click.option("--cache", "cache_file", type=FILE, help="Where the teacher's answers stand [the run's own cache].")
@click.option("--csv", type=FILE, help="Table with a row an image, for the columns below [that of DATA].")
@click.option("--image-column", metavar="COLUMN", help="Its column of images [image_id, image, filename, path, name].")
@click.option(
    "--group-column", metavar="COLUMN", help="Intervals draw whole groups of it, such as patients or lesions."
)
@click.option(
    "--subgroup-column", "subgroup_columns", metavar="COLUMN,...", callback=names,
    help="Scores for each value of these columns.",
)  # fmt: skip
@click.option(
    "--sensitivity-of", metavar="CLASS,...", callback=names,
    help="Classes of which none should be missed: their sensitivity at a fixed specificity.",
)  # fmt: skip
@click.option("--at-specificity", type=float, default=0.9, show_default=True, help="Of the other classes' images.")
@click.option(
    "--threshold-from", type=click.Choice(["auto", "val", "same"]), default="auto", show_default=True,
    help="Images that choose the threshold: val, those measured, or val where there is one.",
)  # fmt: skip
@click.option(
    "--objective", type=click.Choice(["course"]),
    help="Show 10 x macro F1 - size factor as well, the score of the course; its own size factor is not public.",
)  # fmt: skip
@click.option(
    "--size-factor", metavar="X",
    help="For --objective, given by you: points taken off (0.35), or points per 1e6 bytes of the exported file "
    "(0.02/MB).",
)  # fmt: skip
@device_options
@data_options(beside=("csv", "image_column", "group_column"))
def evaluate(
    model: Path, data: Path, out: Path | None, json_file: Path | None, cache_file: Path | None, device: str,
    workers: int | None, scan: ScanOptions, **settings: Any,
) -> None:  # fmt: skip
    """Measure MODEL, a run folder or an exported file, on DATA, with 95 % intervals by bootstrap.

    A folder of several runs, as `train --seeds` makes it, is measured run by run: mean and standard deviation.
    """
    from pipeline.errors import OutputExists
    from pipeline.evaluate import EvaluateConfig, evaluate_any
    from pipeline.metrics.files import check_new_folder, json_bytes, write_evaluation
    from pipeline.outputs import check_output_file

    is_printed = str(json_file) == "-"
    if json_file is not None and not is_printed:
        check_output_file(json_file)
        if json_file.exists():
            raise OutputExists(f"{json_file} exists: choose another name, or delete it")
    if out is not None:
        check_new_folder(out)
    has_columns = settings["group_column"] is not None or bool(settings["subgroup_columns"])
    scan, settings = share_table(data, scan, settings, has_columns=has_columns, alone=True)
    config = EvaluateConfig(**settings)
    asking = dataclasses.replace(scan, remember_split=False)
    result = evaluate_any(model, data, config, cache=cache_file, device=device, workers=workers, scan=asking)
    click.echo(json_bytes(result.to_dict()).decode() if is_printed else result.to_table(), nl=not is_printed)
    if json_file is not None and not is_printed:
        from cache.durable import write_atomic

        write_atomic(json_file, json_bytes(result.to_dict()))
    if out is not None:
        write_evaluation(out, result)
        click.echo(f"\n{out}: scores, tables, figures and predictions", err=is_printed)
