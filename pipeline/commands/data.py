"""Commands that look at images before anything is made of them. Each parses, calls one function, prints its result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.shared import FILE, data_options

if TYPE_CHECKING:
    from data.options import ScanOptions


class _NotOk(click.ClickException):
    """A data set that must be mended; the page has said why."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        """Nothing more."""


@click.group()
def data() -> None:
    """Look at images before anything is made of them."""


@data.command("check")
@click.argument("data_set", metavar="DATA", type=FILE)
@click.option("--near-duplicates", is_flag=True, help="Also look for images that look alike though their bytes differ.")
@click.option("--max-hamming", type=int, metavar="BITS", help="Of 64 of their perceptual hashes that may differ [12].")
@click.option("--min-correlation", type=float, metavar="R", help="Of their pixels, at least [0.98].")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON; the page cuts long lists.")
@data_options
def data_check(data_set: Path, near_duplicates: bool, as_json: bool, scan: ScanOptions, **settings: Any) -> None:
    """One page about DATA: splits, classes, groups, sizes, bad files, duplicates, leaks, and whether it is ready.

    Looks into every image and writes nothing. Exit code 1 where `cache build` with the same options would stop, or
    where near-duplicates were asked for and stand in two splits.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if given and not near_duplicates:
        raise click.UsageError("--max-hamming and --min-correlation go with --near-duplicates")
    from data.inspection import inspect
    from data.near_duplicates import NearDuplicateConfig
    from pipeline.data_check import is_ok, to_dict, verdict
    from pipeline.data_page import page

    near = NearDuplicateConfig(**given) if near_duplicates else None
    found = inspect(data_set, dataclasses.replace(scan, remember_split=False), near)
    click.echo(json.dumps(to_dict(found), indent=1) if as_json else page(found))
    if not is_ok(found):
        raise _NotOk(verdict(found))
