"""The commands that make logits anew from embeddings. Each parses, calls one function, prints its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.shared import FILE, data_options, goes_on_with, same_command, share_table

if TYPE_CHECKING:
    from data.options import ScanOptions

_KEEP_EMBEDDING = click.option(
    "--embedding/--no-embedding", default=True, show_default=True,
    help="Keep the embeddings, so that the new cache can be repaired again.",
)  # fmt: skip


@click.command()
@click.argument("cache_file", metavar="CACHE", type=FILE)
@click.argument("data", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="The cache to write; must not exist.")
@click.option("--cross-fit", metavar="GROUP", help="Label train rows out of fold: image, or a column of --csv.")
@click.option("--csv", type=FILE, help="Table with a row an image, for --cross-fit COLUMN [that of DATA].")
@click.option("--image-column", metavar="COLUMN", help="Its column of images [image_id, image, filename, path, name].")
@click.option(
    "--folds", type=click.IntRange(2, 100), default=5, show_default=True,
    help="Heads of --cross-fit; with --fold also the parts of an unsplit DATA.",
)  # fmt: skip
@click.option("--calibrate", is_flag=True, help="Temperature scaling, on val or else on what a head held out of train.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the folds.")
@_KEEP_EMBEDDING
@data_options(beside=("csv", "image_column", "folds"))
def probe(cache_file: Path, data: Path, out: Path, scan: ScanOptions, **settings: Any) -> None:
    """Label CACHE anew by logistic regression on its embeddings, fitted on the train images of DATA.

    No teacher and no pixels: seconds. The classes are DATA's, so any teacher's embeddings will do. With --cross-fit no
    train row is labelled by a head that saw its group (image, lesion, patient).
    """
    with goes_on_with(same_command):
        from pipeline.repair.probe import EACH_IMAGE, ProbeConfig, probe_cache

        has_columns = settings["cross_fit"] not in (None, EACH_IMAGE)
        scan, settings = share_table(data, scan, settings, has_columns=has_columns, alone=False)
        result = probe_cache(cache_file, data, out, ProbeConfig(**settings), scan)
    temperature = f", T {result.temperatures[0]:.4g}" if result.temperatures else ""
    heads = "1 linear head" if len(result.c) == 1 else f"{len(result.c)} linear heads"
    click.echo(
        f"{out}: {result.n_rows:,} views of {result.n_samples:,} images, {heads} on "
        f"{result.n_features:,} features, C {result.c[0]:g}{temperature}, {result.wall_s:.1f} s"
    )
    if result.scores:
        click.echo(result.to_table())


@click.command()
@click.argument("cache_file", metavar="CACHE", type=FILE)
@click.option("--prompts", type=FILE, help="YAML: class -> prompt or list of prompts [the class names].")
@click.option("--template", "templates", multiple=True, help="Text with {} where each prompt goes; repeatable.")
@click.option("-o", "--out", type=FILE, required=True, help="The cache to write; must not exist.")
@click.option("--teacher", help="Folder or Hugging Face name of CACHE's teacher [the name in CACHE].")
@click.option("--data", type=FILE, help="Images: compare old and new answers; their folders name the classes.")
@click.option("--calibrate", is_flag=True, help="With --data: temperature scaling, on val or else on train.")
@_KEEP_EMBEDDING
@data_options
def rehead(cache_file: Path, out: Path, data: Path | None, scan: ScanOptions, **settings: Any) -> None:
    """Give CACHE the answers that its teacher has to other prompts.

    Reads the teacher's text side and the stored embeddings, no pixels.
    """
    with goes_on_with(same_command):
        from pipeline.repair.rehead import ReheadConfig, rehead_cache

        result = rehead_cache(cache_file, out, ReheadConfig(**settings), data, scan)
    temperature = f", T {_listed(result.temperatures)}" if result.temperatures else ""
    click.echo(
        f"{out}: {result.n_rows:,} views of {result.n_samples:,} images with new prompts{temperature}, "
        f"{result.wall_s:.1f} s"
    )
    if result.scores:
        click.echo(result.to_table())


def _listed(values: Sequence[float]) -> str:
    return " and ".join(f"{value:.4g}" for value in values)
