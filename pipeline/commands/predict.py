"""The command that puts a finished student to use. It parses, calls one function, prints its result."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipeline.commands.shared import DEVICES, FILE


@click.command()
@click.argument("model", type=FILE)
@click.argument("images", metavar="IMAGE...", type=click.Path(), nargs=-1)
@click.option("--format", "form", type=click.Choice(["csv", "json"]), default="csv", show_default=True)
@click.option(
    "--tta", type=int, default=1, show_default=True, metavar="V",
    help="Average the probabilities of V views: the clean image, and V - 1 crops, flips, turns and colours of it.",
)  # fmt: skip
@click.option("-0", "--null", is_flag=True, help="NUL, not a line's end, ends each path of the list on standard input.")
@click.option("--skip-bad-images", is_flag=True, help="Files that are no whole image do not make the command fail.")
@click.option("--device", type=DEVICES, default="auto", show_default=True)
def predict(
    model: Path, images: tuple[str, ...], form: str, tta: int, null: bool, skip_bad_images: bool, device: str
) -> None:
    """Class probabilities of images, by a run folder or an exported file.

    IMAGE is an image file, a folder (all images below it), or - for a list of such on standard input, a line each.
    Standard input is never read unless - says so.

    Of several tasks CSV has a column of classes for each, and a probability for each `task: class`; JSON has objects by
    task. Files that are no image are listed at the end, and the exit code is 1.
    """
    if not images:
        raise click.UsageError("name image files or folders, or - to read their paths from standard input")
    words = list(images)
    if words.count("-") > 1:
        raise click.UsageError("- can stand there once")
    if null and "-" not in words:
        raise click.UsageError("-0, --null is about the list that - reads")
    from pipeline.image_paths import listed_paths
    from pipeline.predict import PredictConfig
    from pipeline.prediction_rows import write_predictions

    config = PredictConfig(tta=tta)
    if "-" in words:
        at = words.index("-")
        words[at : at + 1] = listed_paths(sys.stdin.buffer.read(), null=null)
    write_predictions(model, words, sys.stdout, config, form=form, skip_bad_images=skip_bad_images, device=device)
