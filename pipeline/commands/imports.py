"""The command that makes a cache of somebody else's scores. Parses, calls one function, prints its result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.shared import FILE, data_options, goes_on_with, same_command

if TYPE_CHECKING:
    from data.options import ScanOptions


@click.command("import")
@click.argument("scores", type=FILE)
@click.argument("data", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="The cache to write, resume or extend.")
@click.option(
    "--as", "kind", type=click.Choice(["logits", "probabilities"]), required=True,
    help="What the numbers are: raw scores (logarithms of probabilities, too), or rows that sum to 1.",
)  # fmt: skip
@click.option("--views", type=click.IntRange(1, 65_535), help="Views of a train image [8, or as many as SCORES has].")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the views.")
@click.option("--name", help="What you call this teacher [the name of SCORES].")
@click.option("--partial", is_flag=True, help="Leave out images without scores, and scores without an image.")
@click.option("--names/--no-names", default=True, show_default=True, help="Store the images' relative paths.")
@click.option("--workers", type=click.IntRange(0), help="Loader processes [0 for a small DATA, else cores - 1].")
@data_options
def cache_import(scores: Path, data: Path, out: Path, scan: ScanOptions, **settings: Any) -> None:
    """Make a cache of a table of scores, from a teacher that cannot run here.

    SCORES is CSV or NPZ. CSV: a column `image` with relative paths, file names or stems, and a column of numbers for
    each class of DATA. NPZ: the arrays `image` [N], `classes` [C] and `scores` [N, C].

    The scores are those of the clean images, and every view of a train image gets the scores of its clean one. That
    is weaker than scoring each view (Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and
    consistent"). Whoever can score the views adds a column, or array, `view`: 0 for the clean image, and all of
    0..V-1 for each train image, as `data.views.draw` draws them with this --seed.

    Probabilities are stored as their logarithms; one below 1e-7 counts as 1e-7. Repeating the command resumes an
    interrupted import, and adds images or views that are new in DATA; other SCORES make another cache.
    """
    with goes_on_with(same_command):
        from pipeline.scores.importing import ImportConfig, import_scores

        result = import_scores(scores, data, out, ImportConfig(**settings), scan=scan)
    fixed = (
        f"; the {result.views} views of a train image share the scores of the clean one, which is weaker than scoring "
        "each view (Beyer et al. 2022)"
    )
    click.echo(
        f"{out}: {result.n_rows:,} views of {result.n_samples:,} images ({result.n_imported:,} imported now in "
        f"{result.wall_s:.0f} s)"
        + (f", {result.n_skipped:,} images left out" if result.n_skipped else "")
        + (fixed if result.is_fixed else "")
    )
