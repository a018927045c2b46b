"""The command that shows the whole pipeline without data or download."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands.shared import FILE


@click.command()
@click.option("-o", "--out", type=FILE, default=Path("demo-run"), show_default=True, help="Folder to write.")
@click.option("--smoke", is_flag=True, help="Smaller and shorter (under 90 s): does it run here at all?")
def demo(out: Path, smoke: bool) -> None:
    """See the whole pipeline on a made-up skin-lesion data set: no data, account or download needed."""
    from pipeline.demo.run import run_demo

    run_demo(out, smoke=smoke, say=click.echo)
