"""The command that writes a report of a finished run. Parses, calls one function, prints its result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.shared import FILE, data_options, device_options

if TYPE_CHECKING:
    from data.options import ScanOptions


@click.command()
@click.argument("run_folder", metavar="RUN", type=FILE)
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@click.option("-o", "--out", type=FILE, help="The page to write [RUN/report.html; with DATA RUN/report-SPLIT.html].")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Whose images it is about [val].")
@click.option("--cache", "cache_file", type=FILE, help="Where the teacher's answers stand [the run's own cache].")
@click.option("--with-images", is_flag=True, help="Put images into it; without, it names them by their content keys.")
@device_options
@data_options
def report(
    run_folder: Path, data: Path | None, out: Path | None, split: str | None, cache_file: Path | None,
    with_images: bool, device: str, workers: int | None, scan: ScanOptions,
) -> None:  # fmt: skip
    """Write one HTML page about RUN: curves, scores beside the teacher's, verdicts, what it gets wrong.

    Without DATA it has curves and settings. The page needs no network and no script.
    """
    from pipeline.errors import OutputExists
    from pipeline.outputs import check_output_file
    from pipeline.report.gather import check_options, gather
    from pipeline.report.page import write_report

    check_options(data, with_images, split, cache_file)
    name = "report.html" if data is None else f"report-{split or 'val'}{'-images' * with_images}.html"
    path = run_folder / name if out is None else out
    if run_folder.is_dir() or out is not None:
        check_output_file(path)
    if path.exists():
        other = "; `train` wrote it, and `report RUN DATA` writes another" if data is None and out is None else ""
        raise OutputExists(f"{path} exists: choose another name by -o, or delete it{other}")
    content = gather(
        run_folder, data, split=split or "val", cache=cache_file, with_images=with_images, device=device,
        workers=workers, scan=scan,
    )  # fmt: skip
    write_report(path, content)
    n_found = sum(1 for verdict in content.verdicts if verdict.slug)
    shown = f", {len(content.pictures)} images in it" if content.pictures else ""
    words = f"{n_found} verdict{'' if n_found == 1 else 's'}"
    more = " (name DATA for those that need the images)" if data is None else ""
    click.echo(f"{path}: {words}{more}, {path.stat().st_size / 1e3:.0f} kB{shown}")
