"""The command that writes a finished student as one file. It parses, calls one function, prints its result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.shared import FILE, data_options

if TYPE_CHECKING:
    from data.options import ScanOptions


@click.command()
@click.argument("run_folder", metavar="RUN", type=FILE)
@click.argument("data", type=FILE, required=False)
@click.option("-o", "--out", type=FILE, required=True, help="The file to write.")
@click.option(
    "--format", type=click.Choice(["auto", "torchscript", "onnx", "torch-export"]), default="auto", show_default=True,
    help="auto = by the ending of the name: .onnx, .pt2, else torchscript.",
)  # fmt: skip
@click.option(
    "--weights", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True,
    help="How they are stored; the arithmetic stays float32. Needs DATA.",
)  # fmt: skip
@click.option("--int8", is_flag=True, help="Weights and arithmetic in INT8, by ONNX Runtime. Needs DATA.")
@click.option("--for-course", is_flag=True, help="As the course server takes it; the student saw 224 px.")
@click.option("--budget-mb", type=float, default=25.0, show_default=True, help="Largest file, 1e6 bytes.")
@click.option(
    "--least-agreement", type=float, metavar="SHARE",
    help="Share of DATA's images that must get the class of the checkpoint [0.999; 0.99 with int8].",
)  # fmt: skip
@click.option("--replace", is_flag=True, help="Put the new file in the place of an old one.")
@data_options
def export(run_folder: Path, data: Path | None, out: Path, scan: ScanOptions, **settings: Any) -> None:
    """Write the best student of RUN as one file.

    It runs without softlabel, and is compared with the checkpoint in a process of its own before it gets its name: on
    noise, and on the images of DATA.
    """
    import dataclasses

    from pipeline.errors import SettingError
    from pipeline.export import ExportConfig
    from pipeline.export import export as run_export

    about_data = [*scan.words(), *(["--least-agreement"] if settings["least_agreement"] is not None else [])]
    if data is None and about_data:
        raise SettingError(f"{about_data[0]} is about the images of DATA: `softlabel export RUN DATA -o FILE`")
    asking = dataclasses.replace(scan, remember_split=False)
    click.echo(run_export(run_folder, out, ExportConfig(**settings), data=data, scan=asking).to_text())
